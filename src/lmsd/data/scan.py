"""One reading of one shard that proves it sound: format, order, names, sizes, images, captions.

The shard is walked by Python's tarfile, which gives the offsets, and read by webdataset's own iteration and
grouping, which gives the samples; the two must agree member by member. tarfile ends quietly at a damaged or
missing header, so the walk must end in the tar format's zero blocks and nothing else: that catches every
truncation and every damaged header. After this, crc32 of each member guards its bytes.
"""

import hashlib
import json
import mmap
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from lmsd.data.decode import SUFFIXES, BadImage, probe
from lmsd.data.members import Header, ShardIndex
from lmsd.errors import UserError

MAX_MEMBER = 64 << 20
MAX_CAPTION = 64 << 10

_BLOCK = 512


class _Member(NamedTuple):
    name: str
    offset: int
    length: int


def scan(path: Path) -> ShardIndex:
    """Read and check a shard; its index. Raises UserError naming the shard, the member and the way out."""
    status = path.stat()
    if status.st_size < 2 * _BLOCK:
        raise UserError(
            f"the shard {path} is empty or cut off ({status.st_size} bytes): fetch or build it again"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        gathered = _Gathered(path)
        for key, suffixes, members in _samples(path, data):
            gathered.add(key, dict(zip(suffixes, members, strict=True)), data)
        return gathered.finish(status, hashlib.sha256(data).hexdigest())


def _samples(path: Path, data: mmap.mmap) -> Iterator[tuple[str, list[str], list[_Member]]]:
    """Keys, suffixes and members as webdataset groups them, each member found again in the walk."""
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

    walk = iter(_walk(path, data))
    data.seek(0)
    files = tar_file_expander([{"url": str(path), "stream": data}])
    try:
        for sample in group_by_keys(files):
            key, suffixes = sample["__key__"], [name for name in sample if not name.startswith("__")]
            members = []
            for suffix in suffixes:
                member = next((m for m in walk if _named(base_plus_ext(m.name)) == (key, suffix)), None)
                if member is None or member.length != len(sample[suffix]):
                    _refuse(path, f"{key}.{suffix}", "webdataset and tarfile read it differently")
                members.append(member)
            yield key, suffixes, members
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"the shard {path} cannot be read by webdataset ({error}): build it again") from error


def _named(parts: tuple[str | None, str | None]) -> tuple[str | None, str]:
    return parts[0], (parts[1] or "").lower()


def _walk(path: Path, data: mmap.mmap) -> list[_Member]:
    """Every regular member with its place, and the proof that nothing follows the last."""
    end, members = 0, []
    try:
        data.seek(0)
        with tarfile.open(fileobj=data, mode="r:") as archive:
            for info in archive:
                _allow(path, info)
                if info.isreg():
                    members.append(_Member(info.name, info.offset_data, info.size))
                end = info.offset_data + (-(-info.size // _BLOCK) * _BLOCK if info.isreg() else 0)
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"the shard {path} is cut off, damaged or no uncompressed tar file ({error}): "
            "fetch or build it again"
        ) from error
    tail = len(data) - end
    if tail < 2 * _BLOCK or any(
        data[at : min(at + (1 << 20), len(data))].strip(b"\0") for at in range(end, len(data), 1 << 20)
    ):
        raise UserError(
            f"the shard {path} is cut off or damaged after byte {end} (member {len(members)}): "
            "fetch or build it again"
        )
    return members


def _allow(path: Path, info: tarfile.TarInfo) -> None:
    if info.isdir():
        return
    if not info.isreg() or info.issparse():
        _refuse(path, info.name, "only plain files may be in a shard, no links, devices or sparse files")
    name = info.name
    if name[:1] == "/" or "/../" in f"/{name}/" or "\\" in name or not name.isprintable():
        _refuse(path, name, "a member's name must stay inside the shard (no absolute path, no '..')")
    if name.rpartition("/")[2].partition(".")[2].startswith("__"):
        _refuse(path, name, "webdataset gives suffixes that begin with '__' a meaning of their own")
    if info.size > MAX_MEMBER:
        _refuse(path, name, f"it has {info.size} bytes, more than {MAX_MEMBER >> 20} MiB")


def _refuse(path: Path, name: str, why: str) -> NoReturn:
    raise UserError(f"the shard {path}, member {name!r}: {why}; build the shard again without it")


@dataclass
class _Gathered:
    """The columns of an index while a shard is read."""

    path: Path
    keys: dict[str, None] = field(default_factory=dict)
    suffixes: dict[str, int] = field(default_factory=dict)
    members: list[tuple[int, int, int, int]] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [0])
    picture: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: set[str] | None = None

    def add(self, key: str, sample: dict[str, _Member], data: mmap.mmap) -> None:
        """Check one sample and note its members."""
        if key in self.keys:
            _refuse(self.path, key, "the key comes twice, or its members do not follow one another")
        images = [suffix for suffix in sample if suffix in SUFFIXES]
        if len(images) != 1:
            _refuse(
                self.path, key, f"it has {len(images)} images ({', '.join(SUFFIXES)}), where one is needed"
            )
        self.keys[key] = None
        for suffix, member in sample.items():
            number = self.suffixes.setdefault(suffix, len(self.suffixes))
            content = data[member.offset : member.offset + member.length]
            self.members.append((number, member.offset, member.length, zlib.crc32(content)))
            if suffix == images[0]:
                self._image(member, content)
            elif suffix in ("txt", "json", "cls"):
                _text(self.path, member, content)
        self.first.append(len(self.members))
        self._conditions(key, sample, data)

    def _image(self, member: _Member, content: bytes) -> None:
        try:
            self.picture.append(probe(content))
        except BadImage as error:
            _refuse(self.path, member.name, str(error))

    def _conditions(self, key: str, sample: dict[str, _Member], data: mmap.mmap) -> None:
        """Captions and class: every sample of a shard must have the same kinds, and at least one."""
        content = {
            name: data[m.offset : m.offset + m.length]
            for name, m in sample.items()
            if name in ("json", "cls")
        }
        captions = ({"txt"} if "txt" in sample else set()) | _fields(self.path, key, content.get("json"))
        if "cls" in content:
            self.labels.append(_label(self.path, key, content["cls"]))
        if not captions and "cls" not in content:
            _refuse(
                self.path,
                key,
                "it has neither a caption (KEY.txt, or KEY.json with 'caption') nor a class (KEY.cls)",
            )
        self.captions = captions if self.captions is None else self.captions & captions
        if not self.captions and len(self.labels) != len(self.keys):
            _refuse(
                self.path,
                key,
                "its caption or class is missing, or of another kind than the shard's other captions",
            )

    def finish(self, status: os.stat_result, sha256: str) -> ShardIndex:
        """The index of the whole shard."""
        if self.labels and len(self.labels) != len(self.keys):
            _refuse(
                self.path,
                "KEY.cls",
                f"{len(self.labels)} of {len(self.keys)} samples have a class; give all or none",
            )
        encoded = [key.encode() for key in self.keys]
        header = Header(
            samples=len(self.keys),
            labels=bool(self.labels),
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sha256=sha256,
            suffixes=tuple(self.suffixes),
            captions=tuple(sorted(self.captions or ())),
        )
        return ShardIndex(
            header=header,
            members=np.asarray(self.members, np.int64).reshape(-1, 4),
            first=np.asarray(self.first, np.int64),
            picture=np.asarray(self.picture, np.int32).reshape(-1, 3),
            labels=np.asarray(self.labels, np.int64),
            key_bytes=np.frombuffer(b"".join(encoded), np.uint8),
            key_ends=np.cumsum([len(key) for key in encoded], dtype=np.int64),
        )


def _text(path: Path, member: _Member, content: bytes) -> None:
    if len(content) > MAX_CAPTION:
        _refuse(path, member.name, f"it has {len(content)} bytes, more than {MAX_CAPTION >> 10} KiB of text")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        _refuse(path, member.name, f"it is no UTF-8 text ({error.reason} at byte {error.start})")


def _fields(path: Path, key: str, content: bytes | None) -> set[str]:
    """The fields of KEY.json that are text."""
    if content is None:
        return set()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"{key}.json", f"it is no JSON ({error})")
    if not isinstance(value, dict):
        _refuse(path, f"{key}.json", "it is no JSON object with a 'caption'")
    return {name for name, text in value.items() if isinstance(text, str) and name != "txt"}


def _label(path: Path, key: str, content: bytes) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -1
    if not 0 <= label < 1 << 31:
        _refuse(path, f"{key}.cls", f"its class {content[:20]!r} is no integer from 0 on")
    return label
