"""Several sources in one endless stream, by weights: position → (source, its own position), stateless.

    n_1(p) = ⌊w₁ p⌋                    positions below p that are the first source's
    n_2(p) = ⌊w₂/(1 − w₁) (p − n_1(p))⌋,  and so on: the others share what is left

Position p is the first source's where n_1(p + 1) > n_1(p), and then its own position n_1(p); so each source
is read in its own order (`data.order`), every sample exactly once in the source's own epoch, whatever the
weights, ranks, batches or restarts. Weights are fractions of whole numbers, so nothing is lost to rounding:
of p positions a source has w p, up to as many as there are sources.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmsd.data.index import Index
from lmsd.data.order import Order
from lmsd.data.shards import Source, by_split, repeats_of, resolve, words_of
from lmsd.errors import UserError

Integers = NDArray[np.int64]
FINEST = 1_000
"""Weights are multiples of its reciprocal."""


def shares_of(weights: Sequence[float]) -> list[Fraction]:
    """Weights as fractions of sum 1, in their proportions. Raises UserError for what is not positive."""
    if not weights or not all(np.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"data.weights={list(weights)}: each source takes a number above 0")
    whole = [round(FINEST * weight / sum(weights)) for weight in weights]
    if min(whole) < 1:
        raise UserError(f"data.weights={list(weights)}: a source has less than one sample in {FINEST:,}")
    return [Fraction(each, sum(whole)) for each in whole]


def length_of(index: Index) -> int:
    """Positions of an epoch of one stream: samples, each as often as its shard's name says."""
    pairs = zip(index.sizes.tolist(), index.shards, strict=True)
    return sum(size * repeats_of(name) for size, name in pairs)


class Sources:
    """What `data.shards=` names: one stream of all shards, or several sources that are mixed by weights.

    shards: as in `data.shards=`, a source for each word; weights: of these, None for one stream. Raises
    UserError for another number of weights than of sources, and for sources without train shards.
    """

    def __init__(self, shards: Source, weights: Sequence[float] | None) -> None:
        self.weights = None if weights is None else list(weights)
        if self.weights is None:
            return
        words = words_of(shards)
        if len(words) != len(self.weights):
            raise UserError(
                f"data.weights has {len(self.weights)} numbers and data.shards {len(words)} sources: one for "
                "each, data.shards=[A, B] data.weights=[0.7, 0.3]"
            )
        shares_of(self.weights)
        train = set(by_split(resolve(shards))["train"])  # of all together, which may tell more than one alone
        self.names = [[name for name in resolve(word) if name in train] for word in words]
        for word, names in zip(words, self.names, strict=True):
            if not names:
                raise UserError(f"data.weights: {word} has no train shards to mix: leave it out")

    def order(self, index: Index, *, window: int, seed: int, first: int | None) -> "Order | Mixture":
        """The order of an index; see `Order` for the numbers. Raises UserError for `first` with weights."""
        if self.weights is None:
            repeats = [repeats_of(shard) for shard in index.shards]
            return Order(index.sizes, repeats=repeats, window=window, seed=seed, first=first)
        if first is not None:
            raise UserError("data.train.first counts in one order, and data.weights mixes several: leave one")
        own = {"sources": self.names, "weights": self.weights}
        return Mixture(index.shards, index.sizes, **own, window=window, seed=seed)  # type: ignore[arg-type]

    def state(self, index: Index) -> dict[str, list[list[float]]]:
        """Weight and samples of every source, for a checkpoint; nothing for one stream."""
        if self.weights is None:
            return {}
        sizes = dict(zip(index.shards, index.sizes.tolist(), strict=True))
        counts = [sum(sizes[name] for name in names) for names in self.names]
        return {"sources": [[float(w), float(n)] for w, n in zip(self.weights, counts, strict=True)]}


class Mixture:
    """Positions → (shard, sample) of several sources; see the module. As `Order`, of which it has one each.

    shards: names in the order of their index; sizes: samples of each; sources: which of them belong together;
    weights: of the sources; window, seed: of each order.
    """

    def __init__(
        self,
        shards: Sequence[str],
        sizes: Integers,
        *,
        sources: Sequence[Sequence[str]],
        weights: Sequence[float],
        window: int,
        seed: int,
    ) -> None:
        place = {name: number for number, name in enumerate(shards)}
        self.numbers = [np.asarray([place[name] for name in names], np.int64) for names in sources]
        self.orders = [
            Order(sizes[own], repeats=[repeats_of(n) for n in names], window=window, seed=seed)
            for own, names in zip(self.numbers, sources, strict=True)
        ]
        self.seed, self.shares = seed, shares_of(weights)

    def __call__(self, positions: ArrayLike) -> tuple[Integers, Integers]:
        """Shard and sample of every position (int64 [n], not negative), two int64 arrays [n]."""
        source, own = self.located(positions)
        shard, sample = np.empty_like(own), np.empty_like(own)
        for number, order in enumerate(self.orders):
            at = source == number
            if at.any():
                within, sample[at] = order(own[at])
                shard[at] = self.numbers[number][within]
        return shard, sample

    def located(self, positions: ArrayLike) -> tuple[Integers, Integers]:
        """The source of every position, and its own position there, [n] each."""
        left = np.asarray(positions, np.int64).copy()
        source, own = np.full_like(left, len(self.shares) - 1), left.copy()
        free, rest = np.ones(left.shape, bool), Fraction(1)
        for number, share in enumerate(self.shares[:-1]):
            ratio = share / rest
            before = left * ratio.numerator // ratio.denominator
            mine = free & ((left + 1) * ratio.numerator // ratio.denominator > before)
            source[mine], own[mine] = number, before[mine]
            free, rest, left = free & ~mine, rest - share, left - before
        own[free] = left[free]
        return source, own

    def size(self, position: int) -> tuple[int, int] | None:
        """None, as in `Order`."""

    def windows(self, positions: ArrayLike) -> list[tuple[int, ...]]:
        """Epoch and window of every source at the positions, one after the other."""
        return [
            tuple(
                number
                for order, count in zip(self.orders, self._counts(int(place)), strict=True)
                for number in order.windows([count])[0]
            )
            for place in np.atleast_1d(np.asarray(positions, np.int64))
        ]

    def _counts(self, position: int) -> Iterator[int]:
        """How many positions of every source come before a position."""
        left, rest = position, Fraction(1)
        for share in self.shares[:-1]:
            count = int(left * (share / rest))
            yield count
            left, rest = left - count, rest - share
        yield left

    def following(self, *windows: int) -> tuple[int, ...]:
        """The windows after these, of every source."""
        each = zip(self.orders, windows[::2], windows[1::2], strict=True)
        return tuple(number for order, e, w in each for number in order.following(e, w))

    def shards(self, *windows: int) -> list[int]:
        """The shards of these windows, of every source."""
        each = zip(self.orders, self.numbers, windows[::2], windows[1::2], strict=True)
        return [int(own[shard]) for order, own, e, w in each for shard in order.shards(e, w)]
