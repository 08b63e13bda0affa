"""FD, its matched form, the real-vs-real floor and their quotient, with intervals (formulas in `evaluate`).

The values come from the arrays; the jackknife needs each of them 20 times more, without a group of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.metrics import (
    GROUPS,
    Score,
    extrapolated,
    frechet_distance,
    frechet_from_statistics,
    jackknife,
    jackknife_groups,
    without_groups,
)

WIDE = 256
"""Above this number of features one halving stands for eight: an FD takes seconds there."""


@dataclass(frozen=True)
class Distances:
    """FD and what it has to be compared with.

    fd: mean over the seeds of FD(generated, real) at n, captions in common; infinity: the same without its
    1/n bias; floor: FD of two label-matched real halves, mean over random halvings; infinity_floor: that
    without its bias (None: halves smaller than twice the features do not show it); matched: the same with one
    half generated from its captions; ratio: matched / floor, 1 for a perfect model.
    """

    fd: Score
    infinity: Score
    infinity_floor: Score | None
    matched: Score
    floor: Score
    ratio: Score


def distances(
    fakes: Sequence[Tensor],
    real: Tensor,
    pairs: tuple[Tensor, Tensor],
    groups: Tensor,
    *,
    halvings: int | None = None,
) -> Distances:
    """All distances between generated features, one array [n,d] a seed, and real ones [n,d], row i to row i.

    pairs: disjoint rows (idx_a, idx_b) [h] with equal labels, as `matched_halves` gives them; in each of the
    halvings (None: 8, or 1 for more than 256 features) a coin deals out every pair. groups [n]: of the
    jackknife, from `row_groups`.
    """
    center = real.double().mean(dim=0)
    real, fakes = real.double() - center, [fake.double() - center for fake in fakes]
    count = halvings if halvings is not None else 8 if real.shape[1] <= WIDE else 1
    halves = [_dealt(pairs, seed) for seed in range(count)]
    fds = [_distance(fake, real, groups, None, None) for fake in fakes]
    floor = _means([_distance(real, real, groups, a, b) for a, b in halves])
    crossed = [half for a, b in halves for half in ((a, b), (b, a))]
    matches = [_means([_distance(fake, real, groups, a, b) for a, b in crossed]) for fake in fakes]
    if min(floor) <= 0.0:
        raise UserError("halves of the real images have the same features: no distance has a floor")
    ratios = [[one / other for one, other in zip(found, floor, strict=True)] for found in matches]
    fd, matched, ratio = (_means(found) for found in (fds, matches, ratios))
    return Distances(
        fd=_jackknifed(fd, fds),
        infinity=infinity(fd, fds),
        infinity_floor=infinity(floor) if len(pairs[0]) >= 2 * real.shape[1] else None,
        matched=_jackknifed(matched, matches),
        floor=_jackknifed(floor),
        ratio=Score(
            jackknife(ratio[0], ratio[1:], scale="log"), tuple(ratio[1:]), "log jackknife", _firsts(ratios)
        ),
    )


def distance_of(x: Tensor, y: Tensor, groups: Tensor) -> tuple[Score, Score]:
    """FD, and FD without its 1/n bias, of two arrays [n,d] whose rows belong together in pairs."""
    center = y.double().mean(dim=0)
    found = _distance(x.double() - center, y.double() - center, groups, None, None)
    return _jackknifed(found), infinity(found)


def _jackknifed(found: list[float], seeds: Sequence[list[float]] = ()) -> Score:
    """The value of all rows, then without each group; of each seed likewise."""
    return Score(jackknife(found[0], found[1:]), tuple(found[1:]), "jackknife", _firsts(seeds))


def _firsts(seeds: Sequence[list[float]]) -> tuple[float, ...]:
    return tuple(found[0] for found in seeds)


def infinity(fd: list[float], seeds: Sequence[list[float]] = ()) -> Score:
    """FD_∞ with the pseudo-values that it is the mean of."""
    by_seed = tuple(extrapolated(found[0], found[1:]).value for found in seeds)
    pseudo = tuple(GROUPS * fd[0] - (GROUPS - 1) * other for other in fd[1:])
    return Score(extrapolated(fd[0], fd[1:]), pseudo, "batches", by_seed)


def row_groups(rows: int, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Group [rows] of every row, one for both of a pair, so that halves stay matched when it is left out.

    Rows without a partner are dealt out in turn. Raises UserError for fewer than 40 pairs.
    """
    result = torch.arange(rows) % GROUPS
    result[pairs[0]] = result[pairs[1]] = jackknife_groups(len(pairs[0]))
    return result


def _dealt(pairs: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """The pairs with a random half of them turned round."""
    turned = torch.rand(len(pairs[0]), generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(turned, pairs[1], pairs[0]), torch.where(turned, pairs[0], pairs[1])


def _distance(
    x: Tensor, y: Tensor, groups: Tensor, rows_x: Tensor | None, rows_y: Tensor | None
) -> list[float]:
    """FD of some rows of x and of y: of all of them, then without each group."""
    x, groups_x = (x, groups) if rows_x is None else (x[rows_x], groups[rows_x])
    y, groups_y = (y, groups) if rows_y is None else (y[rows_y], groups[rows_y])
    pairs = zip(without_groups(x, groups_x), without_groups(y, groups_y), strict=True)
    return [frechet_distance(x, y), *(frechet_from_statistics(*one, *other) for one, other in pairs)]


def _means(found: Sequence[list[float]]) -> list[float]:
    return [fmean(column) for column in zip(*found, strict=True)]
