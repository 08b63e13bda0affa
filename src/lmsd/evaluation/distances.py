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

    fd: mean over the seeds of FD(generated, real) at n, captions in common; floor: FD of two label-matched
    real halves, mean over random halvings; matched: the same with one half generated from its captions;
    ratio: matched / floor, 1 for a perfect model.
    """

    fd: Interval
    matched: Interval
    floor: Interval
    ratio: Interval
    fd_by_seed: tuple[float, ...]


def distances(
    fakes: Sequence[Tensor], real: Tensor, pairs: tuple[Tensor, Tensor], *, halvings: int = 8
) -> Distances:
    """All distances between generated features, one array [n,d] a seed, and real ones [n,d], row i to row i.

    pairs: disjoint rows (idx_a, idx_b) [h] with equal labels, as `matched_halves` gives them; in each of the
    halvings a coin deals out every pair. A pair falls into one jackknife group, so that the halves stay
    matched when a group is left out. Raises UserError for h < 40.
    """
    center = real.double().mean(dim=0)
    real, fakes = real.double() - center, [fake.double() - center for fake in fakes]
    groups = _groups(len(real), pairs)
    halves = [_dealt(pairs, seed) for seed in range(halvings)]
    fds = [_distance(fake, real, groups, None, None) for fake in fakes]
    floors = [_distance(real, real, groups, a, b) for a, b in halves]
    crossed = [half for a, b in halves for half in ((a, b), (b, a))]
    matches = [_distance(fake, real, groups, a, b) for fake in fakes for a, b in crossed]
    fd, floor, matched = (_means(found) for found in (fds, floors, matches))
    ratio = [one / other for one, other in zip(matched, floor, strict=True)]
    fd_, matched_, floor_ = (jackknife(each[0], each[1:]) for each in (fd, matched, floor))
    ratio_ = jackknife(ratio[0], ratio[1:], scale="log")
    return Distances(fd_, matched_, floor_, ratio_, fd_by_seed=tuple(found[0] for found in fds))


def _groups(rows: int, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Jackknife group of every row, one for both of a pair; rows without a partner are dealt out in turn."""
    result = torch.arange(rows) % GROUPS
    result[pairs[0]] = result[pairs[1]] = jackknife_groups(len(pairs[0]), groups=GROUPS)
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
