"""The training stream for a plain DataLoader: arrays of positions in, batches out.

The k-th global batch holds the positions p₀ + k·GB … p₀ + (k+1)·GB − 1; rank r of R takes the r-th of R
equal runs of it and delivers it in K equal runs, one after the other. A whole run is decoded by one call, so
the loader's own cost arises once a batch, and the data set does not depend on ranks, workers or where it
started.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from lmsd.data.buckets import Buckets
from lmsd.data.latents import Latents
from lmsd.data.mixture import Mixture
from lmsd.data.order import Order
from lmsd.data.reader import Reader
from lmsd.data.transforms import flip, flips, jitter, scale
from lmsd.errors import UserError
from lmsd.ranks import shares
from lmsd.rng import Rng
from lmsd.types import Batch

OnError: TypeAlias = Literal["stop", "skip"]
Integers = NDArray[np.int64]

ENDLESS = 1 << 40
"""The length of the stream for Lightning: one epoch that never ends."""


class Positions(Sampler[Integers]):
    """The positions of one rank's micro-batches from `start` on: int64 arrays of equal length."""

    def __init__(
        self, start: int, *, batch_size: int, world: int = 1, rank: int = 0, micro_batches: int = 1
    ) -> None:
        shares(batch_size, world, micro_batches)
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} is outside a world of {world}")
        self.start = start
        self.batch_size = batch_size
        self.world = world
        self.rank = rank
        self.micro_batches = micro_batches

    def __iter__(self) -> Iterator[Integers]:
        count = self.batch_size // self.world // self.micro_batches
        first = self.start + self.rank * count * self.micro_batches
        while True:
            for k in range(self.micro_batches):
                yield np.arange(first + k * count, first + (k + 1) * count)
            first += self.batch_size

    def __len__(self) -> int:
        return ENDLESS


class Stream(Dataset[Batch]):
    """Positions → Batch, augmented by position.

    flip: mirror half of the images; color: strength of the color change, 0 for none; on_error: "skip"
    replaces a damaged sample by that of the next position, and the batch says which ones in
    `extra["substituted"]` (int64 [B]: the sample's number in the split plus 1, 0 for none); ahead: called
    with the shards that come next; latents: read in place of images.
    """

    def __init__(
        self,
        order: Order | Mixture | Buckets,
        reader: Reader,
        *,
        flip: bool = False,
        color: float = 0.0,
        on_error: OnError = "stop",
        ahead: Callable[[list[int]], None] | None = None,
        latents: Latents | None = None,
    ) -> None:
        self.order = order
        self.reader = reader
        self._flip = flip
        self._color = color
        self._on_error = on_error
        self._ahead = ahead
        self._latents = latents
        self._window: tuple[int, ...] | None = None

    def __getitem__(self, positions: Integers) -> Batch:
        if not isinstance(positions, np.ndarray):
            raise UserError(
                "the training stream is addressed by positions: set use_distributed_sampler=False"
            )
        if self._ahead is not None:
            self._look_ahead(positions, self._ahead)
        shard, sample = self.order(positions)
        position = torch.from_numpy(positions)
        rng = Rng(self.order.seed, position)
        if self._latents is not None:
            return self._encoded(self._latents, shard, sample, rng)
        skip = self._on_error == "skip"
        found = self.reader.read(
            shard,
            sample,
            substitute=partial(self._after, positions) if skip else None,
            u=self._lines(rng),
            size=self.order.size(int(positions[0])),
        )
        x = scale(found.pixels)
        if self._flip:
            x = flip(x, rng)
        if self._color:
            x = jitter(x, rng, self._color)
        label = None if found.label is None else torch.from_numpy(found.label)
        numbers = self.reader.index.numbers(shard, sample)
        extra = {"substituted": torch.from_numpy((numbers + 1) * found.substituted)} if skip else {}
        pictures = {name: self._picture(name, found.places, rng) for name in self.reader.form.images}
        return Batch(x, position, found.text, label, {**extra, **pictures})

    def _picture(self, name: str, places: tuple[Integers, Integers], rng: Rng) -> torch.Tensor:
        """A further picture of the samples, mirrored and colored as x is."""
        x = scale(self.reader.pictures(name, *places))
        if self._flip:
            x = flip(x, rng)
        return jitter(x, rng, self._color) if self._color else x

    def _lines(self, rng: Rng) -> list[float] | None:
        """Which line of every caption is drawn, if one is."""
        return rng.uniform((), "data.caption").tolist() if self.reader.form.lines == "draw" else None

    def _encoded(self, latents: Latents, shard: Integers, sample: Integers, rng: Rng) -> Batch:
        """The batch of the same samples from the cache of latents."""
        mirrored = flips(rng).numpy() if self._flip else np.zeros(len(shard), np.bool_)
        mean, spread = latents(shard, sample, mirrored)
        text = self.reader.captions(shard, sample, self._lines(rng)) if self.reader.form.caption else None
        return Batch(
            mean,
            rng.position,
            text,
            torch.from_numpy(self.reader.labels(shard, sample)) if self.reader.index.labels else None,
            encoded=True,
            spread=spread,
        )

    def _after(self, positions: Integers, slot: int, attempt: int) -> tuple[Integers, Integers]:
        return self.order(positions[slot : slot + 1] + attempt)

    def _look_ahead(self, positions: Integers, ahead: Callable[[list[int]], None]) -> None:
        window = self.order.windows(positions[-1:])[0]
        if window != self._window:
            self._window = window
            ahead(self.order.shards(*window) + self.order.shards(*self.order.following(*window)))
