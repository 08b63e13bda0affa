"""FD, its matched form, the real-vs-real floor and their quotient, with intervals (formulas in `evaluate`).

The values come from the arrays. The jackknife needs each of them 20 times more, with one group of rows left
out: counts, sums and products of the groups are taken once, and a group is left out by subtraction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from lmsd.metrics import Interval, frechet_distance, frechet_from_statistics, jackknife, jackknife_groups

GROUPS = 20


@dataclass(frozen=True)
class Distances:
    """FD and what it has to be compared with, each with its interval.

    fd: mean over the seeds of FD(generated, real) at n, captions in common; floor: FD of two label-matched real
    halves, mean over random halvings; matched: the same with one half generated from its captions; ratio:
    matched / floor, 1 for a perfect model.
    """

    fd: Interval
    matched: Interval
    floor: Interval
    ratio: Interval
    fd_by_seed: tuple[float, ...]


def distances(fakes: Sequence[Tensor], real: Tensor, halves: Sequence[tuple[Tensor, Tensor]]) -> Distances:
    """All distances between generated features, one array [n,d] a seed, and real ones [n,d], row i to row i.

    halves: pairs (idx_a, idx_b) of disjoint rows with matching labels. Raises UserError for n < 40.
    """
    center = real.double().mean(dim=0)
    real, fakes = real.double() - center, [fake.double() - center for fake in fakes]
    groups = jackknife_groups(len(real), groups=GROUPS)
    fds = [_distance(fake, real, groups, None, None) for fake in fakes]
    floors = [_distance(real, real, groups, a, b) for a, b in halves]
    crossed = [pair for a, b in halves for pair in ((a, b), (b, a))]
    matches = [_distance(fake, real, groups, a, b) for fake in fakes for a, b in crossed]
    fd, floor, matched = (_means(found) for found in (fds, floors, matches))
    ratio = [one / other for one, other in zip(matched, floor, strict=True)]
    fd_, matched_, floor_, ratio_ = (jackknife(each[0], each[1:]) for each in (fd, matched, floor, ratio))
    return Distances(fd_, matched_, floor_, ratio_, fd_by_seed=tuple(found[0] for found in fds))


def _distance(
    x: Tensor, y: Tensor, groups: Tensor, rows_x: Tensor | None, rows_y: Tensor | None
) -> list[float]:
    """FD of some rows of x and of y: of all of them, then without each group."""
    x, groups_x = (x, groups) if rows_x is None else (x[rows_x], groups[rows_x])
    y, groups_y = (y, groups) if rows_y is None else (y[rows_y], groups[rows_y])
    pairs = zip(_without(x, groups_x), _without(y, groups_y), strict=True)
    return [frechet_distance(x, y), *(frechet_from_statistics(*one, *other) for one, other in pairs)]


def _without(x: Tensor, groups: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased covariance of x [n,d] without each group."""
    parts = [x[groups == group] for group in range(GROUPS)]
    counts = len(x) - groups.bincount(minlength=GROUPS)
    sums = x.sum(dim=0) - torch.stack([part.sum(dim=0) for part in parts])
    products = x.T @ x - torch.stack([part.T @ part for part in parts])
    means = sums / counts[:, None]
    outer = means[:, :, None] * sums[:, None, :]
    return list(zip(means, (products - outer) / (counts - 1)[:, None, None], strict=True))


def _means(found: Sequence[list[float]]) -> list[float]:
    return [fmean(column) for column in zip(*found, strict=True)]
