"""Memorization: how near generated samples lie to the training set, measured against held-out real samples.

    d_k(x): distance of x to its k-th nearest training sample;  ratio = med d_1(generated) / med d_1(held out)

An honest model is about as far from its training set as unseen real data are: the ratio is near 1. Two tests:

Distances that rounding alone can make (the same picture in two batches) are 0, and a held-out sample at
distance 0, which was trained on, is left out of everything: it would hide what it stands for.

Copies. A copy is near to one training sample and not to that one's neighbors: t(x) = d_1(x)/d_5(x) tells it
from a sample of a dense region or a blurred one, whose distances shrink together. Let t_(r) be the r-th
smallest of m held-out values (r = m/100) and K the number of n generated ones below it. Where both are draws
of one continuous law, K is beta-binomial(n, r, m − r + 1) whatever that law is, so that P(K ≥ k) is an exact
p-value; a model of another law, with too much mass on a tight mode, may be flagged without a copy. Each seed
is tested for itself and the smallest p multiplied by their number (Bonferroni). The share of copies is K/n
less the level λ of t_(r). With p, l, u of K/n (Wilson) and q, a, b of λ (Beta(r, m − r + 1)) its interval has
the ends p − q − √((p − l)² + (b − q)²) and p − q + √((u − p)² + (q − a)²) (Zou and Donner 2008).

C_T (Meehan, Chaudhuri and Dasgupta 2020). In each cell of a partition of space, the Mann-Whitney z of d_1 of
the generated against the held-out samples in it; C_T is the mean of the z, weighted by the cells' held-out
shares. C_T ≪ 0: nearer to the training set than unseen data are, all over; it cannot tell copies from blur.

Intervals are for this training set. Given it, a distance is a number of its sample alone, so that drawing
rows with replacement (the seeds of a prompt and its held-out image together) adds no false neighbors: those
of the ratio's quantiles are the bootstrap's percentiles. C_T, a U-statistic in each cell, has a jackknife.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.stats import beta, betabinom, rankdata
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features, of_one_width
from lmsd.metrics.intervals import GROUPS, Interval, clustered_share, jackknife_half_width

_CHUNK_CELLS = 1 << 24
"""Distances held at once (128 MiB of float64)."""

FALSE_ALARM = 0.001
"""Level of the test for copies: how often a model that draws from the data's own law is flagged."""

NEIGHBORS = 5
_TAIL = 0.01
_CELL = 50
"""Held-out samples to a cell of C_T, on average."""
_LEAST = 10
_QUANTILES = torch.tensor([_TAIL, 0.05, 0.5], dtype=torch.float64)
_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


_SAME = 1e-3
"""Distances below this share of the training features' length (root mean square) are 0: TF32's ten bits."""
_RESAMPLES = 400


@dataclass(frozen=True)
class NeighborRatio:
    """Distances to the nearest training sample, generated over held-out.

    ratio: of the medians (1: as far as unseen data; → 0: copies); low: of the 5 % quantiles, where a few
    copies show first; closer: share of generated samples nearer to the training set than 99 % of held-out
    ones (0.01 expected).
    """

    ratio: Interval
    low: Interval
    closer: Interval


@dataclass(frozen=True)
class Memorization:
    """The nearest-neighbor ratio, both tests, and the closest pairs.

    p: of the test for copies; copies: share of generated samples in its tail beyond the expected one; c_t;
    pairs: (seed's place, generated row, training row), the most copy-like first; twins: held-out samples that
    lie on training samples. What has no unseen held-out sample to stand on is nan.
    """

    near: NeighborRatio
    p: float
    copies: Interval
    c_t: Interval
    pairs: tuple[tuple[int, int, int], ...]
    twins: int = 0

    @property
    def flagged(self) -> bool:
        """Whether the test for copies rejects at its level of 0.1 %."""
        return self.p < FALSE_ALARM


@explained
def nearest(x: Features, to: Features, *, k: int = 1) -> tuple[Tensor, Tensor]:
    """Distances [n,k], ascending, and rows [n,k] of the k rows of `to` [m,d] nearest to each of x [n,d].

    Neighbors are found by matrix products and their distances then taken by differences, so that a copy has
    distance 0 and not the square root of a rounding.
    """
    a, b = of_one_width(x, to, ("x", "to"))
    if k < 1:
        raise UserError(f"k={k}: neighbors are counted from 1")
    if len(b) < k:
        raise UserError(f"{len(b)} training samples have no {k} nearest")
    chunk = max(1, _CHUNK_CELLS // len(b))
    lengths = b.square().sum(dim=1)[None]
    found = []
    for part in a.split(chunk):
        if a.shape[1] <= 16:
            gaps = torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            gaps = torch.addmm(lengths, part, b.T, alpha=-2.0)  # squared, but for what a row has in common
        rows = gaps.topk(k, dim=1, largest=False).indices
        found.append(torch.cat([_gaps(part, b, rows), rows.double()], dim=1))
    both = torch.cat(found)
    distances, order = both[:, :k].sort(dim=1, stable=True)
    return distances, both[:, k:].gather(1, order).long()


def _gaps(part: Tensor, to: Tensor, rows: Tensor) -> Tensor:
    """Distances [n,k] of each row to its k neighbors, one neighbor at a time."""
    gaps = [(part - to[rows[:, place]]).square().sum(dim=1).sqrt() for place in range(rows.shape[1])]
    return torch.stack(gaps, dim=1)


def _snapped(distances: Tensor, train: Features) -> Tensor:
    """Distances, 0 where they are no more than rounding (module text)."""
    length = as_features(train, "train").square().sum(dim=1).mean().sqrt()
    return torch.where(distances <= _SAME * length, 0.0, distances)


def _unseen(real: Tensor) -> Tensor:
    """Distances [m] of held-out samples, nan for those that lie on training samples."""
    return torch.where(real > 0.0, real, torch.nan)


def _ratio(fake: Tensor, real: Tensor) -> NeighborRatio:
    """Of distances [n,s] of generated and [m] of held-out samples, row i to row i where n = m; nan: none."""
    generator = torch.Generator().manual_seed(0)
    (n, m), drawn = (len(fake), len(real)), []
    for part in torch.arange(_RESAMPLES).split(max(1, _CHUNK_CELLS // (4 * fake.numel() + 4 * m))):
        rows = torch.randint(n, (len(part), n), generator=generator)
        others = rows if n == m else torch.randint(m, (len(part), m), generator=generator)
        drawn.append(_compared(fake[rows].flatten(1), real[others]))
    ends = torch.cat(drawn).nanquantile(_ENDS, dim=0)
    found = zip(_compared(fake.flatten()[None], real[None])[0].tolist(), *ends.tolist(), strict=True)
    return NeighborRatio(*(Interval(value, min(low, value), max(high, value)) for value, low, high in found))


def _compared(fake: Tensor, real: Tensor) -> Tensor:
    """[r,3] of distances [r,n] and [r,m]: quotients of medians and 5 % quantiles, share below real's 1 %."""
    tail, *theirs = real.nanquantile(_QUANTILES, dim=1)
    ours = fake.quantile(_QUANTILES[1:], dim=1)
    low, middle = (one / other for one, other in zip(ours, theirs, strict=True))
    closer = (fake < tail[:, None]).double().mean(dim=1).where(~tail.isnan(), torch.nan)
    return torch.stack([middle, low, closer], dim=1)


@explained
def memorization(
    generated: Sequence[Features], train: Features, held_out: Features, *, pairs: int = 16
) -> Memorization:
    """Both tests (module text): an array [n,d] for each seed against training [N,d] and held-out [m,d].

    Where n = m, row i of all of them shares a prompt. Raises UserError where the training set has fewer than
    five samples.
    """
    points = as_features(train, "train")
    shapes = {tuple(each.shape) for each in generated}
    if len(shapes) != 1:
        raise UserError(f"generated arrays, one a seed, must be alike and at least one, not {sorted(shapes)}")
    real = _snapped(nearest(held_out, points, k=NEIGHBORS)[0], points)
    found = [nearest(each, points, k=NEIGHBORS) for each in generated]
    likeness = torch.stack([_relative(_snapped(distances, points)) for distances, _ in found], dim=1)
    first = torch.stack([_snapped(distances[:, 0], points) for distances, _ in found], dim=1)
    seen = real[:, 0] == 0.0
    p, copies = _copies(likeness, _relative(real)[~seen])
    closest = likeness.T.flatten().argsort(stable=True)[:pairs].tolist()
    n = len(likeness)
    return Memorization(
        near=_ratio(first, _unseen(real[:, 0])),
        p=p,
        copies=copies,
        c_t=_c_t(generated, first, held_out, _unseen(real[:, 0]), points),
        pairs=tuple((row // n, row % n, int(found[row // n][1][row % n, 0])) for row in closest),
        twins=int(seen.sum()),
    )


def _relative(distances: Tensor) -> Tensor:
    """T = d_1 / d_5; 0 where both are 0 (five equal training samples and their copy)."""
    return distances[:, 0] / distances[:, -1].clamp(min=torch.finfo(torch.float64).tiny)


def _copies(generated: Tensor, held_out: Tensor) -> tuple[float, Interval]:
    """The test's p and the share of copies, from likenesses [n,s] and those of unseen images [m]."""
    n, m = len(generated), len(held_out)
    if not m:
        return math.nan, Interval(math.nan, math.nan, math.nan)
    r = max(1, round(_TAIL * m))
    hits = generated < held_out.sort().values[r - 1]
    p = min(_exceedance(int(count), n, m) for count in hits.sum(dim=0)) * hits.shape[1]
    share, level = clustered_share(hits), r / (m + 1)
    under, over = (float(beta.ppf(end, r, m - r + 1)) for end in (0.025, 0.975))
    low = math.hypot(share.value - share.low, over - level)
    high = math.hypot(share.high - share.value, level - under)
    ends = (share.value - level, share.value - level - low, share.value - level + high)
    return min(p, 1.0), Interval(*(max(0.0, end) for end in ends))


def _exceedance(count: int, n: int, m: int) -> float:
    """P(K ≥ count) of n generated values below the tail of m held-out ones (module text)."""
    r = max(1, round(_TAIL * m))
    return float(betabinom.sf(count - 1, n, r, m - r + 1))


def _c_t(
    fakes: Sequence[Features], fake: Tensor, held_out: Features, real: Tensor, points: Tensor
) -> Interval:
    """C_T (module text) of distances [n,s] and [m], cells by k-means of the training set; nan: all thin."""
    cells = max(1, min(len(real) // _CELL, len(points) // _CELL, 20))
    centers = points.mean(dim=0, keepdim=True)
    if cells > 1:
        some = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:10_000]]
        centers = torch.from_numpy(kmeans2(some.numpy(), cells, minit="++", seed=0)[0])
    own = torch.stack([torch.cdist(as_features(each), centers).argmin(dim=1) for each in fakes], dim=1)
    other = torch.cdist(as_features(held_out), centers).argmin(dim=1).where(~real.isnan(), -1)
    thick = [c for c in range(cells) if min(int((own == c).sum()), int((other == c).sum())) >= _LEAST]
    if not thick:
        return Interval(math.nan, math.nan, math.nan)
    value = _mean_z(own, fake, other, real, thick)
    one, two = torch.arange(len(fake)) % GROUPS, torch.arange(len(real)) % GROUPS
    without = [
        _mean_z(own[one != group], fake[one != group], other[two != group], real[two != group], thick)
        for group in range(GROUPS)
    ]
    half = jackknife_half_width(without)
    return Interval(value, value - half, value + half)


def _mean_z(own: Tensor, fake: Tensor, other: Tensor, real: Tensor, cells: Sequence[int]) -> float:
    """Mean z over the cells that samples lie in (own [n,s], other [m]), weighted by held-out samples."""
    total = weight = 0.0
    for cell in cells:
        a, b = fake[own == cell].numpy(), real[other == cell].numpy()
        if min(len(a), len(b)):
            total, weight = total + len(b) * _mann_whitney(a, b), weight + len(b)
    return total / weight if weight else math.nan


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    """Z of the rank sum of a among a and b: positive where a is larger."""
    n, m = len(a), len(b)
    ranks = rankdata(np.concatenate([a, b]))[:n].sum()
    return float((ranks - n * (n + m + 1) / 2) / math.sqrt(n * m * (n + m + 1) / 12))
