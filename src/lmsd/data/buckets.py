"""Batches of images that are no squares: buckets of about equal area, in an order that is stateless.

    sizes        sides in multiples of m, areas near S², ratios from 1/2 to 2; a sample goes to the size whose
                 log ratio of height to width is nearest to its own
    batches      of one bucket each, GB samples; bucket b with N_b samples gives in epoch e

                     n_b(e) = ⌊N_b (e + 1) / GB⌋ − ⌊N_b e / GB⌋

                 of them, in an order that is a keyed hash of (seed, e, batch); what is left over is
                 carried into the next epoch
    samples      the j-th batch of a bucket holds positions j·GB … (j + 1)·GB − 1 of the bucket's own endless
                 stream (`data.order`): every sample exactly once in each of its epochs

So batch number k gives (bucket, its batch) by arithmetic: nothing is dropped, padded or remembered, all
ranks have the same size at the same time, and to resume is to know a number.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmsd.data.index import Index
from lmsd.data.mixture import Mixture, Sources
from lmsd.data.order import Order, fold, step
from lmsd.data.shards import repeats_of
from lmsd.errors import UserError

Integers = NDArray[np.int64]
Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
LONGEST = 2.0
"""The largest ratio of the sides."""


def bucket_sizes(side: int, multiple: int) -> list[Size]:
    """The sizes of area about side², by height. Raises UserError for a multiple that does not divide side."""
    if side % multiple:
        raise UserError(f"data.train.buckets={multiple}: data.image_size={side} is no multiple of it")
    found = set[Size]()
    for short in range(multiple, side + 1, multiple):
        long = round(side * side / short / multiple) * multiple
        if long <= LONGEST * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


def bucket_of(heights: Integers, widths: Integers, sizes: Sequence[Size]) -> Integers:
    """The number of the size whose ratio is nearest, of every sample [n]."""
    ratios = np.log([height / width for height, width in sizes])
    own = np.log(heights / widths)
    return np.asarray(np.abs(own[:, None] - ratios).argmin(1), np.int64)


class Buckets:
    """Position in the endless stream → (shard, sample), all positions of a batch of one size.

    pictures: height and width of every sample of each shard, [n,2] each; sizes: of the buckets; batch_size:
    GB; repeats: how often samples of a shard come in an epoch; window, seed: see `Order`.
    """

    def __init__(
        self,
        pictures: Sequence[Integers],
        sizes: Sequence[Size],
        *,
        batch_size: int,
        repeats: Sequence[int],
        window: int,
        seed: int,
    ) -> None:
        every = [bucket_of(each[:, 0], each[:, 1], sizes) for each in pictures]
        used = np.unique(np.concatenate(every)).tolist()
        self.seed, self.batch_size = seed, batch_size
        self.sizes: list[Size] = [sizes[number] for number in used]
        self._samples = [[np.flatnonzero(each == number) for each in every] for number in used]
        self._orders = [
            Order([len(own) for own in samples], repeats=repeats, window=window, seed=seed + number)
            for number, samples in enumerate(self._samples)
        ]
        self.totals = np.asarray([order.total for order in self._orders], np.int64)

    def __call__(self, positions: ArrayLike) -> tuple[Integers, Integers]:
        """Shard and sample of every position (int64 [n], not negative), two int64 arrays [n]."""
        batch, slot = np.divmod(np.asarray(positions, np.int64), self.batch_size)
        shard, sample = np.empty_like(batch), np.empty_like(batch)
        for k in np.unique(batch).tolist():
            bucket, own = self.batch(k)
            at = batch == k
            shards, places = self._orders[bucket](own * self.batch_size + slot[at])
            pairs = zip(shards.tolist(), places.tolist(), strict=True)
            shard[at], sample[at] = shards, [self._samples[bucket][s][p] for s, p in pairs]
        return shard, sample

    def size(self, position: int) -> Size:
        """Height and width at a position: those of its batch."""
        bucket, _ = self.batch(position // self.batch_size)
        return self.sizes[bucket]

    def batch(self, number: int) -> tuple[int, int]:
        """The bucket of a batch, and which of the bucket's own batches it is."""
        epoch = number * self.batch_size // int(self.totals.sum())
        while int(self._before(epoch).sum()) > number:
            epoch -= 1
        while self._before(epoch + 1).sum() <= number:
            epoch += 1
        before = self._before(epoch)
        each = np.repeat(np.arange(len(self.totals)), self._before(epoch + 1) - before)
        keys = step(fold(self.seed, epoch, 3), np.arange(len(each)))
        mixed = each[np.argsort(keys, kind="stable")]
        place = number - int(before.sum())
        bucket = int(mixed[place])
        return bucket, int(before[bucket] + (mixed[:place] == bucket).sum())

    def _before(self, epoch: int) -> Integers:
        """How many batches of every bucket come before an epoch: ⌊N_b e / GB⌋."""
        return self.totals * epoch // self.batch_size

    def windows(self, positions: ArrayLike) -> list[tuple[int, ...]]:
        """Bucket, epoch and window at every position."""
        found: list[tuple[int, ...]] = []
        for position in np.atleast_1d(np.asarray(positions, np.int64)).tolist():
            bucket, own = self.batch(position // self.batch_size)
            place = own * self.batch_size + position % self.batch_size
            found.append((bucket, *self._orders[bucket].windows([place])[0]))
        return found

    def following(self, bucket: int, epoch: int, window: int) -> tuple[int, ...]:
        """The same bucket's next window."""
        return (bucket, *self._orders[bucket].following(epoch, window))

    def shards(self, bucket: int, epoch: int, window: int) -> list[int]:
        """The shards of a bucket's window that have samples in it."""
        found = self._orders[bucket].shards(epoch, window)
        return [shard for shard in found if len(self._samples[bucket][shard])]


class Ordering(TypedDict):
    """Numbers of an order; see `Order`."""

    window: int
    seed: int
    first: int | None


def ordered(
    index: Index,
    sources: Sources,
    *,
    sides: tuple[int, int | None],
    batch_size: int,
    of: Ordering,
    others: Mapping[str, object],
) -> Order | Mixture | Buckets:
    """The order of an index: that of its sources for sides (S, None), or buckets of (S, m).

    others: options that know one size alone. UserError if one of them is given with buckets, or what counts
    in one order.
    """
    side, multiple = sides
    if multiple is None:
        return sources.order(index, **of)
    given = {"data.train.first": of["first"], "data.weights": sources.weights, **others}
    taken = [name for name, value in given.items() if value]
    if taken:
        raise UserError(f"{taken[0]}= does not go with data.train.buckets=: leave one of them out")
    return Buckets(
        [index.shard(number).picture[:, :2].astype(np.int64) for number in range(len(index.shards))],
        bucket_sizes(side, multiple),
        batch_size=batch_size,
        repeats=[repeats_of(shard) for shard in index.shards],
        window=of["window"],
        seed=of["seed"],
    )
