"""The article's preparation: every picture decoded, checked, cropped, resized, denoised, deduplicated and split.

A picture's content hash h = sha256(size, pixels) names it. Pictures with one h are one picture. Of near duplicates
(`duplicates`) one is kept: first one whose split the source fixes as test, then val, then in the source's order.
What is left of a group of near duplicates goes to one split, by the group's smallest h read as u in [0, 1):

    u < test → test,   u < test + val → val,   else train

so a picture's split depends on its group's content alone: no other file's coming or going moves it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import numpy as np

from lmsd.data.build.duplicates import components, near_pairs, signature
from lmsd.data.build.options import BuildOptions
from lmsd.data.build.pictures import BadPicture, encode_picture, fit_picture, read_picture
from lmsd.data.build.source import Dropped, Pixels, Raw, Source, Split
from lmsd.errors import UserError

Progress: TypeAlias = Callable[[int, int, str], None]
"""(done, total, stage) → None."""
_RANK: dict[Split | None, int] = {"test": 0, "val": 1, "train": 2, None: 3}


@dataclass(frozen=True)
class Sample:
    """A prepared picture: its content hash, its words, and where its encoded bytes lie in the spool."""

    name: str
    key: str
    caption: str
    label: int | None
    split: Split | None
    offset: int
    length: int


@dataclass(frozen=True)
class Prepared:
    """What is written, in the order of content hashes, and what is not."""

    samples: list[Sample]
    dropped: list[Dropped]


def content_hash(pixels: Pixels) -> str:
    """sha256 of the shape and the pixels, as 64 hex digits."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def split_of(key: str, *, val: float, test: float) -> Split:
    """The split of a content hash: its first 64 bits as u in [0, 1) against the parts."""
    u = int(key[:16], 16) / 2**64
    if u < test:
        return "test"
    return "val" if u < test + val else "train"


def prepare(
    source: Source, options: BuildOptions, *, spool: BinaryIO, progress: Progress | None = None
) -> Prepared:
    """Prepare every picture of `source`, its encoded bytes going to `spool`, and give each kept one its split."""
    samples, signatures, dropped = _read(source, options, spool, progress)
    pairs = np.zeros((0, 2), np.int64)
    if options.near_duplicates != "keep":
        if progress is not None:
            progress(0, len(samples), "near duplicates")
        similarity = source.similarity if options.similarity is None else options.similarity
        pairs = near_pairs(np.stack(signatures), similarity)
    kept, near = _without_near(samples, pairs, drop=options.near_duplicates == "drop")
    val = source.val if options.val is None else options.val
    test = source.test if options.test is None else options.test
    split, mixed = _split(samples, kept, pairs, val=val, test=test)
    return Prepared(sorted(split, key=lambda sample: sample.key), [*source.dropped, *dropped, *near, *mixed])


def _read(
    source: Source, options: BuildOptions, spool: BinaryIO, progress: Progress | None
) -> tuple[list[Sample], list[np.ndarray], list[Dropped]]:
    """Decode, check, fit, hash and encode every picture; exact duplicates are dropped here."""
    samples: list[Sample] = []
    signatures: list[np.ndarray] = []
    dropped: list[Dropped] = []
    first: dict[str, int] = {}
    for done, raw in enumerate(source.samples, 1):
        try:
            pixels = _pixels(raw, source, options)
        except BadPicture as reason:
            dropped.append(Dropped(raw.name, str(reason)))
            continue
        key = content_hash(pixels)
        seen = first.get(key)
        if seen is None:
            data = encode_picture(pixels, options.image_format)
            place = spool.tell()
            spool.write(data)
            first[key] = len(samples)
            samples.append(Sample(raw.name, key, raw.caption, raw.label, raw.split, place, len(data)))
            signatures.append(signature(pixels))
        else:
            samples[seen], gone = _one_of(samples[seen], raw)
            dropped.append(gone)
        if progress is not None and (done % 256 == 0 or done == source.total):
            progress(done, source.total, "pictures")
    if not samples:
        raise UserError(f"no picture of {source.name} could be used: {_first_reason(source, dropped)}")
    return samples, signatures, dropped


def _first_reason(source: Source, dropped: list[Dropped]) -> str:
    reasons = [*source.dropped, *dropped]
    return f"{reasons[0].name}: {reasons[0].reason}" if reasons else "the source is empty"


def _pixels(raw: Raw, source: Source, options: BuildOptions) -> Pixels:
    """The fitted pixels of one picture; BadPicture when it cannot be used."""
    pixels = read_picture(raw.picture) if isinstance(raw.picture, Path) else raw.picture
    return fit_picture(
        pixels,
        options.image_size or source.image_size,
        channels=options.channels or source.channels,
        denoise=options.denoise,
    )


def _one_of(old: Sample, raw: Raw) -> tuple[Sample, Dropped]:
    """Of two equal pictures the one whose split ranks first (test, val, train), and the other as dropped."""
    note = "" if old.caption == raw.caption else " with another caption"
    if _RANK[raw.split] < _RANK[old.split]:
        new = replace(old, name=raw.name, caption=raw.caption, label=raw.label, split=raw.split)
        return new, Dropped(old.name, f"exact duplicate of {raw.name}{note}")
    return old, Dropped(raw.name, f"exact duplicate of {old.name}{note}")


def _without_near(samples: list[Sample], pairs: np.ndarray, *, drop: bool) -> tuple[list[int], list[Dropped]]:
    """Indices that stay when each picture near a better-ranked one that stays is dropped."""
    near: dict[int, list[int]] = {}
    for one, other in pairs.tolist() if drop else ():
        near.setdefault(one, []).append(other)
        near.setdefault(other, []).append(one)
    order = sorted(range(len(samples)), key=lambda i: (_RANK[samples[i].split], i))
    gone: dict[int, int] = {}
    for index in order:
        if index not in gone:
            gone.update((other, index) for other in near.get(index, ()) if other not in gone)
    kept = [index for index in range(len(samples)) if index not in gone]
    reasons = [Dropped(samples[i].name, f"near duplicate of {samples[gone[i]].name}") for i in sorted(gone)]
    return kept, reasons


def _split(
    samples: list[Sample], kept: list[int], pairs: np.ndarray, *, val: float, test: float
) -> tuple[list[Sample], list[Dropped]]:
    """Give every kept sample the split of its group; where a source fixes several, the first of test, val, train."""
    group = components(len(samples), pairs)
    key: dict[int, str] = {}
    fixed: dict[int, Split] = {}
    for index in kept:
        sample, name = samples[index], group[index]
        key[name] = min(key.get(name, sample.key), sample.key)
        if sample.split is not None and _RANK[sample.split] < _RANK[fixed.get(name)]:
            fixed[name] = sample.split
    result: list[Sample] = []
    dropped: list[Dropped] = []
    for index in kept:
        sample, name = samples[index], group[index]
        free = split_of(key[name], val=val, test=test)
        split: Literal["train", "val", "test"] = fixed.get(name, free)
        if split == "train":  # a source that fixes train and test leaves val to be taken from train
            split = "val" if val and free != "train" else "train"
        if sample.split == "train" and fixed.get(name) != "train":
            dropped.append(
                Dropped(sample.name, f"in one group of near duplicates with a {fixed[name]} picture")
            )
        else:
            result.append(replace(sample, split=split))
    return result, dropped
