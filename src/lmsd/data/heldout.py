"""One split as a sequence: images, captions and classes by number, nothing augmented."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsd.data.reader import Reader
from lmsd.data.shards import Split
from lmsd.data.transforms import RECIPE, scale
from lmsd.errors import UserError
from lmsd.types import Batch

Integers = NDArray[np.int64]
Indices = Sequence[int] | Tensor | Integers | range


class HeldOut:
    """A split by number, in the order of its shards (which may be sorted by content: draw indices at random).

    hash names the data and how they are prepared, for statistics kept from run to run.
    """

    def __init__(self, split: Split, reader: Reader) -> None:
        self.split = split
        self._reader = reader
        self._ends = np.cumsum(reader.index.sizes)

    def __len__(self) -> int:
        return len(self._reader.index)

    @property
    def hash(self) -> str:
        """sha256 of the index, the image size, the channels and the ways of fitting and decoding."""
        reader = self._reader
        words: tuple[object, ...] = (
            reader.index.hash,
            reader.image_size,
            reader.channels,
            reader.caption,
            RECIPE,
        )
        if reader.index.changed and not reader.old:
            words = (*words, "decode-2")
        if reader.lines != "join":
            words = (*words, reader.lines)
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def images(self, indices: Indices) -> Tensor:
        """Images float32 [n,C,H,W] in [-1,1]. Raises UserError for a damaged sample or an index outside."""
        return scale(self._reader.read(*self._places(indices)).pixels)

    def captions(self, indices: Indices) -> list[str]:
        """Captions. Raises UserError when the data have none."""
        if self._reader.caption is None:
            raise UserError(f"the {self.split} shards have no captions, only classes")
        return self._reader.captions(*self._places(indices))

    def labels(self, indices: Indices) -> Tensor | None:
        """Classes int64 [n], or None when the data have none."""
        if not self._reader.index.labels:
            return None
        return torch.from_numpy(self._reader.labels(*self._places(indices)))

    def batch(self, rows: Indices) -> Batch:
        """Samples as a batch whose positions are their numbers, captions and classes where there are any."""
        text = None if self._reader.caption is None else self.captions(rows)
        return Batch(self.images(rows), torch.as_tensor(rows), text, self.labels(rows))

    def _places(self, indices: Indices) -> tuple[Integers, Integers]:
        numbers = np.asarray(indices, np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise UserError(f"the {self.split} split has {len(self)} samples: an index is outside")
        shard = np.searchsorted(self._ends, numbers, side="right")
        return shard, numbers - (self._ends - self._reader.index.sizes)[shard]
