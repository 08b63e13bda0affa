"""Prepared samples to shards, manifest and index: the same input, the same bytes; nothing is half written.

`train-000000.tar`, … hold KEY.png (or .jpg), KEY.txt and, with classes, KEY.cls; KEY begins the content hash.
Everything is made in a folder beside the target and renamed into place when it is complete.
"""

import json
import os
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy
import PIL

import lmsd
from lmsd.data.builders.options import ONLY_FOR, BuildOptions
from lmsd.data.builders.prepare import Prepared, Sample
from lmsd.data.builders.source import Source
from lmsd.data.names import printable
from lmsd.data.shards import SPLITS
from lmsd.errors import UserError
from lmsd.files import sha256_of
from lmsd.flat import flat

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

MANIFEST = "manifest.json"
KEY_DIGITS = 20
"""Hex digits of the content hash that make a key: 80 bits, no two alike in any data set that fits a disk."""

_KINDS = {
    **{
        kind: re.compile(kind)
        for kind in (
            "kin of",
            "no caption",
            "not an image by its name",
            "a broken link",
            "a second caption",
            "a caption file that is not read",
        )
    },
    "exact duplicate with another caption": re.compile("exact duplicate .* with another caption"),
    "exact duplicate": re.compile("exact duplicate"),
    "near duplicate with another caption": re.compile("near duplicate .* with another caption"),
    "near duplicate": re.compile("near duplicate"),
    "damaged": re.compile("it cannot be (decoded|read)|its header is broken|it is not an image"),
    "a caption that is not UTF-8": re.compile("its caption .* is not UTF-8"),
    "a caption that cannot be used": re.compile("its caption .* cannot be "),
    "a line of the captions without an image": re.compile(r".* line \d+ names it"),
    "values without a known white": re.compile("its values .* have no known white"),
    "where= does not hold": re.compile("where=.* does not hold"),
    "too large a picture": re.compile("it(s .* (pixels|bytes) are| has) more"),
}
"""What reasons begin with, by the words that they are counted under."""


@contextmanager
def fresh_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to fill: moved into place when the block succeeds, removed when it fails.

    UserError when `out` holds something, unless it is a data set (has a manifest) and `overwrite` is set.
    """
    out = out.absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if not overwrite:
            raise UserError(
                f"{out} is already there; choose another folder, or replace it with overwrite=true"
            )
        if not (out / MANIFEST).is_file():
            raise UserError(
                f"{out} has no {MANIFEST}, so it is not a data set of ours and is not overwritten"
            )
    work = out.with_name(f".{out.name}.building-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}; choose another out=") from error
    try:
        yield work
        _put(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, out: Path) -> None:
    """Rename `work` to `out`; an older data set steps aside first and is removed last."""
    if not out.exists():
        work.rename(out)
        return
    old = work.with_name(f"{work.name}.old")
    out.rename(old)
    try:
        work.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)


def write_shards(
    prepared: Prepared,
    options: BuildOptions,
    folder: Path,
    *,
    spool: BinaryIO,
    progress: "Progress | None" = None,
) -> list[Path]:
    """Write every split's shards, `options.shard_size` samples each, into `folder`; their paths in order."""
    total = len(prepared.samples)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if progress is not None and (done % 64 == 0 or done == total):
            progress(done, total, "shards")

    shards: list[Path] = []
    for split in SPLITS:
        members = [sample for sample in prepared.samples if sample.split == split]
        for repeats in sorted({sample.repeats for sample in members} if split == "train" else {1}):
            chosen = [sample for sample in members if split != "train" or sample.repeats == repeats]
            encoded = (_members(sample, options, spool) for sample in chosen)
            if chosen:
                name = split if repeats == 1 else f"{split}-repeat{repeats}"
                shards += write_split(folder, name, encoded, size=options.shard_size, tell=tell)
    return shards


def write_split(
    folder: Path,
    name: str,
    samples: Iterator[dict[str, str | bytes]],
    *,
    size: int,
    tell: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write one split's samples with webdataset's own writer, nothing in the tar depending on who or when."""
    from webdataset.writer import ShardWriter

    opened: list[BinaryIO] = []

    def open_shard(name: str) -> BinaryIO:
        opened.append(Path(name).open("wb"))  # noqa: SIM115  # closed below
        return opened[-1]

    pattern = f"{str(folder).replace('%', '%%')}/{name}-%06d.tar"
    fixed = {"mtime": 0, "user": "lmsd", "group": "lmsd"}
    writer = ShardWriter(pattern, maxcount=size, maxsize=1e18, verbose=0, opener=open_shard, **fixed)
    try:
        for sample in samples:
            writer.write(sample)
            tell()
        writer.close()
    finally:
        for stream in opened:  # webdataset leaves a stream that it was given open
            stream.close()
    return [Path(stream.name) for stream in opened]


def _members(sample: Sample, options: BuildOptions, spool: BinaryIO) -> dict[str, str | bytes]:
    """One sample as webdataset writes it."""
    spool.seek(sample.offset)
    members: dict[str, str | bytes] = {
        "__key__": sample.key[:KEY_DIGITS],
        options.image_format: spool.read(sample.length),
    }
    if sample.caption is not None:
        members["txt"] = sample.caption.encode()
    if sample.label is not None:
        members["cls"] = str(sample.label).encode()
    return members


def write_manifest(
    source: Source, options: BuildOptions, prepared: Prepared, *, shards: list[Path], folder: Path
) -> None:
    """Write manifest.json: counts, sha256 of shards, what was dropped and why, source, options, versions."""
    counts = Counter(sample.split for sample in prepared.samples)
    kinds = Counter(_kind(entry.reason) for entry in prepared.dropped)
    firsts = {_kind(entry.reason): entry.name for entry in reversed(prepared.dropped)}
    manifest = {
        "version": 1,
        "source": {"name": source.name, **source.details},
        "image_size": options.pictures.image_size or source.defaults.image_size,
        "channels": options.pictures.channels or source.defaults.channels,
        "classes": len(source.classes or ()),
        "class_names": source.classes or [],
        "captions": any(sample.caption is not None for sample in prepared.samples),
        "counts": {split: counts[split] for split in SPLITS},
        "shards": {
            shard.name: {"sha256": sha256_of(shard), "bytes": shard.stat().st_size} for shard in shards
        },
        "dropped": {
            "count": len(prepared.dropped),
            "reasons": dict(sorted(kinds.items())),
            "first": {kind: firsts[kind] for kind in sorted(kinds)},
            "pictures": [asdict(entry) for entry in prepared.dropped],
        },
        "notes": [{"what": kind, "count": count, "first": name} for kind, count, name in prepared.notes],
        "options": _chosen(source, options),
        "versions": {
            "lmsd": lmsd.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def _chosen(source: Source, options: BuildOptions) -> dict[str, object]:
    """The options that the source reads, with its own defaults filled in; paths without their folders."""
    own = {**asdict(source.defaults), "lines": "keep" if source.name == "coco" else "join"}
    read = {
        name: value
        for name, value in flat(options).items()
        if name
        not in ("overwrite", "image_size", "channels", *(["where"] if options.pictures.where is None else []))
        and source.name in ONLY_FOR.get(name, (source.name,))
    }
    return {
        name: printable(value.name) if isinstance(value, Path) else own.get(name) if value is None else value
        for name, value in read.items()
    } | {"kinship": own["kinship"]}


def _kind(reason: str) -> str:
    """A reason without its details, to count by."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(reason)), reason)
