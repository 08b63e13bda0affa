"""Prepared samples to shards, manifest and index: the same input gives the same bytes, and nothing is half written.

`train-000000.tar`, … hold KEY.png (or .jpg), KEY.txt and, with classes, KEY.cls; KEY begins the content hash.
Everything is made in a folder beside the target and renamed into place when it is complete.
"""

import hashlib
import json
import os
import platform
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy
import PIL

import lmsd
from lmsd.data.build.options import BuildOptions
from lmsd.data.build.prepare import Prepared, Progress, Sample
from lmsd.data.build.source import SPLITS, Source
from lmsd.errors import UserError

MANIFEST = "manifest.json"
KEY_DIGITS = 20
"""Hex digits of the content hash that make a key: 80 bits, no two alike in any data set that fits a disk."""


@contextmanager
def fresh_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to fill, put in its place when the block ends well and removed when it does not.

    UserError when `out` holds something, unless it is a data set (has a manifest) and `overwrite` is set.
    """
    out = out.absolute()
    taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if taken and not overwrite:
        raise UserError(
            f"{out} is already there; choose another folder, or pass overwrite=true to replace it"
        )
    if taken and not (out / MANIFEST).is_file():
        raise UserError(f"{out} is no data set of ours (it has no {MANIFEST}), so it is not overwritten")
    work = out.with_name(f".{out.name}.building-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
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
    progress: Progress | None = None,
) -> list[Path]:
    """Write every split's shards of `options.shard_size` samples into `folder` and return their paths in order."""
    from webdataset.writer import ShardWriter

    done, shards = 0, list[Path]()
    for split in SPLITS:
        members = [sample for sample in prepared.samples if sample.split == split]
        if not members:
            continue
        opened: list[BinaryIO] = []

        def open_shard(name: str, opened: list[BinaryIO] = opened) -> BinaryIO:
            shards.append(Path(name))
            opened.append(open(name, "wb"))  # closed by `post`, as webdataset leaves a foreign stream open
            return opened[-1]

        pattern = f"{str(folder).replace('%', '%%')}/{split}-%06d.tar"
        writer = ShardWriter(
            pattern,
            maxcount=options.shard_size,
            verbose=0,
            opener=open_shard,
            post=lambda _name, opened=opened: opened[-1].close(),
            mtime=0.0,
            user="lmsd",
            group="lmsd",
        )
        for sample in members:
            writer.write(_members(sample, options, spool))
            done += 1
            if progress is not None and (done % 256 == 0 or done == len(prepared.samples)):
                progress(done, len(prepared.samples), "shards")
        writer.close()
        opened[-1].close()
    return shards


def _members(sample: Sample, options: BuildOptions, spool: BinaryIO) -> dict[str, str | bytes]:
    """One sample as webdataset writes it."""
    spool.seek(sample.offset)
    members: dict[str, str | bytes] = {
        "__key__": sample.key[:KEY_DIGITS],
        options.image_format: spool.read(sample.length),
        "txt": sample.caption.encode(),
    }
    if sample.label is not None:
        members["cls"] = str(sample.label).encode()
    return members


def write_manifest(
    source: Source, options: BuildOptions, prepared: Prepared, *, shards: list[Path], folder: Path
) -> Path:
    """Write manifest.json: counts, shards with sha256, what was dropped and why, source, options, versions."""
    counts = Counter(sample.split for sample in prepared.samples)
    chosen = asdict(options)
    for name in (
        "path",
        "captions",
    ):  # where the source lay is not what it is: the same data gives the same bytes
        chosen[name] = None if chosen[name] is None else Path(chosen[name]).name
    chosen.pop("overwrite")
    manifest = {
        "version": 1,
        "source": {"name": source.name, **source.details},
        "image_size": options.image_size or source.image_size,
        "channels": options.channels or source.channels,
        "classes": len(source.classes) if source.classes else 0,
        "class_names": source.classes or [],
        "counts": {split: counts[split] for split in SPLITS},
        "shards": {shard.name: {"sha256": _sha256(shard), "bytes": shard.stat().st_size} for shard in shards},
        "dropped": {
            "count": len(prepared.dropped),
            "reasons": dict(sorted(Counter(_kind(entry.reason) for entry in prepared.dropped).items())),
            "names": [asdict(entry) for entry in prepared.dropped],
        },
        "options": chosen,
        "similarity": source.similarity if options.similarity is None else options.similarity,
        "versions": {
            "lmsd": lmsd.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
            "python": platform.python_version(),
        },
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


def _kind(reason: str) -> str:
    """A reason without the particulars: what duplicates and damages are counted by."""
    for kind in ("exact duplicate", "near duplicate", "in one group of near duplicates", "damaged"):
        if reason.startswith(kind):
            return kind
    return reason


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
