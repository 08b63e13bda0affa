"""Trained editing on scenes, where every answer is known, beside copying the source and SDEdit.

    python benchmarks/edits.py build OUT                                   pairs of scenes, in OUT/edits
    python benchmarks/edits.py train OUT seed=0 images=200_000             the edit, and a twin with captions
    python benchmarks/edits.py judge OUT seed=0 [n=1000]                   one row a method, into results/

right: the instruction is carried out by the exact reader of pictures; kept: every attribute that it does not
mention, and the background, read as in the source; change: of pixels outside the union of source and target
object, in levels of 255. Held-out sources (test), and those of pairs of instruction and attribute that
training has never seen, apart. SDEdit samples from the captioned twin of the run at strength 0.6, with the
target's caption; of "remove it", which no caption says, it copies.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lmsd
from lmsd.data.builders.edits import Edit, judged, random_edit, target_of
from lmsd.data.builders.shapes import GROUND_OF, render
from lmsd.data.transforms import scale
from lmsd.rng import Rng
from lmsd.sampling import Model
from lmsd.types import levels

RESULTS = Path(__file__).parent / "results" / "edits.json"
SIZE = 16


def options(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def build(out: Path) -> None:
    counts = ["train_count=20000", "val_count=500", "test_count=2000", f"image_size={SIZE}"]
    subprocess.run(["lmsd", "data", "build", "edits", f"out={out / 'edits'}", *counts], check=True)


def train(out: Path, *, seed: str = "0", images: str = "200_000") -> None:
    """The edit, and a twin that reads the target's caption and sees no source."""
    words = [f"data.shards={out / 'edits'}", f"seed={seed}", f"images={images}", "evaluate.n=0"]
    caption = ["objective=denoising", "generator.sees=nothing", "data.images=[]", "data.caption_key=target"]
    for name, own in (("edit", []), ("caption", caption)):
        folder = out / f"{name}-{seed}"
        command = ["lmsd", "train", "experiment=shapes_edit", *words, *own, f"run_dir={folder}"]
        if (folder / "config.yaml").is_file():
            command = ["lmsd", "train", f"resume={folder}"]
        subprocess.run(command, check=True, env={**os.environ})


def pairs(n: int) -> list[Edit]:
    """The test split's edits, by the numbers that they were drawn from."""
    return [random_edit(np.random.default_rng((0, 7, 2, index))) for index in range(n)]


def pictures(edits: list[Edit]) -> NDArray[np.uint8]:
    return np.stack([render(edit.source, SIZE) for edit in edits])


def by_edit(model: Model, edits: list[Edit], guidance: float, image: float, steps: int) -> NDArray[np.uint8]:
    generate = model.generation(steps=steps, guidance=guidance, image_guidance=image)
    batch = model.batch([edit.instruction for edit in edits], scale(pictures(edits)))
    made = generate.edit(batch, Rng(0, batch.position), strength=1.0)
    found: NDArray[np.uint8] = levels(made).permute(0, 2, 3, 1).numpy()
    return found


def by_sdedit(model: Model, edits: list[Edit], strength: float, steps: int) -> NDArray[np.uint8]:
    found = pictures(edits)
    rows = [row for row, edit in enumerate(edits) if edit.target is not None]
    told = [edit.target.caption() for edit in edits if edit.target is not None]
    batch = model.batch(told, scale(found[rows]))
    generate = model.generation(steps=steps, guidance=2.0)
    made = generate.edit(batch, Rng(0, batch.position), strength=strength)
    found[rows] = levels(made).permute(0, 2, 3, 1).numpy()
    return found


def outside(images: NDArray[np.uint8], edits: list[Edit]) -> NDArray[np.float64]:
    """Changes of the pixels that neither source nor target object covers, in levels."""
    changes = []
    for image, edit in zip(images, edits, strict=True):
        source, target = render(edit.source, SIZE), target_of(edit, SIZE)
        ground = GROUND_OF[edit.source.background]
        free = (np.abs(source - ground).max(2) < 1) & (np.abs(target - ground).max(2) < 1)
        changes.append(np.abs(image.astype(float) - source.astype(float))[free].ravel())
    return np.concatenate(changes)


def row(images: NDArray[np.uint8], edits: list[Edit]) -> dict[str, Any]:
    found = judged(images, edits)
    moved = outside(images, edits)
    by_kind = {
        kind: float(found["right"][[edit.changed == kind for edit in edits]].mean())
        for kind in sorted({edit.changed for edit in edits})
    }
    return {
        "n": len(edits),
        "right": float(found["right"].mean()),
        "kept": float(found["kept"].mean()),
        "change_mean": float(moved.mean()),
        "change_99": float(np.percentile(moved, 99)),
        "right_by_kind": by_kind,
    }


def judge(out: Path, *, seed: str = "0", n: str = "1000", steps: str = "8") -> None:
    edits = pairs(int(n))
    model, twin = lmsd.load(out / f"edit-{seed}"), lmsd.load(out / f"caption-{seed}")
    ways = {
        "copy the source": pictures(edits),
        "the target itself": np.stack([target_of(edit, SIZE) for edit in edits]),
        "SDEdit, strength 0.6": by_sdedit(twin, edits, 0.6, int(steps)),
        "SDEdit, strength 0.9": by_sdedit(twin, edits, 0.9, int(steps)),
        "edit": by_edit(model, edits, 1.0, 1.0, int(steps)),
        "edit, guidance 1.5, image 1.2": by_edit(model, edits, 1.5, 1.2, int(steps)),
    }
    held = [edit.held for edit in edits]
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[f"seed {seed}, {model.images:,} images"] = {
        name: {
            "held-out sources": row(images[~np.array(held)], [e for e in edits if not e.held]),
            "held-out pairs": row(images[np.array(held)], [e for e in edits if e.held]),
        }
        for name, images in ways.items()
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    for name, parts in content[f"seed {seed}, {model.images:,} images"].items():
        for part, found in parts.items():
            print(
                f"{name:32} {part:18} n {found['n']:5} right {found['right']:6.1%} kept {found['kept']:6.1%} "
                f"change {found['change_mean']:.2f}, 99 % {found['change_99']:.1f}"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    action, place, *rest = sys.argv[1:]
    {"build": build, "train": train, "judge": judge}[action](Path(place), **options(rest))
