"""The order of the endless stream: position → (epoch, shard, sample), a stateless function.

    e = p div N,  q = p mod N                          N samples in all
    shards of epoch e     sorted by h(seed, e, 1, shard)
    windows               runs of W consecutive shards of that order
    samples in a window   sorted by h(seed, e, 2, shard, sample)

h is a chain of SplitMix64 finalizers (Steele, Lea, Flood 2014), written in numpy's uint64 because the streams
of numpy's generators may change between versions. The order does not depend on ranks, workers or batches, so
every sample occurs exactly once an epoch however the work is divided, and resuming is a lookup.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmsd.errors import UserError

_PHI = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_KEPT = 4  # a batch may span two windows, and another loader may be elsewhere

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]


def mix64(x: Words) -> Words:
    """SplitMix64's finalizer on uint64, elementwise: a bijection."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def fold(*words: ArrayLike) -> Words:
    """Hash integers (arrays that broadcast) into uint64 keys, the same as `lmsd.rng.fold`."""
    key = np.zeros(1, np.uint64)
    for word in words:
        key = step(key, word)
    return key


def step(key: Words, word: ArrayLike) -> Words:
    """One link of `fold`: h(key, word)."""
    value = np.atleast_1d(np.asarray(word)).astype(np.uint64)
    return mix64(key * np.uint64(31) + value + _PHI)


class Order:
    """Position in the endless stream → (shard, sample).

    sizes: samples in each shard; repeats: how often each sample of a shard comes in an epoch (default: once);
    window: W, the number of shards shuffled together; seed: the key of the order; first: repeat the first so
    many positions. Raises UserError if there are no samples.
    """

    def __init__(
        self,
        sizes: Sequence[int] | Integers,
        *,
        repeats: Sequence[int] | None = None,
        window: int = 8,
        seed: int = 0,
        first: int | None = None,
    ) -> None:
        self.samples = np.asarray(sizes, np.int64)
        self.sizes = self.samples if repeats is None else self.samples * np.asarray(repeats, np.int64)
        self.window = window
        self.seed = seed
        self.first = first
        self.total = int(self.sizes.sum())
        if window < 1:
            raise UserError(
                f"data.train.window={window}: the number of shards shuffled together must be at least 1"
            )
        if self.total == 0:
            raise UserError(
                "the shards contain no samples: build them with `lmsd data build`, or name others"
            )

    def __call__(self, positions: ArrayLike) -> tuple[Integers, Integers]:
        """Shard and sample of every position (int64 [n], not negative), two int64 arrays [n]."""
        epoch, window, place = self._located(positions)
        shard, sample = np.empty_like(place), np.empty_like(place)
        for e, w in _pairs(epoch, window):
            at = (epoch == e) & (window == w)
            shards, samples = _window(self, e, w)
            shard[at], sample[at] = shards[place[at]], samples[place[at]]
        return shard, sample

    def size(self, position: int) -> tuple[int, int] | None:
        """None: all batches have one size (see `lmsd.data.buckets`)."""

    def windows(self, positions: ArrayLike) -> list[tuple[int, int]]:
        """The (epoch, window) pairs of the positions, in their order."""
        return _pairs(*self._located(positions)[:2])

    def _located(self, positions: ArrayLike) -> tuple[Integers, Integers, Integers]:
        """Epoch, window and place in the window of every position, [n] each."""
        place = np.asarray(positions, np.int64)
        epoch, place = np.divmod(place if self.first is None else place % self.first, self.total)
        window = np.empty_like(place)
        for e in np.unique(epoch).tolist():
            at, (_, starts) = epoch == e, _epoch(self, e)
            window[at] = np.searchsorted(starts, place[at], side="right") - 1
            place[at] -= starts[window[at]]
        return epoch, window, place

    def following(self, epoch: int, window: int) -> tuple[int, int]:
        """The window after a window, possibly in the next epoch."""
        _, starts = _epoch(self, epoch)
        return (epoch, window + 1) if window < len(starts) - 2 else (epoch + 1, 0)

    def shards(self, epoch: int, window: int) -> list[int]:
        """The shards of a window, in the epoch's order."""
        shards, _ = _epoch(self, epoch)
        return [int(shard) for shard in shards[window * self.window :][: self.window]]


@lru_cache(maxsize=_KEPT)
def _epoch(order: Order, epoch: int) -> tuple[Integers, Integers]:
    """The order of the shards; the first place of every window in the epoch, then N."""
    shards = np.argsort(step(fold(order.seed, epoch, 1), np.arange(len(order.sizes))), kind="stable")
    ends = np.concatenate([[0], np.cumsum(order.sizes[shards])])
    inner = ends[0 : len(order.sizes) : order.window]
    return shards, np.append(inner, order.total)


@lru_cache(maxsize=_KEPT)
def _window(order: Order, epoch: int, window: int) -> tuple[Integers, Integers]:
    """Shard and sample of every place in a window."""
    shards = np.asarray(order.shards(epoch, window))
    sizes = order.sizes[shards]
    keys = np.repeat(step(fold(order.seed, epoch, 2), shards), sizes)
    shard = np.repeat(shards, sizes)
    sample = np.arange(len(shard)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    mixed = np.argsort(step(keys, sample), kind="stable")
    return shard[mixed], sample[mixed] % order.samples[shard[mixed]]


def _pairs(epoch: Integers, window: Integers) -> list[tuple[int, int]]:
    """The distinct pairs, in their order."""
    return list(dict.fromkeys(zip(epoch.tolist(), window.tolist(), strict=True)))
