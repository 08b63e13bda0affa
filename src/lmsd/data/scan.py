"""Reads a shard once and proves that it is sound: format, names, sizes, image headers, captions.

The shard is walked by Python's tarfile, which gives the offsets. tarfile ends quietly at a damaged or missing
header, so the walk must end in the tar format's zero blocks and nothing else: that catches every truncation
and every damaged header. After this, crc32 of each member guards its bytes. Pixels are decoded when they are
asked for (`decode`), or when they are used.
"""

import hashlib
import json
import mmap
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias

import numpy as np

from lmsd.data.decode import SUFFIXES, BadImage, decode, probe
from lmsd.data.members import CHANGED, CLEAN, OLD_PLAIN, PLAIN, Header, ShardIndex
from lmsd.data.names import TEXTS, grouped, hidden, printable
from lmsd.data.notes import Notes
from lmsd.data.text import EMPTY, LOST, BadText, caption_of, captions, decoded
from lmsd.errors import UserError

MAX_MEMBER = 256 << 20
NO_CAPTION = "JSON files without a 'caption'"
SEVERAL = "captions of several lines"
SECOND = "samples with a second caption, which is not read (.txt is)"
APART = "samples whose members lie apart, which plain webdataset does not read (tar --sort=name)"
HIDDEN = "hidden files left out"

LINKS = "pack the shard again with the files themselves: tar --dereference --hard-dereference -cf ..."
_BLOCK = 512
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip, then tar cf"),
}


_Captions: TypeAlias = dict[str, list[str]]  # lines by the place where they stand


class Member(NamedTuple):
    """A file of a shard: its name, and where its bytes are."""

    name: str
    offset: int
    length: int


def scan(path: Path, *, decoding: bool = False) -> ShardIndex:
    """Read and check a shard; its index. Raises UserError naming the shard, the member and the way out.

    decoding: decode every image, too, so that training finds no damaged one.
    """
    status = path.stat()
    if status.st_size < 2 * _BLOCK:
        raise UserError(
            f"the shard {path} is empty or cut off ({status.st_size} bytes): fetch or build it again"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        everything = _walk(path, data)
        gathered = _Gathered(path, decoding)
        for name in (member.name for member in everything if hidden(member.name)):
            gathered.notes.add(HIDDEN, name)
        members = [member for member in everything if not hidden(member.name)]
        for key, group in grouped([member.name for member in members]).items():
            numbers = [number for _, number in group]
            if numbers[-1] - numbers[0] >= len(numbers):
                gathered.notes.add(APART, key)
            gathered.add(key, _named(path, key, [(suffix, members[n]) for suffix, n in group]), data)
        return gathered.finish(status, hashlib.sha256(data).hexdigest())


def samples_of(path: Path, data: mmap.mmap) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and members, by suffix, of every sample of a shard; UserError naming what is wrong with it."""
    members = [member for member in _walk(path, data) if not hidden(member.name)]
    for key, group in grouped([member.name for member in members]).items():
        yield key, _named(path, key, [(suffix, members[number]) for suffix, number in group])


def _named(path: Path, key: str, group: list[tuple[str, Member]]) -> dict[str, Member]:
    """Suffix → member of one sample; the caption is "txt", whatever it is called."""
    sample: dict[str, Member] = {}
    for suffix, member in group:
        if suffix in sample:
            _refuse(path, key, f"the key comes twice ({sample[suffix].name} and {member.name})")
        sample[suffix] = member
    text = next((suffix for suffix in TEXTS if suffix in sample), None)
    return {("txt" if suffix == text else suffix): member for suffix, member in sample.items()}


def _walk(path: Path, data: mmap.mmap) -> list[Member]:
    """Every regular member with its place; also proves that nothing follows the last one."""
    end, count, members = 0, 0, []
    try:
        data.seek(0)
        with tarfile.open(fileobj=data, mode="r:") as archive:
            for info in archive:
                _allow(path, info)
                if info.isreg():
                    count += 1
                    if not _META.search(info.name):
                        members.append(Member(info.name, info.offset_data, info.size))
                end = info.offset_data + (-(-info.size // _BLOCK) * _BLOCK if info.isreg() else 0)
    except UserError:
        raise
    except (tarfile.TarError, EOFError, ValueError) as error:
        packed = next((way for magic, way in _PACKED.items() if data[: len(magic)] == magic), None)
        if packed is not None:
            raise UserError(
                f"the shard {path} is compressed ({packed[0]}), and samples are read at their places in an "
                f"uncompressed tar file: unpack it once ({packed[1]})"
            ) from error
        raise UserError(
            f"the shard {path} is cut off, damaged or no uncompressed tar file ({error}): "
            "fetch or build it again"
        ) from error
    tail = len(data) - end
    if tail < 2 * _BLOCK or any(
        data[at : min(at + (1 << 20), len(data))].strip(b"\0") for at in range(end, len(data), 1 << 20)
    ):
        raise UserError(
            f"the shard {path} is cut off or damaged after byte {end} (member {count}): "
            "fetch or build it again"
        )
    return members


def _allow(path: Path, info: tarfile.TarInfo) -> None:
    if info.isdir():
        return
    if info.issym() or info.islnk():
        _refuse(
            path, info.name, f"it is a link to {info.linkname}, and files are read at their places", LINKS
        )
    if not info.isreg() or info.issparse():
        _refuse(path, info.name, "only plain files may be in a shard, no devices or sparse files")
    name = info.name.replace("\\", "/")
    if name[:1] == "/":
        _refuse(path, info.name, "its name is an absolute path, and must stay inside the shard")
    if "/../" in f"/{name}/":
        _refuse(path, info.name, "its name leads out by '..', and must stay inside the shard")
    if any(sign < " " or sign == "\x7f" for sign in name):
        _refuse(path, info.name, "its name holds control characters")
    if name.rpartition("/")[2].partition(".")[2].startswith("__"):
        _refuse(path, info.name, "webdataset gives suffixes that begin with '__' a meaning of their own")
    if info.size > MAX_MEMBER:
        _refuse(path, info.name, f"it has {info.size} bytes, more than {MAX_MEMBER >> 20} MiB")


def _refuse(path: Path, name: str, why: str, way: str = "build the shard again without it") -> NoReturn:
    raise UserError(f"the shard {path}, member {printable(name)!r}: {why}; {way}")


@dataclass
class _Gathered:
    """The columns of an index while a shard is read."""

    path: Path
    decoding: bool
    keys: dict[str, None] = field(default_factory=dict)
    suffixes: dict[str, int] = field(default_factory=dict)
    members: list[tuple[int, int, int, int]] = field(default_factory=list)
    first: list[int] = field(default_factory=lambda: [0])
    picture: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    bare: int = 0
    captions: set[str] | None = None
    worded: set[str] = field(default_factory=set)
    notes: Notes = field(default_factory=Notes)

    def add(self, key: str, sample: dict[str, Member], data: mmap.mmap) -> None:
        """Check one sample and note its members."""
        images = [suffix for suffix in sample if suffix in SUFFIXES]
        if len(images) != 1:
            there = ", ".join(f".{suffix}" for suffix in sample)
            why = f"it has {len(images)} images among {there}, where one is needed ({', '.join(SUFFIXES)})"
            _refuse(self.path, key, why)
        self.keys[key] = None
        content = {
            suffix: data[member.offset : member.offset + member.length] for suffix, member in sample.items()
        }
        for suffix, member in sample.items():
            number = self.suffixes.setdefault(suffix, len(self.suffixes))
            self.members.append((number, member.offset, member.length, zlib.crc32(content[suffix])))
        self.first.append(len(self.members))
        flags = self._image(sample[images[0]], content[images[0]])
        fields = self._conditions(key, sample, content)
        flags[2] |= self._words(key, content, fields)
        self.picture.append((flags[0], flags[1], flags[2]))

    def _image(self, member: Member, content: bytes) -> list[int]:
        """Height, width and flags of an image."""
        try:
            found = probe(content)
            if self.decoding:
                decode(content)
        except BadImage as error:
            _refuse(self.path, member.name, str(error))
        for note in found.notes:
            self.notes.add(note, member.name)
        flags = PLAIN * found.plain | OLD_PLAIN * found.old_plain | CHANGED * found.changed
        return [found.height, found.width, flags]

    def _conditions(self, key: str, sample: Mapping[str, Member], content: Mapping[str, bytes]) -> _Captions:
        """Captions and class: every sample of a shard must have the same kinds, or none of them any."""
        fields: _Captions = {}
        if "json" in sample:
            fields = _fields(self.path, sample["json"].name, content["json"], alone="txt" not in sample)
        if "txt" in sample:
            fields["txt"] = _text(self.path, sample["txt"].name, content["txt"])
        if "cls" in sample:
            self.labels.append(_label(self.path, sample["cls"].name, content["cls"]))
        if not fields and "cls" not in sample:
            self._without(key, "json" in sample)
        elif self.bare:
            _refuse(self.path, key, "it has a caption or a class, and the samples before it have none")
        self.worded |= {name for name, lines in fields.items() if lines}
        self.captions = set(fields) if self.captions is None else self.captions & set(fields)
        if not self.captions and len(self.labels) != len(self.keys) and not self.bare:
            _refuse(
                self.path,
                key,
                "its caption or class is missing, or of another kind than the shard's other captions",
            )
        return fields

    def _without(self, key: str, described: bool) -> None:
        """Count a sample without caption and class, which is allowed only in a shard of such samples."""
        if self.bare + 1 < len(self.keys):
            why = "it has neither a caption (KEY.txt, or KEY.json with 'caption') nor a class (KEY.cls)"
            _refuse(self.path, key, f"{why}, and others of the shard have")
        self.bare += 1
        if described:
            self.notes.add(NO_CAPTION, key)

    def _words(self, key: str, content: Mapping[str, bytes], fields: _Captions) -> int:
        """Note what is unusual about the default caption; `CHANGED` or `CLEAN` where that is said."""
        name = next((name for name in ("txt", "caption") if name in fields), None)
        if name is None:
            return 0
        lines = fields[name]
        if name == "txt" and any(
            fields.get("caption", lines) != lines or other in content for other in TEXTS[1:]
        ):
            self.notes.add(SECOND, key)
        if any("\ufffd" in line for line in lines):
            self.notes.add(LOST, key)
        if len(lines) != 1:
            self.notes.add(SEVERAL if lines else EMPTY, key)
        if name == "txt":
            text = content["txt"].decode()
            clean = CLEAN if [text] == lines else 0
            return clean if text.strip() == caption_of(lines) else CHANGED
        return CHANGED * (str(json.loads(content["json"])[name]).strip() != caption_of(lines))

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
            captions=tuple(sorted((self.captions or set()) & self.worded)),
            changed=sum(flags & CHANGED > 0 for _, _, flags in self.picture),
            notes=tuple(self.notes),
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


def _text(path: Path, name: str, content: bytes) -> list[str]:
    try:
        return captions(decoded(content))
    except BadText as error:
        _refuse(path, name, str(error))


def _fields(path: Path, name: str, content: bytes, *, alone: bool) -> _Captions:
    """The fields of KEY.json that are text, or none (null); alone: no other caption stands beside it."""
    try:
        value = json.loads(decoded(content))
    except (ValueError, RecursionError) as error:
        _refuse(path, name, f"it is no JSON ({error})")
    if not isinstance(value, dict):
        _refuse(path, name, "it is no JSON object with a 'caption'")
    found: _Captions = {}
    for field_name, text in value.items():
        if field_name == "txt":
            continue
        try:
            found[field_name] = captions(text)
        except BadText as error:
            if field_name == "caption" and alone:
                _refuse(path, name, f"its 'caption' cannot be used, {error}")
    return found


def _label(path: Path, name: str, content: bytes) -> int:
    try:
        label = int(content)
    except ValueError:
        label = -1
    if not 0 <= label < 1 << 31:
        _refuse(
            path, name, f"its class {content[:20]!r} is no integer from 0 on; number the words of classes"
        )
    return label
