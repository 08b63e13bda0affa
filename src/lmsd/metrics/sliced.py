"""The sliced Wasserstein ratio: how far generated images lie from real ones, over how far real ones do.

    SW₂²(x, y) = mean_u mean_i ((u·x)_(i) − (u·y)_(i))²         (Bonneel et al. 2015; (i): in ascending order)
    ratio      = √(SW₂²(generated, real A) / SW₂²(real B, real A)),    1 where p_model = p_data

u runs over 1,000 fixed unit vectors, and features are whitened first, so that every direction of the training
images' features weighs the same and no few large ones hide the others. It compares whole marginals where FD
compares two moments. Both terms have the same bias in n because all three sets are of one size: A and B are
label-matched halves of the held-out rows, and the generated images are those of B's captions.

    ratio² = mean_{h,s} ½ [SW₂²(F_s[b_h], R[a_h]) + SW₂²(F_s[a_h], R[b_h])] / mean_h SW₂²(R[b_h], R[a_h])

over random halvings h and seeds s. The interval is the jackknife's over 20 groups of rows, in logarithms;
what leaving a group out changes is read on every fourth direction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features, gaussian_statistics
from lmsd.metrics.infinity import firsts, means_of
from lmsd.metrics.intervals import GROUPS, Score, jackknife
from lmsd.metrics.matching import dealt

PROJECTIONS = 1_000
"""Directions behind every value, the same for every call at one width."""
_LEFT_OUT = 4
"""One in so many directions stands for all where a group is left out."""
_HALVINGS, _ROWS = 8, 20_000
"""Random halvings at most, and how many rows they go through in all: more do not steady a large n further."""
_DEAD = 1e-8
"""Below this share of the largest variance a direction is constant on the training images, and left out."""


@dataclass(frozen=True)
class Whitening:
    """x → (x − mean) map, of unit covariance on the training images; mean [d], map [d,k], float64."""

    mean: Tensor
    map: Tensor

    def __call__(self, x: Features) -> Tensor:
        """Whitened features [n,k], float64."""
        return (as_features(x) - self.mean) @ self.map


@explained
def whitening(train: Features) -> Whitening:
    """What makes the covariance of features [n,d] the identity, but for directions without variance.

    Fewer rows than features have only so many directions. Raises UserError where no feature varies.
    """
    mean, covariance = gaussian_statistics(train)
    values, vectors = torch.linalg.eigh(covariance)
    alive = values > _DEAD * values[-1]
    if not bool(alive.any()) or float(values[-1]) <= 0.0:
        raise UserError("the features of all training images are the same: they tell nothing apart")
    return Whitening(mean, vectors[:, alive] / values[alive].sqrt())


@explained
def sliced_wasserstein(x: Features, y: Features, *, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """SW₂ of two feature arrays [n,d] of one size (module formula), as they are: whiten them first."""
    a, b = as_features(x, "x"), as_features(y, "y")
    if a.shape != b.shape:
        raise UserError(f"sets of one size and width are compared, not {list(a.shape)} and {list(b.shape)}")
    u = _directions(a.shape[1], projections, seed)
    return math.sqrt(float((_ordered(a, u)[0] - _ordered(b, u)[0]).double().square().mean()))


@explained
def sliced_ratio(
    fakes: Sequence[Tensor],
    real: Tensor,
    halves: tuple[Tensor, Tensor],
    groups: Tensor,
    white: Whitening,
    *,
    projections: int = PROJECTIONS,
) -> Score:
    """The ratio (module formula) of generated features, an array [n,d] a seed, and real ones, row by row.

    halves: rows (a, b) [h] each, equal labels at equal places; groups [n]: of the jackknife, one for both of
    a pair. Raises UserError where the halves have the same features.
    """
    u = _directions(white.map.shape[1], projections, 0)
    own, others = _Sorted(white(real), u), [_Sorted(white(fake), u) for fake in fakes]
    floor, found = [], []
    for number in range(max(1, min(_HALVINGS, _ROWS // len(real)))):
        a, b = dealt(halves, number)
        parts_a, parts_b = own.without(a, groups), own.without(b, groups)
        floor.append(_gaps(parts_a, parts_b))
        crossed = ((parts_a, b), (parts_b, a))
        found.append([_gaps(one, other.without(rows, groups)) for other in others for one, rows in crossed])
    below = means_of(floor)
    if min(below) <= 0.0:
        raise UserError("halves of the real images have the same features: no distance has a floor")
    above = [_of_seed(found, seed) for seed in range(len(fakes))]
    seeds = [_ratio(gaps, below) for gaps in above]
    return as_ratio(_ratio(means_of(above), below), seeds)


def _ratio(gaps: Sequence[float], below: Sequence[float]) -> list[float]:
    """Of all rows over all directions, then without each group (gaps: also of all rows over fewer)."""
    whole, fewer, *without = (math.sqrt(gap / least) for gap, least in zip(gaps, below, strict=True))
    return [whole, *(whole * each / fewer for each in without)]


@explained
def as_ratio(values: Sequence[float], seeds: Sequence[Sequence[float]] = ()) -> Score:
    """The Score of a ratio: of all rows, then without each group; of each seed likewise."""
    interval = jackknife(values[0], values[1:], scale="log")
    return Score(interval, tuple(values[1:]), "log jackknife", firsts([list(each) for each in seeds]))


@explained
def geometric_mean(scores: Sequence[Score]) -> Score:
    """The geometric mean of ratios whose parts are of the same groups of rows."""
    columns = zip(*((each.interval.value, *each.parts) for each in scores), strict=True)
    seeds = zip(*(each.by_seed for each in scores), strict=True)
    means = [math.exp(math.fsum(map(math.log, column)) / len(scores)) for column in columns]
    by_seed = [[math.exp(math.fsum(map(math.log, column)) / len(scores))] for column in seeds]
    return as_ratio(means, by_seed)


class _Sorted:
    """Projections of rows, [projections,n] in ascending order, and which row each value is of."""

    def __init__(self, rows: Tensor, directions: Tensor) -> None:
        self.values, self.order = _ordered(rows, directions)

    def without(self, rows: Tensor, groups: Tensor) -> list[Tensor]:
        """Sorted projections of some rows; then of every fourth direction, and so without each group."""
        chosen = torch.zeros(self.order.shape[1], dtype=torch.bool)
        chosen[rows] = True
        kept = chosen[self.order]
        values = self.values[kept].view(len(self.values), -1)
        own = groups.to(torch.uint8)[self.order[kept]].view_as(values)[::_LEFT_OUT]
        fewer = values[::_LEFT_OUT]
        return [values, fewer, *(fewer[own != group].view(len(fewer), -1) for group in range(GROUPS))]


def _ordered(rows: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    values, order = (directions @ rows.T).float().sort(dim=1)
    return values, order.int()


def _directions(width: int, count: int, seed: int) -> Tensor:
    """Unit vectors [count,width], float64."""
    drawn = torch.randn(
        count, width, generator=torch.Generator().manual_seed(1_000 + seed), dtype=torch.float64
    )
    return torch.nn.functional.normalize(drawn, dim=1)


def _gaps(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[float]:
    """SW₂² of sorted projections, pair by pair."""
    return [float((x - y).square().double().mean()) for x, y in zip(one, other, strict=True)]


def _of_seed(found: Sequence[Sequence[list[float]]], seed: int) -> list[float]:
    """Mean over halvings and both orders of one seed's values."""
    return means_of([each for halving in found for each in halving[2 * seed : 2 * seed + 2]])
