"""One split as a sequence: images, captions and classes by number, without augmentation."""

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

    hash identifies the data and their preparation, for statistics that are kept between runs.
    """

    def __init__(self, split: Split, reader: Reader) -> None:
        self.split = split
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader.index)

    @property
    def hash(self) -> str:
        """sha256 of the index, the image size, the channels and the methods of resizing and decoding."""
        index, form = self._reader.index, self._reader.form
        words: tuple[object, ...] = (index.hash, form.image_size, form.channels, form.caption, RECIPE)
        if index.changed and not form.old:
            words = (*words, "decode-2")
        if form.lines != "join":
            words = (*words, form.lines)
        return hashlib.sha256(repr(words).encode()).hexdigest()

    def images(self, indices: Indices) -> Tensor:
        """Images float32 [n,C,H,W] in [-1,1]. Raises UserError for a damaged sample or an index outside."""
        return scale(self._reader.read(*self._places(indices)).pixels)

    def captions(self, indices: Indices) -> list[str]:
        """Captions. Raises UserError if the data have none."""
        if self._reader.form.caption is None:
            raise UserError(f"the {self.split} shards have no captions, only classes")
        return self._reader.captions(*self._places(indices))

    def labels(self, indices: Indices) -> Tensor | None:
        """Classes int64 [n], or None if the data have none."""
        if not self._reader.index.labels:
            return None
        return torch.from_numpy(self._reader.labels(*self._places(indices)))

    def batch(self, rows: Indices) -> Batch:
        """Samples as a batch, with their numbers as positions and the captions and classes that they have."""
        return Batch(
            self.images(rows),
            torch.as_tensor(rows),
            self.captions(rows) if self._reader.form.caption else None,
            self.labels(rows),
            self.pictures(rows),
        )

    def pictures(self, indices: Indices) -> dict[str, Tensor]:
        """Further pictures of samples by name (data.images), float32 [n,C,H,W] in [-1,1] each."""
        reader = self._reader
        return {name: scale(reader.pictures(name, *self._places(indices))) for name in reader.form.images}

    def _places(self, indices: Indices) -> tuple[Integers, Integers]:
        numbers = np.asarray(indices, np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise UserError(f"the {self.split} split has {len(self)} samples: an index is outside")
        return self._reader.index.places(numbers)
