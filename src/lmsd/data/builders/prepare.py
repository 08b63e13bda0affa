"""The article's preparation: each picture decoded, checked, cropped, resized, denoised, deduplicated, split.

A picture's content hash h = sha256(shape, pixels) names it, and pictures with one h are one picture. Of near
duplicates (`duplicates`) one is kept: one that the source fixes as test, else as val, else the first of
the source. Those with another caption are kept too where the source or the options say so, in one split. Kin,
which are near duplicates under a looser bound and in any turn, share a split. A group of kin goes by its
smallest h, hashed once more and read as u in [0, 1):

    u < test → test,   u < test + val → val,   else train

so the split of a picture depends on its group's content alone: no other file's coming or going moves it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmsd.data.builders.duplicates import signature
from lmsd.data.builders.near import Near
from lmsd.data.builders.options import BuildOptions
from lmsd.data.builders.pictures import encode_picture, fit_picture, read_picture
from lmsd.data.builders.source import Dropped, NearDuplicates, Pixels, Raw, Source
from lmsd.data.builders.where import Where
from lmsd.data.decode import BadImage
from lmsd.data.notes import Note, Notes
from lmsd.data.shards import Split
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress


_KEPT = "duplicates with another caption, kept in one split (near_duplicates=drop leaves them out)"
OTHER_CAPTION, SAME_PIXELS = f"near {_KEPT}", f"exact {_KEPT}"

_RANK: dict[Split | None, int] = {"test": 0, "val": 1, "train": 2, None: 3}


@dataclass(frozen=True)
class Sample:
    """A prepared picture: its content hash, its caption and class, and where the spool holds its bytes.

    key: of its own; the content hash, but for a copy that is kept for its other caption.
    """

    name: str
    content: str
    key: str
    caption: str | None
    label: int | None
    split: Split | None
    offset: int
    length: int
    repeats: int = 1


@dataclass(frozen=True)
class Prepared:
    """What is written, in the order of content hashes, and what is not."""

    samples: list[Sample]
    dropped: list[Dropped]
    notes: list[Note]


def content_hash(pixels: Pixels) -> str:
    """sha256 of the shape and the pixels, as 64 hex digits."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def split_of(key: str, *, val: float, test: float) -> Split:
    """The split of a content hash: u in [0, 1) against the parts.

    u is a hash of the key, since the smallest key of a group is a small number.
    """
    u = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
    if u < test:
        return "test"
    return "val" if u < test + val else "train"


def prepare_source(
    source: Source, options: BuildOptions, *, spool: BinaryIO, progress: "Progress | None" = None
) -> Prepared:
    """Prepare every picture of `source`, encoded bytes going to `spool`, and give each kept one its split."""
    notes = Notes(source.notes)
    way = options.pictures.near_duplicates or source.defaults.near_duplicates
    samples, signatures, dropped = _read(source, options, way, notes, spool=spool, progress=progress)
    group, gone = _near_duplicates(source, options, way, samples, signatures, notes=notes, progress=progress)
    dropped += [Dropped(samples[i].name, _twin("near", samples[i], samples[gone[i]])) for i in sorted(gone)]
    kept = [index for index in range(len(samples)) if index not in gone]
    for sample in (samples[i] for i in kept if samples[i].key != samples[i].content):
        notes.add(SAME_PIXELS, sample.name)
    split, mixed = _split(
        samples,
        kept,
        group,
        val=source.defaults.val if options.pictures.val is None else options.pictures.val,
        test=source.defaults.test if options.pictures.test is None else options.pictures.test,
    )
    return Prepared(
        sorted(split, key=lambda sample: sample.key), [*source.dropped, *dropped, *mixed], list(notes)
    )


def _read(
    source: Source,
    options: BuildOptions,
    way: NearDuplicates,
    notes: Notes,
    *,
    spool: BinaryIO,
    progress: "Progress | None",
) -> tuple[list[Sample], list[NDArray[np.float32]], list[Dropped]]:
    """Decode, check, fit, hash and encode every picture; exact duplicates are dropped here."""
    samples: list[Sample] = []
    signatures: list[NDArray[np.float32]] = []
    dropped: list[Dropped] = []
    where = Where(options.pictures.where, source.fields) if options.pictures.where else None
    copies: dict[str, dict[str, int]] = {}  # content hash → words → the sample that has both
    for done, raw in enumerate(source.samples, 1):
        if progress is not None and (done % 64 == 0 or done == source.total):
            progress(done, source.total, "pictures")
        try:
            pixels, told = _pixels(raw, source, options, where)
        except BadImage as reason:
            dropped.append(Dropped(raw.name, str(reason)))
            continue
        for note in told:
            notes.add(note, raw.name)
        content = key = content_hash(pixels)
        known, said = copies.setdefault(content, {}), "" if way == "drop" else _words(raw)
        if said in known:
            samples[known[said]], twin = _one_of(samples[known[said]], raw)
            dropped.append(twin)
            continue
        if known:
            key = hashlib.sha256(f"{content} {said}".encode()).hexdigest()
        known[said] = len(samples)
        data = encode_picture(pixels, options.image_format)
        sample = Sample(
            raw.name, content, key, raw.caption, raw.label, raw.split, spool.tell(), len(data), raw.repeats
        )
        samples.append(sample)
        signatures.append(signature(pixels))
        spool.write(data)
    if not samples:
        raise UserError(f"no picture of {source.name} can be used; {dropped[0].name}: {dropped[0].reason}")
    return samples, signatures, dropped


def _pixels(
    raw: Raw, source: Source, options: BuildOptions, where: Where | None
) -> tuple[Pixels, tuple[str, ...]]:
    """The fitted pixels of one picture, and what is worth telling of it; BadImage when it is not taken."""
    channels = options.pictures.channels or source.defaults.channels
    picture, notes = raw.picture, tuple[str, ...]()
    if not isinstance(picture, np.ndarray):
        picture, notes = read_picture(picture, channels=channels)
    if where is not None:
        facts = {"label": raw.label, **raw.fields, "height": picture.shape[0], "width": picture.shape[1]}
        where.check({**facts, "caption": raw.caption or ""})
    return fit_picture(
        picture,
        options.pictures.image_size or source.defaults.image_size,
        channels=channels,
        denoise=options.pictures.denoise,
    ), notes


def _one_of(old: Sample, raw: Raw) -> tuple[Sample, Dropped]:
    """Of two equal pictures, the one whose split ranks first (test, val, train), and the other, dropped."""
    if _RANK[raw.split] < _RANK[old.split]:
        new = replace(old, name=raw.name, caption=raw.caption, label=raw.label, split=raw.split)
        return new, Dropped(old.name, _twin("exact", old, raw))
    return old, Dropped(raw.name, _twin("exact", raw, old))


def _words(sample: Sample | Raw) -> str:
    """What a picture is labeled with: its caption, or else its class."""
    return sample.caption or str(sample.label)


def _twin(kind: str, gone: Sample | Raw, kept: Sample | Raw) -> str:
    """The reason why one of two pictures is dropped."""
    note = "" if _words(gone) == _words(kept) else " with another caption"
    return f"{kind} duplicate of {kept.name}{note}"


def _near_duplicates(
    source: Source,
    options: BuildOptions,
    way: NearDuplicates,
    samples: list[Sample],
    signatures: list[NDArray[np.float32]],
    *,
    notes: Notes,
    progress: "Progress | None",
) -> tuple[list[int], dict[int, int]]:
    """The group of related samples of each, and which are dropped as near duplicates of which."""
    first: dict[str, int] = {}
    same = [first.setdefault(sample.content, number) for number, sample in enumerate(samples)]
    if way == "keep":
        return same, {}
    similarity = (
        source.defaults.similarity if options.pictures.similarity is None else options.pictures.similarity
    )
    stacked, total = np.stack(signatures), len(signatures)

    def tell(stage: str) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(done, total, stage)

    near = Near(stacked, similarity, progress=tell("near duplicates"))
    groups, gone = near.groups(), dict[int, int]()
    if way != "group":
        order = sorted(range(total), key=lambda i: (_RANK[samples[i].split], i))
        gone = alike = near.first_of(order, [""] * total, groups)
        if way == "same_caption":
            gone = near.first_of(order, list(map(_words, samples)), groups)
            for index in sorted(alike.keys() - gone.keys()):
                if samples[index].key == samples[index].content:
                    notes.add(OTHER_CAPTION, samples[index].name)
    if source.defaults.kinship is not None:
        bound = min(source.defaults.kinship, similarity)
        groups = Near(stacked, bound, turned=True, progress=tell("kin")).groups()
    return [groups[number] for number in same], gone  # flat pictures are near none, but for their copies


def _split(
    samples: list[Sample], kept: list[int], group: list[int], *, val: float, test: float
) -> tuple[list[Sample], list[Dropped]]:
    """Give every kept sample the split of its group; those that the source puts elsewhere are dropped."""
    key: dict[int, str] = {}
    fixed: dict[int, Split] = {}
    for index in kept:
        sample, name = samples[index], group[index]
        key[name] = min(key.get(name, sample.content), sample.content)
        if sample.split is not None and _RANK[sample.split] < _RANK[fixed.get(name)]:
            fixed[name] = sample.split
    result: list[Sample] = []
    dropped: list[Dropped] = []
    for index in kept:
        sample, name = samples[index], group[index]
        first = fixed.get(name)
        if sample.split is not None and sample.split != first:
            dropped.append(Dropped(sample.name, f"kin of a {first} picture"))
        elif first in ("test", "val"):
            result.append(replace(sample, split=first))
        else:  # a fixed train still gives up its part to val
            split = split_of(key[name], val=val, test=0.0 if first == "train" else test)
            result.append(replace(sample, split=split))
    return result, dropped
