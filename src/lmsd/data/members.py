"""The index of one shard: where every member is stored, and what is known of every sample.

    members   int64 [M,4]   suffix number, offset, length, crc32 of each member, in the order of the file
    first     int64 [n+1]   sample i has the members first[i] … first[i+1] − 1
    picture   int32 [n,3]   height, width, and which of `PLAIN`, `OLD_PLAIN`, `CHANGED`, `CLEAN` apply
    labels    int64 [n]     the classes of KEY.cls, or empty
    keys, key_ends          the UTF-8 bytes of the keys, concatenated, and where each ends
    header    JSON          version, the shard's size, mtime and sha256, suffixes, JSON fields

It is stored as `NAME.tar.idx.npz`, arrays of numbers and bytes only, and read without pickle.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmsd.data.decode import SUFFIXES
from lmsd.errors import UserError
from lmsd.files import replacing

SUFFIX = ".idx.npz"
"""What the name of an index adds to that of its shard."""

VERSION = 2
PLAIN, OLD_PLAIN, CHANGED, CLEAN = 1, 2, 4, 8
"""The fast path may decode it; it did so before version 2; pixels or caption differ from those before version
2; KEY.txt is the caption as it stands."""
COLUMNS = 9  # of `ShardIndex.table`

# what numpy raises for a file that is not an intact archive of plain arrays
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Header:
    """What an index says of its shard.

    suffixes: names of the suffix numbers; captions: where every sample's caption can be read, "txt" and the
    fields of JSON that are text in every sample; labels: whether every sample has a class; changed: samples
    that are read differently than before version 2; notes: what the user should know, with a count and one
    key.
    """

    samples: int
    labels: bool
    size: int
    mtime_ns: int
    sha256: str
    suffixes: tuple[str, ...]
    captions: tuple[str, ...]
    changed: int = 0
    notes: tuple[tuple[str, int, str], ...] = ()
    version: int = VERSION


@dataclass(frozen=True)
class ShardIndex:
    """The index of one shard; the fields are in the module's docstring."""

    header: Header
    members: Integers
    first: Integers
    picture: NDArray[np.int32]
    labels: Integers
    key_bytes: NDArray[np.uint8]
    key_ends: Integers

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, sample: int) -> str:
        """The sample's key."""
        start = int(self.key_ends[sample - 1]) if sample else 0
        return self.key_bytes[start : int(self.key_ends[sample])].tobytes().decode()

    def column(self, *suffixes: str) -> Integers:
        """Offset, length and crc32 of each sample's member with one of the suffixes, [n,3]; −1 for none."""
        numbers = [i for i, name in enumerate(self.header.suffixes) if name in suffixes]
        rows = np.flatnonzero(np.isin(self.members[:, 0], numbers))
        found = np.full((len(self), 3), -1, np.int64)
        found[np.searchsorted(self.first, rows, side="right") - 1] = self.members[rows, 1:]
        return found

    def table(self, caption: str | None) -> Integers:
        """Everything that reading needs, [n,9]: start, end, crc32 of image and of caption; height, width,
        flags.

        caption: the suffix "txt" or "json", or None for no captions (zeros).
        """
        image = self.column(*SUFFIXES)
        places = np.stack([image, self.column(caption) if caption else np.zeros_like(image)])
        places[..., 1] += places[..., 0]
        return np.hstack([*places, self.picture])

    def save(self, path: Path) -> None:
        """Write the index, completely or not at all."""
        header = json.dumps(vars(self.header), sort_keys=True).encode()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                header=np.frombuffer(header, np.uint8),
                members=self.members,
                first=self.first,
                picture=self.picture,
                labels=self.labels,
                key_bytes=self.key_bytes,
                key_ends=self.key_ends,
            )


def load_header(path: Path) -> Header | None:
    """The header alone, or None if the file is no index of this version."""
    fields = _stored(path)
    if fields.get("version") != VERSION:
        return None
    try:
        fields["notes"] = [(str(kind), int(count), str(key)) for kind, count, key in fields["notes"]]
        return Header(**fields | {name: tuple(fields[name]) for name in ("suffixes", "captions", "notes")})
    except _UNREADABLE:
        return None


def is_older(path: Path) -> bool:
    """Whether a file is an index of a version before this one."""
    return _stored(path).get("version") in range(VERSION)


def _stored(path: Path) -> dict[str, Any]:
    """The fields of the header; none if the file is no index."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(json.loads(file["header"].tobytes()))
    except _UNREADABLE:
        return {}


def load(path: Path) -> ShardIndex:
    """The whole index. Raises UserError if the file is no index, or its arrays contradict each other."""
    header = load_header(path)
    if header is None:
        raise UserError(
            f"{path} is no index of the current version: delete it and run `lmsd data index` again"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            index = ShardIndex(header, **{name: file[name] for name in file.files if name != "header"})
        _check(index)
    except _UNREADABLE as error:
        raise UserError(
            f"the index {path} is damaged ({error}): delete it and run `lmsd data index` again"
        ) from error
    return index


def _check(index: ShardIndex) -> None:
    count, members, first = len(index), index.members, index.first
    if (
        members.shape != (len(members), 4)
        or index.picture.shape != (count, 3)
        or len(index.labels) != count * index.header.labels
        or not count == len(index.key_ends) == index.header.samples
    ):
        raise ValueError("counts that differ")
    if (members[:, 1:3] < 0).any() or (members[:, 1] + members[:, 2] > index.header.size).any():
        raise ValueError("members outside the shard")
    if first[0] != 0 or first[-1] != len(members) or (np.diff(first) < 1).any():
        raise ValueError("samples without members")
