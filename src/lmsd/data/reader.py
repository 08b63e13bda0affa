"""Samples by number: bytes at offsets, crc32 of image and caption, decoding straight into the batch.

Damaged bytes are never used: they end the run with the shard and the key, or, where the caller can name a
substitute, the place is filled by that.
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

from lmsd.data.decode import BadImage, Pixels, decode_plain, decode_slowly
from lmsd.data.index import Index
from lmsd.data.members import CHANGED, CLEAN, COLUMNS, OLD_PLAIN, PLAIN
from lmsd.data.text import Lines, caption_of, captions, decoded
from lmsd.data.transforms import fit
from lmsd.data.urls import name_of
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

Integers = NDArray[np.int64]
Substitute = Callable[[int, int], tuple[int, int]]
"""(slot in the batch, attempt from 1 on) → (shard, sample)."""

_ATTEMPTS = 100
_KEPT = 64  # open shards and their tables
_NAMED = 20  # damaged samples that are told of, for each process

log = logging.getLogger(__name__)


class DamagedSample(UserError):
    """A sample that cannot be used and has no substitute: what was trained so far is sound."""


class Damaged(ValueError):
    """A sample whose bytes are not those that were indexed, or cannot be decoded."""


@dataclass(frozen=True)
class Samples:
    """What reading gives: uint8 [n,S,S,C], captions or None, classes [n] or None, which were substituted."""

    pixels: Pixels
    text: list[str] | None
    label: Integers | None
    substituted: NDArray[np.bool_]


class OnDisk:
    """A file as a sequence of bytes: a slice is one pread, shorter where the file ends early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._descriptor = file.fileno()

    def __getitem__(self, part: slice) -> bytes:
        return os.pread(self._descriptor, part.stop - part.start, part.start)


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
    """Decoded samples that are kept, so that a small set is decoded once."""

    def __init__(self, index: Index, image_size: int, channels: int) -> None:
        self.pixels: Pixels = np.empty((len(index), image_size, image_size, channels), np.uint8)
        self.text: list[list[str]] = [[]] * len(index)
        self.filled = np.zeros(len(index), np.bool_)
        self._before = np.cumsum(index.sizes) - index.sizes

    def places(self, shard: Integers, sample: Integers) -> Integers:
        """Number of each sample in the whole set."""
        return self._before[shard] + sample


class Reader:
    """Decoded samples of an index.

    caption: "txt", a field of KEY.json, or None for no captions; lines: what several lines of one give; old:
    decode as before version 2 of the index; keep: hold every decoded sample in memory; whole: how many shards
    to read in one go and hold; advice: what else ends the message of a damaged sample without a substitute.
    """

    def __init__(
        self,
        index: Index,
        locate: Callable[[int], str],
        *,
        image_size: int,
        channels: int,
        caption: str | None,
        lines: Lines = "join",
        old: bool = False,
        keep: bool = False,
        whole: int = 0,
        advice: str = "",
    ) -> None:
        self.index = index
        self.image_size = image_size
        self.channels = channels
        self.caption = caption
        self.lines = lines
        self.old = old
        self._advice = advice
        self._plain = OLD_PLAIN if old else PLAIN
        self._files = Files(index, locate, whole=whole)
        self._memory = Memory(index, image_size, channels) if keep else None
        self._tables: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()
        self._pixels: Pixels = np.empty((0,), np.uint8)
        self._named: set[str] = set()

    def read(
        self,
        shard: Integers,
        sample: Integers,
        *,
        substitute: Substitute | None = None,
        u: Sequence[float] | None = None,
    ) -> Samples:
        """Decode samples (numbers int64 [n]); the pixels are valid until the next call.

        u: n numbers in [0, 1) that draw captions, where these are drawn. Raises UserError for a damaged
        sample that has no substitute.
        """
        pixels, substituted = self._buffer(len(shard)), np.zeros(len(shard), np.bool_)
        rows, label = self._gather(shard, sample)
        memory = self._memory
        if memory is not None and memory.filled[places := memory.places(shard, sample)].all():
            lines = [memory.text[place] for place in places.tolist()]
            np.take(memory.pixels, places, axis=0, out=pixels)
        else:
            lines = []
            for number, row, out in zip(shard.tolist(), rows.tolist(), pixels, strict=True):
                try:
                    lines.append(self._one(number, row, out))
                except Damaged as error:
                    slot = len(lines)
                    told = self._tell(number, int(sample[slot]), error)
                    words, label[slot] = self._instead(slot, told, out, substitute)
                    lines.append(words)
                    substituted[slot] = True
            self._keep(shard, sample, pixels, lines, ~substituted)
        text = self._drawn(lines, u) if self.caption else None
        return Samples(pixels, text, label if self.index.labels else None, substituted)

    def _drawn(self, lines: list[list[str]], u: Sequence[float] | None) -> list[str]:
        if self.lines == "draw" and u is not None:
            return [caption_of(each, "draw", u=draw) for each, draw in zip(lines, u, strict=True)]
        return [each[0] if each else "" for each in lines]

    def captions(self, shard: Integers, sample: Integers) -> list[str]:
        """The captions alone, the first line where one is drawn. Raises UserError for a damaged one."""
        rows, _ = self._gather(shard, sample)
        lines = []
        for number, each, row in zip(shard.tolist(), sample.tolist(), rows.tolist(), strict=True):
            try:
                lines.append(self._text(self._files[number][row[3] : row[4]], row[5], row[8]))
            except Damaged as error:
                raise UserError(self._tell(number, each, error)) from error
        return self._drawn(lines, None)

    def refused_before(self, progress: "Progress | None" = None) -> int:
        """Samples that are not `changed` in the index, and that the decoder before its version 2 refused.

        Only decoding them tells; progress is told shard by shard.
        """
        count, shards = 0, range(len(self.index.shards))
        for shard in shards:
            for start, end, *_, height, width, flags in self._table(shard)[0].tolist():
                if flags & OLD_PLAIN and not flags & CHANGED:
                    image = self._files[shard][start:end]
                    try:
                        decode_plain(image, np.empty((height, width, self.channels), np.uint8), old=True)
                    except BadImage:
                        with suppress(BadImage):  # damaged, then as now
                            decode_slowly(image, channels=self.channels)
                            count += 1
            if progress is not None:
                progress(shard + 1, len(shards), "comparing decoders, shards")
        return count

    def labels(self, shard: Integers, sample: Integers) -> Integers:
        """The classes alone, from the index."""
        return self._gather(shard, sample)[1]

    def _buffer(self, count: int) -> Pixels:
        # one buffer for all batches: fresh pages cost as much as a third of decoding a small image
        if len(self._pixels) < count:
            self._pixels = np.empty((count, self.image_size, self.image_size, self.channels), np.uint8)
        return self._pixels[:count]

    def _keep(
        self,
        shard: Integers,
        sample: Integers,
        pixels: Pixels,
        text: list[list[str]],
        good: NDArray[np.bool_],
    ) -> None:
        if self._memory is None:
            return
        places = self._memory.places(shard, sample)[good]
        self._memory.pixels[places] = pixels[good]
        self._memory.filled[places] = True
        for place, slot in zip(places.tolist(), np.flatnonzero(good).tolist(), strict=True):
            self._memory.text[place] = text[slot]

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
            suffix = {None: None, "txt": "txt"}.get(self.caption, "json")
            index = self.index.shard(shard)
            self._tables[shard] = index.table(suffix), index.labels
            if len(self._tables) > _KEPT:
                self._tables.popitem(last=False)
        return self._tables[shard]

    def _one(self, shard: int, row: list[int], out: Pixels) -> list[str]:
        """Decode one sample into out; its captions."""
        start, end, crc, text_start, text_end, text_crc, height, width, flags = row
        content = self._files[shard]
        image = content[start:end]
        if crc32(image) != crc:
            raise Damaged("the image's bytes have changed since it was indexed")
        try:
            if flags & self._plain and height == width == self.image_size:
                decode_plain(image, out, old=self.old)
            else:
                out[:] = fit(self._decoded(image, row), self.image_size)
        except BadImage as error:
            raise Damaged(str(error)) from error
        return self._text(content[text_start:text_end], text_crc, flags) if text_end else []

    def _decoded(self, image: bytes, row: list[int]) -> Pixels:
        if not row[8] & self._plain:
            return decode_slowly(image, channels=self.channels, old=self.old)
        pixels = np.empty((row[6], row[7], self.channels), np.uint8)
        decode_plain(image, pixels, old=self.old)
        return pixels

    def _text(self, content: bytes, crc: int, flags: int) -> list[str]:
        if crc32(content) != crc:
            raise Damaged("the caption's bytes have changed since it was indexed")
        if flags & CLEAN and self.caption == "txt":
            return [content.decode()]
        if self.old:
            text = content.decode()
            return [(text if self.caption == "txt" else str(json.loads(text)[self.caption])).strip()]
        value = text = decoded(content)
        if self.caption != "txt":
            value = json.loads(text)[self.caption]
        lines = captions(value)
        return lines if self.lines == "draw" or len(lines) < 2 else [caption_of(lines, self.lines)]

    def _tell(self, shard: int, sample: int, error: Damaged) -> str:
        path, key = self.index.shards[shard], self.index.shard(shard).key(sample)
        return (
            f"{self.index.name(shard, sample)}: {error}; fetch or build the shard again, or take the sample "
            f"out of it (tar --wildcards --delete -f {name_of(path)} '{key}.*')"
        )

    def _instead(
        self, slot: int, message: str, out: Pixels, substitute: Substitute | None
    ) -> tuple[list[str], int]:
        """Fill a damaged sample's place; captions and class of the substitute."""
        if substitute is None:
            raise DamagedSample(message + self._advice)
        self._name(message)
        for attempt in range(1, _ATTEMPTS + 1):
            shard, sample = (np.asarray([number]) for number in substitute(slot, attempt))
            rows, label = self._gather(shard, sample)
            try:
                return self._one(int(shard[0]), rows[0].tolist(), out), int(label[0])
            except Damaged as error:
                self._name(self._tell(int(shard[0]), int(sample[0]), error))
        raise DamagedSample(f"{message}; so are the {_ATTEMPTS} samples after it")

    def _name(self, message: str) -> None:
        """Tell of a damaged sample, once, and of the first few only."""
        if message not in self._named and len(self._named) < _NAMED:
            self._named.add(message)
            log.warning("left out: %s", message)
