"""Memorization: how near generated samples lie to the training set, measured against held-out real samples.

    d_k(x): distance of x to its k-th nearest training sample;  ratio = med d_1(generated) / med d_1(held out)

An honest model is about as far from its training set as unseen real data are: the ratio is near 1. Two tests:

Copies. A copy is near to one training sample and not to that one's neighbors: t(x) = d_1(x)/d_5(x) tells it
from a sample of a dense region or a blurred one, whose distances shrink together. Let t_(r) be the r-th
smallest of m held-out values (r = m/100) and K the number of n generated ones below it. Where both are draws
of one continuous law, K is beta-binomial(n, r, m − r + 1) whatever that law is, so that P(K ≥ k) is an exact
p-value; a model of another law, with too much mass on a tight mode, may be flagged without a copy. Held-out
samples that lie on training samples do not count. Each seed is tested for itself and the smallest p
multiplied by their number (Bonferroni).

C_T (Meehan, Chaudhuri and Dasgupta 2020). In each cell of a partition of space, the Mann-Whitney z of d_1 of
the generated against the held-out samples in it; C_T is the mean of the z, weighted by the cells' held-out
shares. C_T ≪ 0: nearer to the training set than unseen data are, all over; it cannot tell copies from blur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.stats import betabinom, rankdata
from torch import Tensor

from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features

_CHUNK_CELLS = 1 << 24
"""Distances held at once (128 MiB of float64)."""

FALSE_ALARM = 0.001
"""Level of the test for copies: how often a model that draws from the data's own law is flagged."""

NEIGHBORS = 5
_TAIL = 0.01
_CELL = 50
"""Held-out samples to a cell of C_T, on average."""
_LEAST = 10


@dataclass(frozen=True)
class NeighborRatio:
    """Distances to the nearest training sample, generated over held-out.

    ratio: of the medians (1: as far as unseen data; → 0: copies); low: of the 5 % quantiles, where a few
    copies show first; closer: share of generated samples nearer to the training set than 99 % of held-out
    ones (0.01 expected).
    """

    ratio: float
    low: float
    closer: float


@dataclass(frozen=True)
class Memorization:
    """The nearest-neighbor ratio, both tests, and the closest pairs.

    p: of the test for copies; copies: share of generated samples in its tail beyond the expected one; c_t;
    pairs: (seed's place, generated row, training row), the most copy-like first.
    """

    near: NeighborRatio
    p: float
    copies: float
    c_t: float
    pairs: tuple[tuple[int, int, int], ...]

    @property
    def flagged(self) -> bool:
        """Whether the test for copies rejects at its level of 0.1 %."""
        return self.p < FALSE_ALARM


def nearest(x: Features, to: Features, *, k: int = 1) -> tuple[Tensor, Tensor]:
    """Distances [n,k], ascending, and rows [n,k] of the k rows of `to` [m,d] nearest to each of x [n,d].

    Neighbors are found by matrix products and their distances then taken by differences, so that a copy has
    distance 0 and not the square root of a rounding.
    """
    a, b = as_features(x, "x"), as_features(to, "to")
    if len(b) < k:
        raise UserError(f"{len(b)} training samples have no {k} nearest")
    chunk = max(1, _CHUNK_CELLS // len(b))
    exact = "donot_use_mm_for_euclid_dist" if a.shape[1] <= 16 else "use_mm_for_euclid_dist_if_necessary"
    found = []
    for part in a.split(chunk):
        rows = torch.cdist(part, b, compute_mode=exact).topk(k, dim=1, largest=False).indices
        found.append(torch.cat([_gaps(part, b, rows), rows.double()], dim=1))
    both = torch.cat(found)
    distances, order = both[:, :k].sort(dim=1, stable=True)
    return distances, both[:, k:].gather(1, order).long()


def _gaps(part: Tensor, to: Tensor, rows: Tensor) -> Tensor:
    """Distances [n,k] of each row to its k neighbors, one neighbor at a time."""
    gaps = [(part - to[rows[:, place]]).square().sum(dim=1).sqrt() for place in range(rows.shape[1])]
    return torch.stack(gaps, dim=1)


def nearest_distances(x: Features, to: Features) -> Tensor:
    """Euclidean distance [n], float64, of each row of `x` [n,d] to the nearest row of `to` [m,d]."""
    return nearest(x, to)[0][:, 0]


def nearest_neighbor_ratio(generated: Features, train: Features, held_out: Features) -> NeighborRatio:
    """Nearest-training-neighbor distances of generated against held-out samples (module formula).

    All three are arrays [n,d] in one space. Where held-out samples lie on training samples (duplicates across
    the splits) the ratio has no meaning and comes out infinite.
    """
    return _ratio(nearest_distances(generated, train), nearest_distances(held_out, train))


def _ratio(fake: Tensor, real: Tensor) -> NeighborRatio:
    quantiles = torch.tensor([0.05, 0.5], dtype=torch.float64, device=fake.device)
    low, middle = (fake.quantile(quantiles) / real.quantile(quantiles)).tolist()
    return NeighborRatio(ratio=middle, low=low, closer=float((fake < real.quantile(_TAIL)).double().mean()))


def memorization(
    generated: Sequence[Features], train: Features, held_out: Features, *, pairs: int = 16
) -> Memorization:
    """Both tests (module text): an array [n,d] for each seed against training [N,d] and held-out [m,d].

    p is nan where every held-out sample lies on a training sample.
    Raises UserError where the training set has fewer than five samples.
    """
    real, _ = nearest(held_out, train, k=NEIGHBORS)
    found = [nearest(each, train, k=NEIGHBORS) for each in generated]
    first = torch.cat([distances[:, 0] for distances, _ in found])
    likeness = [_relative(distances) for distances, _ in found]
    unseen = _relative(real)[real[:, 0] > 0.0]
    tests = [_exceedance(one, unseen) for one in likeness]
    every = torch.cat(likeness)
    closest = every.argsort(stable=True)[:pairs].tolist()
    n = len(likeness[0])
    return Memorization(
        near=_ratio(first, real[:, 0]),
        p=min(len(tests) * min(p for p, _ in tests), 1.0),
        copies=max(0.0, sum(excess for _, excess in tests) / len(tests)),
        c_t=_c_t(torch.cat([as_features(each) for each in generated]), first, held_out, real[:, 0], train),
        pairs=tuple((row // n, row % n, int(found[row // n][1][row % n, 0])) for row in closest),
    )


def _relative(distances: Tensor) -> Tensor:
    """T = d_1 / d_5; 0 where both are 0 (five equal training samples and their copy)."""
    return distances[:, 0] / distances[:, -1].clamp(min=torch.finfo(torch.float64).tiny)


def _exceedance(generated: Tensor, held_out: Tensor) -> tuple[float, float]:
    """(p-value, share beyond the expected one) of generated values below the held-out tail (module text)."""
    n, m = len(generated), len(held_out)
    if not m:
        return math.nan, 0.0
    r = max(1, round(_TAIL * m))
    count = int((generated < held_out.sort().values[r - 1]).sum())
    return float(betabinom.sf(count - 1, n, r, m - r + 1)), count / n - r / (m + 1)


def _c_t(fakes: Tensor, fake: Tensor, held_out: Features, real: Tensor, train: Features) -> float:
    """C_T (module text), its cells by k-means of the training set; nan where every cell is too thin."""
    points = as_features(train, "train")
    cells = max(1, min(len(real) // _CELL, len(points) // _CELL, 20))
    centers = points.mean(dim=0, keepdim=True)
    if cells > 1:
        some = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:10_000]]
        centers = torch.from_numpy(kmeans2(some.numpy(), cells, minit="++", seed=0)[0])
    one, other = (torch.cdist(each, centers).argmin(dim=1) for each in (fakes, as_features(held_out)))
    total = weight = 0.0
    for cell in range(cells):
        a, b = fake[one == cell].numpy(), real[other == cell].numpy()
        if min(len(a), len(b)) >= _LEAST:
            total, weight = total + len(b) * _mann_whitney(a, b), weight + len(b)
    return total / weight if weight else math.nan


def _mann_whitney(a: np.ndarray, b: np.ndarray) -> float:  # type: ignore[type-arg]
    """Z of the rank sum of a among a and b: positive where a is larger."""
    n, m = len(a), len(b)
    ranks = rankdata(np.concatenate([a, b]))[:n].sum()
    return float((ranks - n * (n + m + 1) / 2) / math.sqrt(n * m * (n + m + 1) / 12))
