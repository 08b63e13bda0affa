"""Pictures prepared one by one, in chunks of `COUNT` of the source's order, each three files that are final.

    00000012.images       encoded pictures, one after the other
    00000012.signatures   float32 [n,S,S,3] of those that are used (`duplicates`)
    00000012.rows         JSON lines: what the pictures were made from; then a picture each, used or not

Rows are written last: a chunk that has them is whole, and a killed build skips it if its pictures are as they
were. Nothing here depends on any other picture, so chunks can be made by any process on any machine.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmsd.data.builders.duplicates import signature
from lmsd.data.builders.pictures import encode_picture, fit_picture, read_picture
from lmsd.data.builders.plan import Recipe
from lmsd.data.builders.source import Pixels, Raw
from lmsd.data.builders.where import Where
from lmsd.data.decode import BadImage
from lmsd.data.shards import Split
from lmsd.files import replacing

COUNT = 256
"""Pictures of a chunk."""


class Row(NamedTuple):
    """A picture of a chunk: what is known of it, and its place, or why it is not used.

    at, length: of its bytes among the chunk's images; notes: what is worth telling of it.
    """

    name: str
    caption: str | None
    label: int | None
    split: Split | None
    repeats: int
    why: str
    content: str
    at: int
    length: int
    notes: list[str]


class Chunk(NamedTuple):
    """A chunk by its number, and the folder that its files lie in."""

    folder: Path
    number: int

    def file(self, kind: str) -> Path:
        """One of the three files: images, signatures or rows."""
        return self.folder / f"{self.number:08d}.{kind}"

    def rows(self) -> Iterator[Row]:
        """The pictures in the order of the source."""
        with self.file("rows").open(encoding="utf-8") as lines:
            next(lines)
            yield from (Row(*json.loads(line)) for line in lines)

    def made_from(self, pictures: str) -> bool:
        """Whether the chunk is whole, and was made from pictures of that digest."""
        return self.file("rows").is_file() and self.pictures() == pictures

    def pictures(self) -> str:
        """The digest of the pictures that it was made from."""
        with self.file("rows").open(encoding="utf-8") as lines:
            return str(json.loads(next(lines)))


def content_hash(pixels: Pixels) -> str:
    """sha256 of the shape and the pixels, as 64 hex digits."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def prepare_chunk(chunk: Chunk, raws: Sequence[Raw], recipe: Recipe, pictures: str) -> int:
    """Decode, check, fit, hash and encode pictures; write their chunk; how many there are.

    pictures: the digest of the raws.
    """
    where = Where(recipe.where, recipe.fields) if recipe.where else None
    rows: list[Row] = []
    data, signatures = bytearray(), bytearray()
    for raw in raws:
        known = (raw.name, raw.caption, raw.label, raw.split, raw.repeats)
        try:
            pixels, told = _pixels(raw, recipe, where)
        except BadImage as reason:
            rows.append(Row(*known, str(reason), "", 0, 0, []))
            continue
        encoded = encode_picture(pixels, recipe.image_format)
        rows.append(Row(*known, "", content_hash(pixels), len(data), len(encoded), list(told)))
        data += encoded
        signatures += signature(pixels).tobytes()
    lines = [json.dumps(each) for each in (pictures, *rows)]
    text = "".join(f"{line}\n" for line in lines).encode()
    files: dict[str, bytes | bytearray] = {"images": data, "signatures": signatures, "rows": text}
    for kind, content in files.items():
        with replacing(chunk.file(kind)) as temporary:
            temporary.write_bytes(content)
    return len(rows)


def digest(raws: Sequence[Raw]) -> str:
    """sha256 of all that a chunk is made from; of files, their size and time stand for the bytes."""
    known = hashlib.sha256()
    stamps: dict[Path, str] = {}
    for raw in raws:
        told = [raw.name, raw.caption, raw.label, raw.split, raw.repeats, repr(dict(raw.fields))]
        known.update(json.dumps(told).encode() + _identity(raw.picture, stamps))
    return known.hexdigest()


def listed(known: "hashlib._Hash", raw: Raw) -> None:
    """Add a picture to a digest of all, by what every machine sees of it."""
    known.update(json.dumps([raw.name, raw.caption, raw.label, raw.split, raw.repeats]).encode())


def _identity(picture: Pixels | Path | Callable[[], bytes], stamps: dict[Path, str]) -> bytes:
    match picture:
        case Path():
            return _stamp(picture, stamps).encode()
        case np.ndarray():
            return repr(picture.shape).encode() + picture.tobytes()
        case partial(args=(Path() as path, *rest)):
            return f"{_stamp(path, stamps)} {rest}".encode()
    return repr(picture).encode()


def _stamp(path: Path, stamps: dict[Path, str]) -> str:
    if path not in stamps:
        try:
            status = os.stat(path)
            stamps[path] = f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:
            stamps[path] = str(error.errno)
    return stamps[path]


def _pixels(raw: Raw, recipe: Recipe, where: Where | None) -> tuple[Pixels, tuple[str, ...]]:
    """The fitted pixels of one picture, and what is worth telling of it; BadImage when it is not taken."""
    picture, notes = raw.picture, tuple[str, ...]()
    if not isinstance(picture, np.ndarray):
        picture, notes = read_picture(picture, channels=recipe.channels)
    if where is not None:
        facts: Mapping[str, Any] = {"label": raw.label, **raw.fields}
        height, width = picture.shape[:2]
        where.check({**facts, "height": height, "width": width, "caption": raw.caption or ""})
    size, channels = recipe.image_size, recipe.channels
    return fit_picture(picture, size, channels=channels, denoise=recipe.denoise), notes
