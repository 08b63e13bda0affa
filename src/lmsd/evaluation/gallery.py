"""A page about shards, to be looked at before anything is trained on them.

Samples with their captions and sizes, how large and how wide images are, what captions say, the nearest pairs
side by side (also across splits, where the one would give the other away), and what a build left out and why.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lmsd.data.builders.duplicates import signature
from lmsd.data.heldout import HeldOut
from lmsd.data.shards import SPLITS, Split
from lmsd.data.shardset import ShardSet
from lmsd.data.text import words_of
from lmsd.data.urls import name_of
from lmsd.evaluation.grid import picture_uri, to_picture
from lmsd.evaluation.report import render
from lmsd.files import write_text
from lmsd.types import levels

COMPARED = 3000
"""Samples of each split that are compared with one another."""
NEAR = 0.9
_PAIRS = 12
_WORDS = 24
_NAMED = 5


class Shown(NamedTuple):
    """One sample on the page: its picture, what names it, what it says, its size."""

    uri: str
    name: str
    caption: str
    size: str


class Pair(NamedTuple):
    """Two samples and the correlation of their pixels."""

    one: Shown
    other: Shown
    correlation: float


def write_gallery(data: ShardSet, name: str, out: Path, *, manifest: Path | None, n: int, seed: int) -> Path:
    """Write the page of a data set; its path.

    manifest: of the build, where there is one; n: samples of each split; seed: which ones. UserError for
    damaged samples.
    """
    splits: dict[Split, HeldOut] = {split: data.split_set(split) for split in SPLITS if data.has(split)}
    rng = np.random.default_rng(seed)
    drawn = {split: np.sort(rng.permutation(len(part))[:COMPARED]) for split, part in splits.items()}
    told = json.loads(manifest.read_text(encoding="utf-8")) if manifest is not None else {}
    names = told.get("class_names") or []
    shown = {
        split: [_shown(data, part, int(row), names) for row in np.sort(rng.permutation(drawn[split])[:n])]
        for split, part in splits.items()
    }
    text = render(
        "gallery.html",
        name=name,
        splits=[(split, len(part), _facts(data, split, part)) for split, part in splits.items()],
        samples=shown,
        pairs=_pairs(data, splits, drawn, names),
        compared={split: len(rows) for split, rows in drawn.items()},
        near=NEAR,
        dropped=_dropped(told),
        notes=[(note["what"], note["count"], note["first"]) for note in told.get("notes", [])],
    )
    write_text(out, text)
    return out


def _shown(data: ShardSet, part: HeldOut, row: int, names: Sequence[str]) -> Shown:
    index = data.index(part.split)
    shard, sample = (int(place[0]) for place in index.places(np.array([row])))
    height, width, _ = index.shard(shard).picture[sample].tolist()
    caption, labels = _caption(data, part, row), part.labels([row])
    if labels is not None:
        label = int(labels[0])
        caption = f"{caption} [{names[label] if label < len(names) else label}]".strip()
    uri = picture_uri(to_picture(part.images([row])[0]))
    place = f"{name_of(index.shards[shard])}: {index.shard(shard).key(sample)}"
    return Shown(uri, place, caption, f"{width} x {height}")


def _caption(data: ShardSet, part: HeldOut, row: int) -> str:
    return part.captions([row])[0] if data.index(part.split).captions else ""


def _facts(data: ShardSet, split: Split, part: HeldOut) -> list[tuple[str, str]]:
    """What the index and the captions say of a whole split."""
    index = data.index(split)
    tables = [index.shard(shard).picture for shard in range(len(index.shards))]
    height, width = np.concatenate([table[:, :2] for table in tables]).T.astype(float)
    facts = [
        ("shortest side, pixels", _spread(np.minimum(height, width))),
        ("width : height", _spread(width / height, "{:.2f}")),
        ("cropped away to a square", f"{(1 - np.minimum(height, width) ** 2 / (height * width)).mean():.0%}"),
    ]
    if index.captions:
        rows = np.linspace(0, len(part) - 1, min(len(part), 10_000)).astype(int)
        texts = part.captions(rows)
        words = [word for text in texts for word in words_of(text.lower())]
        most = ", ".join(f"{word} {count}" for word, count in Counter(words).most_common(_WORDS))
        facts += [
            ("words in a caption", _spread(np.array([len(words_of(text)) for text in texts], float))),
            ("empty captions", f"{sum(not text for text in texts) / len(texts):.1%}"),
            ("different captions", f"{len({*texts}):,} of {len(texts):,}"),
            ("most frequent words", most),
        ]
    labels = part.labels(range(len(part)))
    if labels is not None:
        counts = torch.bincount(labels)
        facts.append(("samples of a class", _spread(counts[counts > 0].double().numpy())))
    return facts


def _spread(values: NDArray[np.float64], form: str = "{:,.0f}") -> str:
    """Least, median and greatest value, or the one that there is."""
    least, middle, most = (form.format(np.quantile(values, q)) for q in (0, 0.5, 1))
    return least if least == most else f"{least} to {most}, median {middle}"


def _pairs(
    data: ShardSet,
    splits: Mapping[Split, HeldOut],
    drawn: Mapping[Split, NDArray[np.int64]],
    names: Sequence[str],
) -> list[Pair]:
    """The nearest pairs among the samples that are compared, most alike first."""
    places = [(split, int(row)) for split, rows in drawn.items() for row in rows]
    signatures = []
    for split, rows in drawn.items():
        for start in range(0, len(rows), 256):
            pixels = levels(splits[split].images(rows[start : start + 256])).permute(0, 2, 3, 1).numpy()
            signatures += [signature(each).ravel() for each in pixels]
    stacked = torch.from_numpy(np.stack(signatures))
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(stacked), 1024):
        alike = (stacked[start : start + 1024] @ stacked.T).triu(start + 1)
        values, flat = alike.flatten().topk(min(_PAIRS, alike.numel()))
        for value, at in zip(values.tolist(), flat.tolist(), strict=True):
            best.append((value, start + at // len(stacked), at % len(stacked)))
    chosen = sorted(best, reverse=True)[:_PAIRS]
    pairs = []
    for value, *two in chosen:
        if value >= NEAR:
            one, other = (_shown(data, splits[places[i][0]], places[i][1], names) for i in two)
            pairs.append(Pair(one, other, value))
    return pairs


def _dropped(manifest: Mapping[str, dict[str, object]]) -> list[tuple[str, int, str]]:
    """Reason, count and the first names of what a build left out."""
    found = manifest.get("dropped", {})
    pictures: list[Mapping[str, str]] = list(found.get("pictures", []))  # type: ignore[call-overload]
    kinds: dict[str, list[str]] = {}
    for picture in pictures:
        kinds.setdefault(_general(picture["reason"]), []).append(picture["name"])
    return [
        (kind, len(names), ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else ""))
        for kind, names in sorted(kinds.items(), key=lambda item: -len(item[1]))
    ]


def _general(reason: str) -> str:
    """A reason without the name of the other picture."""
    return reason.partition(" of ")[0] if "duplicate of" in reason or "kin of" in reason else reason
