"""The shards of a build, each a task of its own: any process can write any of them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.data.builders.catalog import Catalog, Sample
from lmsd.data.builders.chunks import COUNT, Chunk
from lmsd.data.builders.plan import Plan
from lmsd.data.builders.pool import Pool
from lmsd.data.builders.write import Written, write_tar
from lmsd.data.index import ensure
from lmsd.files import replacing, sha256_of

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

KEY_DIGITS = 20
"""Hex digits of the content hash that make a key: 80 bits, no two alike in any data set that fits a disk."""


def write_shards(
    catalog: Catalog,
    chunks: Iterable[Chunk],
    plan: Plan,
    folder: Path,
    *,
    pool: Pool,
    progress: "Progress | None" = None,
) -> list[Written]:
    """Write every split's shards, `shard_size` samples each, with their indexes into `folder`, in order."""
    folders = {chunk.number: chunk.folder for chunk in chunks}
    tasks, first = [], 0
    for split, repeats, count in catalog.runs():
        name = split if repeats == 1 else f"{split}-repeat{repeats}"
        for number, start in enumerate(range(0, count, plan.rules.shard_size)):
            place = (first + start, first + min(start + plan.rules.shard_size, count))
            tasks.append((folder / f"{name}-{number:06d}.tar", catalog.path, folders, place))
        first += count
    shards: list[Written] = []
    found = pool.run(write_shard, ((*task, plan.recipe.image_format) for task in tasks))
    for task, shard in zip(tasks, found, strict=True):
        shards.append(shard)
        if progress is not None:
            progress(task[-1][1], first, "shards")
    return shards


def write_shard(
    path: Path, catalog: Path, folders: dict[int, Path], places: tuple[int, int], image_format: str
) -> Written:
    """Write a shard of the samples from one place on to another, unless it is there, and its index."""
    if not path.is_file():
        opened = Catalog(catalog, read_only=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            members = (_members(sample, folders, image_format) for sample in opened.chosen(*places))
            write_tar(file, members)
        opened.close()
    ensure(path)
    return Written(path, sha256_of(path), path.stat().st_size)


def _members(sample: Sample, folders: dict[int, Path], image_format: str) -> dict[str, str | bytes]:
    """One sample as webdataset writes it."""
    number = sample.number // COUNT
    with Chunk(folders[number], number).file("images").open("rb", buffering=0) as images:
        data = os.pread(images.fileno(), sample.length, sample.at)
    members: dict[str, str | bytes] = {"__key__": sample.key[:KEY_DIGITS], image_format: data}
    if sample.caption is not None:
        members["txt"] = sample.caption.encode()
    if sample.label is not None:
        members["cls"] = str(sample.label).encode()
    return members
