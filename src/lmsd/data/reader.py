"""Samples by number: bytes at offsets, crc32 of image and caption, decoding straight into the batch.

Damaged bytes are never used: they end the run with the names of the shard and the key, or, where the caller
names a substitute, that one takes the sample's place.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lmsd.data.decode import SUFFIXES, BadImage, Pixels, decode_plain, decode_slowly, room
from lmsd.data.index import Index
from lmsd.data.members import CHANGED, CLEAN, COLUMNS, OLD_PLAIN, PLAIN
from lmsd.data.text import BadText, Lines, caption_of, captions, decoded
from lmsd.data.transforms import fit
from lmsd.data.urls import name_of
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

Integers = NDArray[np.int64]
Substitute = Callable[[int, int], tuple[Integers, Integers]]
"""(slot in the batch, attempt from 1 on) → (shard, sample), an array of one number each."""

_ATTEMPTS = 100
_KEPT = 64  # open shards and their tables
_NAMED = 20  # damaged samples that each process names
_DAMAGED = (BadImage, BadText)

log = logging.getLogger(__name__)


class DamagedSample(UserError):
    """A sample that cannot be used and has no substitute; what was trained so far is unaffected."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What samples are read as.

    image_size: side of the square, in pixels; channels: 3 or 1; caption: "txt", a field of KEY.json, or None
    for no captions; lines: what several lines of a caption become; old: decode as before version 2 of the
    index; images: names of further pictures of every sample, KEY.NAME.png.
    """

    image_size: int
    channels: int
    caption: str | None
    lines: Lines = "join"
    old: bool = False
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """What reading gives: uint8 [n,S,S,C], captions or None, classes [n] or None, which were substituted.

    places: shard and sample of what was read in the end.
    """

    pixels: Pixels
    text: list[str] | None
    label: Integers | None
    substituted: NDArray[np.bool_]
    places: tuple[Integers, Integers]


class OnDisk:
    """A file as a sequence of bytes; a slice is one pread, and shorter where the file ends early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __getitem__(self, part: slice) -> bytes:
        return os.pread(self._file.fileno(), part.stop - part.start, part.start)


class Files(dict[int, bytes | OnDisk]):
    """Shards as sequences of bytes, opened when they are asked for.

    locate names the local file of a shard; whole: how many shards to read in one go and hold, 0 to read at
    offsets. Raises UserError for a shard that is gone, or has another size than the index says.
    """

    def __init__(self, index: Index, locate: Callable[[int], str], *, whole: int = 0) -> None:
        super().__init__()
        self._index = index
        self._locate = locate
        self._whole = whole

    def __missing__(self, shard: int) -> bytes | OnDisk:
        path, expected = self._locate(shard), self._index.headers[shard].size
        try:
            file = open(path, "rb")  # noqa: SIM115 (OnDisk keeps it open)
        except OSError as error:
            raise UserError(f"the shard {path} cannot be opened ({error.strerror}): is it there?") from error
        size = os.fstat(file.fileno()).st_size
        if size != expected:
            raise UserError(
                f"the shard {path} has {size} bytes, and had {expected} when indexed: "
                "run `lmsd data index` again"
            )
        self[shard] = file.read() if self._whole else OnDisk(file)
        if len(self) > (self._whole or _KEPT):
            del self[next(iter(self))]  # the one opened first
        return self[shard]

    def __reduce__(self) -> tuple[object, ...]:
        # open files belong to a process
        return partial(Files, whole=self._whole), (self._index, self._locate)


class Memory:
    """A cache of decoded samples, so that a small set is decoded once."""

    def __init__(self, count: int, form: Form) -> None:
        self._pixels: Pixels = np.empty((count, form.image_size, form.image_size, form.channels), np.uint8)
        self._lines: list[list[str]] = [[]] * count
        self._filled = np.zeros(count, np.bool_)

    def keep(self, numbers: Integers, pixels: Pixels, lines: Sequence[list[str]]) -> None:
        """Store samples, by their numbers in the split."""
        self._pixels[numbers], self._filled[numbers] = pixels, True
        for number, each in zip(numbers.tolist(), lines, strict=True):
            self._lines[number] = each

    def recall(self, numbers: Integers, out: Pixels) -> list[list[str]] | None:
        """Copy the pixels of samples into out, and return their captions; None unless all are there."""
        if not self._filled[numbers].all():
            return None
        np.take(self._pixels, numbers, axis=0, out=out)
        return [self._lines[number] for number in numbers.tolist()]


class Reader:
    """Decoded samples of an index.

    locate names the local file of a shard; keep: hold every decoded sample in memory; whole: how many shards
    to read in one go and hold, 0 to read at offsets; advice: ends the message of a damaged sample without a
    substitute.
    """

    def __init__(
        self,
        index: Index,
        locate: Callable[[int], str],
        form: Form,
        *,
        keep: bool = False,
        whole: int = 0,
        advice: str = "",
    ) -> None:
        self.index, self.form = index, form
        self._advice = advice
        self._plain = OLD_PLAIN if form.old else PLAIN
        self._files = Files(index, locate, whole=whole)
        self._memory = Memory(len(index), form) if keep else None
        self._tables: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()
        self._columns: OrderedDict[tuple[str, int], Integers] = OrderedDict()
        self._pixels: Pixels = np.empty((0,), np.uint8)
        self._named: set[str] = set()

    def read(
        self,
        shard: Integers,
        sample: Integers,
        *,
        substitute: Substitute | None = None,
        u: Sequence[float] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Samples:
        """Decode samples (numbers int64 [n]); the pixels are valid until the next call.

        size: height and width, in place of the form's square.
        u: n numbers in [0, 1) that draw captions, where these are drawn. Raises UserError for a damaged
        sample that has no substitute.
        """
        pixels, substituted = self._buffer(len(shard), size), np.zeros(len(shard), np.bool_)
        shard, sample = shard.copy(), sample.copy()
        rows, label = self._gather(shard, sample)
        numbers, memory = self.index.numbers(shard, sample), self._memory
        lines = None if memory is None else memory.recall(numbers, pixels)
        if lines is None:
            lines = []
            for number, row, out in zip(shard.tolist(), rows.tolist(), pixels, strict=True):
                try:
                    lines.append(self._one(number, row, out))
                except _DAMAGED as error:
                    slot = len(lines)
                    message = self._tell(number, int(sample[slot]), error)
                    place = self._instead(slot, message, out, substitute)
                    words, label[slot], shard[slot], sample[slot] = place
                    lines.append(words)
                    substituted[slot] = True
            if memory is not None:
                good = np.flatnonzero(~substituted)
                memory.keep(numbers[good], pixels[good], [lines[slot] for slot in good.tolist()])
        text = self._drawn(lines, u) if self.form.caption else None
        classes = label if self.index.labels else None
        return Samples(pixels, text, classes, substituted, (shard, sample))

    def pictures(self, name: str, shard: Integers, sample: Integers) -> Pixels:
        """The pictures KEY.NAME.png of samples, prepared as x is: uint8 [n,S,S,C].

        Raises UserError for a sample that has none, or a damaged one.
        """
        form = self.form
        out = room(len(shard), form.image_size, form.image_size, form.channels)
        for slot, (number, each) in enumerate(zip(shard.tolist(), sample.tolist(), strict=True)):
            start, length, crc = self._members(name, number)[each].tolist()
            if start < 0:
                raise UserError(
                    f"data.images=[{name}]: {self.index.name(number, each)} has no member {name}.png (.jpg, "
                    ".webp): build the shards with it, or leave the option out"
                )
            content = self._files[number][start : start + length]
            try:
                if crc32(content) != crc:
                    raise BadImage(f"the bytes of its {name} have changed since it was indexed")
                out[slot] = fit(decode_slowly(content, channels=form.channels, old=form.old), form.image_size)
            except BadImage as error:
                raise DamagedSample(self._tell(number, each, error)) from error
        return out

    def _members(self, name: str, shard: int) -> Integers:
        """Offset, length and crc32 of every sample's picture of a name, [n,3]."""
        key = (name, shard)
        if key not in self._columns:
            self._columns[key] = self.index.shard(shard).column(*(f"{name}.{kind}" for kind in SUFFIXES))
            if len(self._columns) > _KEPT:
                self._columns.popitem(last=False)
        return self._columns[key]

    def _drawn(self, lines: list[list[str]], u: Sequence[float] | None) -> list[str]:
        if self.form.lines == "draw" and u is not None:
            return [caption_of(each, "draw", u=draw) for each, draw in zip(lines, u, strict=True)]
        return [each[0] if each else "" for each in lines]

    def captions(self, shard: Integers, sample: Integers, u: Sequence[float] | None = None) -> list[str]:
        """The captions alone; u: draws a line of each, else it is the first. UserError for a damaged one."""
        rows, _ = self._gather(shard, sample)
        lines = []
        for number, each, row in zip(shard.tolist(), sample.tolist(), rows.tolist(), strict=True):
            try:
                lines.append(self._text(self._files[number][row[3] : row[4]], row[5], row[8]))
            except _DAMAGED as error:
                raise UserError(self._tell(number, each, error)) from error
        return self._drawn(lines, u)

    def refused_before(self, progress: "Progress | None" = None) -> int:
        """How many samples the decoder of index version 1 refused and the current one accepts.

        Only decoding tells, so all JPEGs that the index does not call changed are decoded; progress is told
        shard by shard.
        """
        count, shards = 0, range(len(self.index.shards))
        for shard in shards:
            for start, end, *_, height, width, flags in self._table(shard)[0].tolist():
                if flags & OLD_PLAIN and not flags & CHANGED:
                    image = self._files[shard][start:end]
                    try:
                        decode_plain(image, room(height, width, self.form.channels), old=True)
                    except BadImage:
                        with suppress(BadImage):  # damaged, then as now
                            decode_slowly(image, channels=self.form.channels)
                            count += 1
            if progress is not None:
                progress(shard + 1, len(shards), "comparing decoders, shards")
        return count

    def labels(self, shard: Integers, sample: Integers) -> Integers:
        """The classes alone, from the index."""
        return self._gather(shard, sample)[1]

    def _buffer(self, count: int, size: tuple[int, int] | None) -> Pixels:
        # one buffer for all batches: fresh pages cost as much as a third of decoding a small image
        size = size or (self.form.image_size, self.form.image_size)
        if len(self._pixels) < count or self._pixels.shape[1:3] != size:
            self._pixels = room(count, *size, self.form.channels)
        return self._pixels[:count]

    def _gather(self, shard: Integers, sample: Integers) -> tuple[Integers, Integers]:
        """Rows of the shards' tables [n,9], and classes [n] (−1 without)."""
        rows, label = np.empty((len(shard), COLUMNS), np.int64), np.full(len(shard), -1, np.int64)
        for number in np.unique(shard).tolist():
            at = np.flatnonzero(shard == number)
            table, labels = self._table(number)
            rows[at] = table[sample[at]]
            if len(labels):
                label[at] = labels[sample[at]]
        return rows, label

    def _table(self, shard: int) -> tuple[Integers, Integers]:
        if shard not in self._tables:
            suffix = {None: None, "txt": "txt"}.get(self.form.caption, "json")
            index = self.index.shard(shard)
            self._tables[shard] = index.table(suffix), index.labels
            if len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
        return self._tables[shard]

    def _one(self, shard: int, row: list[int], out: Pixels) -> list[str]:
        """Decode one sample into out; its captions."""
        start, end, crc, text_start, text_end, text_crc, height, width, flags = row
        content, form, pixels = self._files[shard], self.form, out
        image = content[start:end]
        if crc32(image) != crc:
            raise BadImage("the image's bytes have changed since it was indexed")
        if not flags & self._plain:
            pixels = decode_slowly(image, channels=form.channels, old=form.old)
        else:
            if (height, width) != out.shape[:2]:
                pixels = room(height, width, form.channels)
            decode_plain(image, pixels, old=form.old)
        if pixels is not out:
            out[:] = fit(pixels, *out.shape[:2])
        return self._text(content[text_start:text_end], text_crc, flags) if text_end else []

    def _text(self, content: bytes, crc: int, flags: int) -> list[str]:
        if crc32(content) != crc:
            raise BadText("the caption's bytes have changed since it was indexed")
        form = self.form
        if flags & CLEAN and form.caption == "txt":
            return [content.decode()]
        text = content.decode() if form.old else decoded(content)
        value = text if form.caption == "txt" else json.loads(text)[form.caption]
        if form.old:
            return [str(value).strip()]
        lines = captions(value)
        return lines if form.lines == "draw" or len(lines) < 2 else [caption_of(lines, form.lines)]

    def _tell(self, shard: int, sample: int, error: Exception) -> str:
        path, key = self.index.shards[shard], self.index.shard(shard).key(sample)
        return (
            f"{self.index.name(shard, sample)}: {error}; fetch or build the shard again, or take the sample "
            f"out of it (tar --wildcards --delete -f {name_of(path)} '{key}.*')"
        )

    def _instead(
        self, slot: int, message: str, out: Pixels, substitute: Substitute | None
    ) -> tuple[list[str], int, int, int]:
        """Fill a damaged sample's place; captions, class, shard and sample of the substitute."""
        if substitute is None:
            raise DamagedSample(message + self._advice)
        self._name(message)
        for attempt in range(1, _ATTEMPTS + 1):
            shard, sample = substitute(slot, attempt)
            rows, label = self._gather(shard, sample)
            try:
                words = self._one(int(shard[0]), rows[0].tolist(), out)
                return words, int(label[0]), int(shard[0]), int(sample[0])
            except _DAMAGED as error:
                self._name(self._tell(int(shard[0]), int(sample[0]), error))
        raise DamagedSample(f"{message}; so are the {_ATTEMPTS} samples after it")

    def _name(self, message: str) -> None:
        """Name a damaged sample, once, and only the first few."""
        if message not in self._named and len(self._named) < _NAMED:
            self._named.add(message)
            log.warning("left out: %s", message)
