"""Prepared samples to shards, manifest and index: the same input, the same bytes; nothing is half written.

`train-000000.tar`, … hold KEY.png (or .jpg), KEY.txt and, with classes, KEY.cls; KEY begins the content hash.
Everything is made in a folder beside the target and renamed into place when it is complete. A shard is a task
of its own: which samples it holds is known beforehand, so any process can write it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmsd.data.builders.catalog import Catalog
from lmsd.data.builders.folders import MANIFEST
from lmsd.data.builders.plan import Plan
from lmsd.data.builders.source import Dropped
from lmsd.data.notes import Notes
from lmsd.data.shards import SPLITS

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


class Written(NamedTuple):
    """A finished shard: its file, sha256 and length."""

    path: Path
    sha256: str
    size: int


def write_tar(
    file: BinaryIO, samples: Iterable[dict[str, str | bytes]], *, tell: Callable[[], None] = lambda: None
) -> None:
    """Write a shard with webdataset's own writer, nothing in the tar depending on who or when."""
    from webdataset.writer import TarWriter

    with TarWriter(file, mtime=0, user="lmsd", group="lmsd") as writer:
        for sample in samples:
            writer.write(sample)
            tell()


def write_split(
    folder: Path,
    name: str,
    samples: Iterator[dict[str, str | bytes]],
    *,
    size: int,
    tell: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write one split's samples, `size` of them in a shard; the paths. tell: called after each sample."""
    shards: list[Path] = []
    for first in samples:
        shards.append(folder / f"{name}-{len(shards):06d}.tar")
        with shards[-1].open("wb") as file:
            write_tar(file, chain([first], islice(samples, size - 1)), tell=tell)
    return shards


def write_manifest(
    plan: Plan,
    catalog: Catalog,
    notes: Notes,
    *,
    shards: list[Written],
    listed: list[Dropped],
    folder: Path,
) -> None:
    """Write manifest.json: counts, sha256 of shards, what was dropped and why, source, options, versions.

    listed: what the source itself left out.
    """
    kinds: Counter[str] = Counter()
    firsts: dict[str, str] = {}
    for entry in chain(listed, catalog.dropped()):
        kind = _kind(entry.reason)
        kinds[kind] += 1
        firsts.setdefault(kind, entry.name)
    manifest = {
        "version": 1,
        "source": plan.source,
        "image_size": plan.recipe.image_size,
        "channels": plan.recipe.channels,
        "classes": len(plan.classes),
        "class_names": plan.classes,
        "captions": catalog.captioned(),
        "counts": {split: sum(n for own, _, n in catalog.runs() if own == split) for split in SPLITS},
        "shards": {shard.path.name: {"sha256": shard.sha256, "bytes": shard.size} for shard in shards},
        "dropped": {
            "count": kinds.total(),
            "reasons": dict(sorted(kinds.items())),
            "first": {kind: firsts[kind] for kind in sorted(kinds)},
            "pictures": [],
        },
        "notes": [{"what": kind, "count": count, "first": name} for kind, count, name in notes],
        "options": plan.options,
        "versions": plan.versions,
    }
    head, mark, tail = _json(manifest).partition('"pictures": []')
    with (folder / MANIFEST).open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(head + mark[:-1])
        for number, entry in enumerate(chain(listed, catalog.dropped())):
            file.write("," * bool(number) + f"\n{_json(asdict(entry))}".replace("\n", "\n   "))
        file.write(f"\n  ]{tail}\n" if kinds else f"]{tail}\n")


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _kind(reason: str) -> str:
    """A reason without its details, to count by."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.match(reason)), reason)
