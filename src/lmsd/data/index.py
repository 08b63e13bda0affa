"""The index of a list of shards: made once, kept beside each shard, checked at every start.

A shard's index is stored beside it as `NAME.tar.idx.npz`, or in the user's cache folder (`LMSD_CACHE`, or
~/.cache/lmsd) if that folder is read-only. It is valid for the size and modification time of the shard that
it was made from; a shard with the same size and another time is checked by its sha256, and an index of an
older version is made again. The hash of an index is the sha256 of its shards' sha256s: it identifies the data
and their order, wherever the files are stored.
"""

import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lmsd.data.members import SUFFIX, Header, ShardIndex, is_older, load, load_header
from lmsd.data.names import printable
from lmsd.data.notes import Note, Notes
from lmsd.data.scan import scan
from lmsd.data.text import EMPTY
from lmsd.data.urls import name_of
from lmsd.errors import UserError, redact
from lmsd.files import cache_folder, sha256_of

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

_KEPT = 64  # shard indexes held in memory
Integers = NDArray[np.int64]
T = TypeVar("T")

log = logging.getLogger(__name__)


class Index:
    """The indexes of a list of shards, each read from disk when it is needed.

    shards: names in order; sizes: samples of each, int64; hash: identifies the data; captions: where every
    sample has a caption ("txt", JSON fields); labels: whether every sample has a class. Raises UserError
    if some shards have captions or classes and others have none.
    """

    def __init__(self, shards: Sequence[str], files: Sequence[Path]) -> None:
        self.shards = tuple(shards)
        self.headers = tuple(load(file).header if (h := load_header(file)) is None else h for file in files)
        self.sizes: Integers = np.asarray([header.samples for header in self.headers], np.int64)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self.captions = self._captions()
        self.labels = self._labels()
        self._files = tuple(files)
        self._loaded: OrderedDict[int, ShardIndex] = OrderedDict()

    def __len__(self) -> int:
        """The number of samples."""
        return int(self.sizes.sum())

    def numbers(self, shard: Integers, sample: Integers) -> Integers:
        """The numbers of samples among all of the index, [n]."""
        return self._starts[shard] + sample

    def places(self, numbers: Integers) -> tuple[Integers, Integers]:
        """The reverse of `numbers`: shard and sample, [n] each."""
        shard = np.searchsorted(self._starts, numbers, side="right") - 1
        return shard, numbers - self._starts[shard]

    @property
    def hash(self) -> str:
        """sha256 of the shards' sha256s, in order."""
        return hashlib.sha256("".join(header.sha256 for header in self.headers).encode()).hexdigest()

    def summary(self) -> list[list[Any]]:
        """File name, samples and the beginning of the sha256 of every shard, to see what has changed."""
        return [
            [name_of(name), header.samples, header.sha256[:16]]
            for name, header in zip(self.shards, self.headers, strict=True)
        ]

    @property
    def changed(self) -> int:
        """Samples whose pixels or captions differ from those before version 2 of the index."""
        return sum(header.changed for header in self.headers)

    def notes(self) -> list[Note]:
        """What the user should know of the samples."""
        found = Notes()
        for header, name in zip(self.headers, self.shards, strict=True):
            for kind, count, key in header.notes:
                found.add(kind, f"{printable(name_of(name))}: {key}", count)
        return list(found)

    def shard(self, number: int) -> ShardIndex:
        """The index of one shard."""
        if number not in self._loaded:
            self._loaded[number] = load(self._files[number])
            while len(self._loaded) > _KEPT:
                self._loaded.popitem(last=False)
        return self._loaded[number]

    def name(self, shard: int, sample: int) -> str:
        """A sample's name, for messages."""
        return f"sample {self.shard(shard).key(sample)!r} of the shard {redact(self.shards[shard])}"

    def _captions(self) -> frozenset[str]:
        if not any(header.captions for header in self.headers):
            return frozenset()
        kinds = [_places_of_captions(header) for header in self.headers if header.samples]
        common = set.intersection(*kinds)
        if not common:
            pairs = zip(self.headers, self.shards, strict=True)
            missing = next((n for h, n in pairs if h.samples and not _places_of_captions(h)), None)
            where = f"{missing} has none" if missing else self._kinds()
            raise UserError(f"some shards have captions, but {where}: build the shards again, all alike")
        return frozenset(common)

    def _kinds(self) -> str:
        """Two shards that have their captions in different places."""
        pairs = [(h, name_of(n)) for h, n in zip(self.headers, self.shards, strict=True) if h.samples]
        (one, first), (other, second) = next(
            (a, b) for a in pairs for b in pairs if not {*a[0].captions} & {*b[0].captions}
        )
        places = (f"{name} in {', '.join(h.captions)}" for h, name in ((one, first), (other, second)))
        return f"in different places ({'; '.join(places)})"

    def _labels(self) -> bool:
        kinds = [header.labels for header in self.headers if header.samples]
        if any(kinds) and not all(kinds) and not self.captions:
            raise UserError(
                "some shards have classes (KEY.cls) and others none: build the shards again, all alike"
            )
        return bool(kinds) and all(kinds)


def _places_of_captions(header: Header) -> set[str]:
    """Where a shard's captions can be read, also if all of them are empty."""
    if any(kind == EMPTY and count == header.samples for kind, count, _ in header.notes):
        return {"txt" if "txt" in header.suffixes else "caption"}
    return set(header.captions)


def difference(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    """The difference of two summaries of an index, in words."""
    old, new = ({str(row[0]): tuple(row[1:]) for row in rows} for rows in (before, now))
    kinds = {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "of other content": {name for name in old.keys() & new.keys() if old[name] != new[name]},
    }
    parts = [
        f"{len(names)} {kind} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    then, today = (
        f"{sum(int(row[1]) for row in rows):,} samples in {len(rows)} shards" for rows in (before, now)
    )
    return f"{', '.join(parts) or 'another order'}; {then} then, {today} now"


def build_index(
    shard_paths: Sequence[str | os.PathLike[str]],
    *,
    refresh: bool = False,
    decoding: bool = False,
    progress: "Progress | None" = None,
) -> Index:
    """Read and check every local shard without a valid index, write its index, and open all indexes.

    refresh: read every shard again; decoding: and decode every image. Raises UserError naming the shard, the
    member and the remedy.
    """
    paths = [Path(os.path.abspath(path)) for path in shard_paths]
    files = (ensure(path, refresh=refresh, decoding=decoding) for path in paths)
    return Index([str(path) for path in paths], list(counted(files, len(paths), progress)))


def ensure(path: Path, *, refresh: bool = False, decoding: bool = False) -> Path:
    """The file of the valid index of one local shard, which is made if there is none."""
    if not path.is_file():
        raise UserError(f"the shard {path} is missing: check its name, or fetch the file again")
    found = None if refresh or decoding else _valid(path)
    if found is not None:
        return found
    older = any(is_older(file) for file in _places(path) if file.is_file())
    file = store(scan(path, decoding=decoding), path)
    if older:
        say_renewed(file.parent)
    return file


@cache
def say_renewed(folder: Path) -> None:
    """Say once that indexes of an older version are made again."""
    log.warning("the indexes of these shards are of an older version and are made again, once, in %s", folder)


def store(index: ShardIndex, path: Path) -> Path:
    """Write a shard's index beside it, or into the cache folder."""
    beside, cached = _places(path)
    # root may write anywhere; a folder without any write permission is meant to stay unchanged
    if path.parent.stat().st_mode & 0o222 and os.access(path.parent, os.W_OK):
        try:
            index.save(beside)
            return beside
        except OSError:
            pass
    cached.parent.mkdir(parents=True, exist_ok=True)
    index.save(cached)
    return cached


def _places(path: Path) -> tuple[Path, Path]:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    return path.with_name(path.name + SUFFIX), cache_folder() / "index" / f"{digest}{SUFFIX}"


def _valid(path: Path) -> Path | None:
    """The index that is valid for the shard as it is now, if there is one."""
    status = path.stat()
    headers = {file: load_header(file) for file in _places(path) if file.is_file()}
    known = {file: header for file, header in headers.items() if header and header.size == status.st_size}
    for file, header in known.items():
        if header.mtime_ns == status.st_mtime_ns:
            return file
    digest = sha256_of(path) if known else ""
    for file, header in known.items():
        if header.sha256 == digest:  # the same bytes, written at another time
            index = load(file)
            return store(replace(index, header=replace(index.header, mtime_ns=status.st_mtime_ns)), path)
    return None


def counted(items: Iterable[T], total: int, progress: "Progress | None") -> Iterator[T]:
    """The items, while progress learns how many of the shards are indexed."""
    for done, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(done, total, "indexing shards")
