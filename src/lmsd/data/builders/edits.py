"""The source `edits`: pairs of scenes and the instruction that makes one of the other.

    KEY.source.png   a scene of `lmsd.data.builders.shapes`       KEY.txt    "make it blue"
    KEY.png          the same scene, edited                       KEY.json   what both show, in words

An instruction changes one of color, shape, size and position, or removes the object; background, shift and
scale stay, so every pixel of the target is known. Some pairs of instruction and attribute ("make it purple"
of a ring) occur in test alone (`HELD`).
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import lmsd
from lmsd.data.builders.folders import MANIFEST, fresh_folder
from lmsd.data.builders.options import BuildOptions
from lmsd.data.builders.shapes import (
    COLORS,
    GROUND_OF,
    POSITIONS,
    SHAPES,
    SIZES,
    WORDS,
    Scene,
    as_levels,
    random_scene,
    read_scenes,
    render,
)
from lmsd.data.builders.write import write_split
from lmsd.data.index import build_index
from lmsd.data.shards import SPLITS, Split
from lmsd.files import sha256_of

if TYPE_CHECKING:
    from lmsd.types import Progress

Changed: TypeAlias = Literal["color", "shape", "size", "position", "remove"]
_VALUES: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "size": SIZES,
    "position": POSITIONS,
}
_SAID = {
    "color": "make it {}",
    "shape": "turn it into a {}",
    "size": "make it {}",
    "position": "move it {}",
}
_WAYS = {
    "left": "to the left",
    "right": "to the right",
    "top": "to the top",
    "bottom": "to the bottom",
    "center": "to the center",
}
HELD: frozenset[tuple[str, str]] = frozenset(
    [("make it purple", "ring"), ("make it green", "cross"), ("turn it into a circle", "yellow")]
)
"""Instructions and attributes of the source that come together in test alone."""
STANDS_OUT = 32.0
"""Levels of 255 from which a pixel stands out from the background of a removed object."""


@dataclass(frozen=True)
class Edit:
    """A scene, what is asked of it, and what it becomes; target None: nothing but the background."""

    source: Scene
    changed: Changed
    target: Scene | None
    instruction: str

    @property
    def held(self) -> bool:
        """Whether instruction and source come together in test alone."""
        return any((self.instruction, word) in HELD for word in (self.source.shape, self.source.color))


def random_edit(rng: np.random.Generator, *, held: bool = True) -> Edit:
    """An edit of a random scene, each kind as often as any other; held: those of `HELD` may come."""
    while True:
        source = random_scene(rng)
        kinds: tuple[Changed, ...] = (*_SAID, "remove")  # type: ignore[arg-type]
        changed = kinds[rng.integers(len(kinds))]
        if changed == "remove":
            return Edit(source, changed, None, "remove it")
        others: list[Any] = [value for value in _VALUES[changed] if value != vars(source)[changed]]
        value = others[rng.integers(len(others))]
        made = replace(source, **{changed: value})
        found = Edit(source, changed, made, _SAID[changed].format(_WAYS.get(value, value)))
        if held or not found.held:
            return found


def target_of(edit: Edit, size: int) -> NDArray[np.uint8]:
    """The edited picture, uint8 [size,size,3]."""
    if edit.target is not None:
        return render(edit.target, size)
    return np.broadcast_to(GROUND_OF[edit.source.background], (size, size, 3)).round().astype(np.uint8)


def build_edits(out: Path, options: BuildOptions, progress: "Progress | None" = None) -> Path:
    """Write shards of pairs, their index and a manifest into `out`; the manifest's path.

    Pair i of a split comes from a generator keyed by (seed, split, i).
    """
    size = options.pictures.image_size or 16
    counts = (options.drawing.train_count, options.drawing.val_count, options.drawing.test_count)
    shards: list[Path] = []
    with fresh_folder(out, overwrite=options.overwrite) as work:
        for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            samples = _samples(split, number, count, size, options.drawing.seed, progress)
            if count:
                shards += write_split(work, split, samples, size=options.shard_size)
        manifest = {
            "version": 1,
            "source": {"name": "edits", "held": sorted(map(list, HELD))},
            "image_size": size,
            "channels": 3,
            "captions": True,
            "counts": dict(zip(SPLITS, counts, strict=True)),
            "shards": {shard.name: {"sha256": sha256_of(shard)} for shard in shards},
            "dropped": {"count": 0, "reasons": {}, "first": {}, "pictures": []},
            "notes": [],
            "versions": {"lmsd": lmsd.__version__},
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        build_index(shards)
    return out / MANIFEST


def _samples(
    split: Split, number: int, count: int, size: int, seed: int, progress: "Progress | None"
) -> Iterator[dict[str, str | bytes]]:
    for index in range(count):
        edit = random_edit(np.random.default_rng((seed, 7, number, index)), held=split == "test")
        told = {
            "source": edit.source.caption(),
            "target": edit.target.caption() if edit.target else "nothing",
            "changed": edit.changed,
            "held": edit.held,
        }
        yield {
            "__key__": f"{split}-{index:06d}",
            "png": _png(target_of(edit, size)),
            "source.png": _png(render(edit.source, size)),
            "txt": edit.instruction.encode(),
            "json": json.dumps(told).encode(),
        }
        if progress is not None:
            progress(index + 1, count, f"{split} pairs")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def judged(images: Any, edits: list[Edit]) -> dict[str, NDArray[np.bool_]]:
    """Whether edited pictures are right [n], and whether what was not mentioned is as before [n].

    right: the changed attribute reads as asked for, or nothing is left; kept: every other attribute and the
    background read as in the source (of a removed object the background alone).
    """
    levels = as_levels(images)
    size = levels.shape[1]
    shown, before = read_scenes(images), read_scenes(np.stack([render(edit.source, size) for edit in edits]))
    right, kept = np.zeros(len(edits), bool), np.zeros(len(edits), bool)
    for row, edit in enumerate(edits):
        same = bool(shown.background[row] == before.background[row])
        if edit.target is None:
            ground = GROUND_OF[edit.source.background]
            out = np.abs(levels[row] - ground).max(2) > STANDS_OUT
            right[row], kept[row] = bool(out.mean() == 0), same
            continue
        wanted = _VALUES[edit.changed].index(vars(edit.target)[edit.changed])
        right[row] = shown.words[edit.changed][row] == wanted
        kept[row] = same and all(
            shown.words[word][row] == before.words[word][row] for word in WORDS if word != edit.changed
        )
    return {"right": right, "kept": kept}
