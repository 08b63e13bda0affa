"""FD without its bias, and its intervals: rows left out by groups (jackknife), FD_n extrapolated to n → ∞."""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features, frechet_distance, frechet_from_statistics
from lmsd.metrics.intervals import GROUPS, Interval, Score, extrapolated, jackknife, jackknife_groups


@explained
def frechet_infinity(x: Features, y: Features, *, seed: int = 0) -> Interval:
    """FD of the two distributions themselves, extrapolated to n → ∞, with its interval (see `intervals`).

    Two independent arrays [n,d] and [m,d] of at least 2 d rows: below, the bias is no longer C/n. Twenty
    groups of the rows of each are left out in turn. May fall below 0 where the distributions are alike.
    """
    a, b = as_features(x, "x"), as_features(y, "y")
    if min(len(a), len(b)) < max(2 * a.shape[1], 2 * GROUPS):
        raise UserError(
            f"{min(len(a), len(b))} samples are too few for FD∞ of {a.shape[1]} features: take "
            f"n ≥ {max(2 * a.shape[1], 2 * GROUPS)}, an extractor with fewer features, or the kernel distance"
        )
    shift = a.mean(dim=0)
    parts = [without_groups(each - shift, jackknife_groups(len(each), seed=seed)) for each in (a, b)]
    without = [frechet_from_statistics(*one, *other) for one, other in zip(*parts, strict=True)]
    return extrapolated(frechet_distance(a, b), without)


@explained
def frechet_by_rows(
    fakes: Sequence[Tensor], real: Tensor, groups: Tensor, others: Tensor | None = None
) -> tuple[Score, Score]:
    """FD of every fake array [n,d] and the real one, mean over them, and the same without its 1/n bias.

    groups [n]: of the jackknife, of both where row i belongs to row i; others [m]: of the real rows, where
    they do not belong together.
    """
    center = real.double().mean(dim=0)
    theirs = real.double() - center
    found = [
        frechet_without(fake.double() - center, theirs, groups, groups if others is None else others)
        for fake in fakes
    ]
    mean = means_of(found)
    return jackknifed(mean, found), infinity(mean, found)


@explained
def frechet_without(x: Tensor, y: Tensor, groups_x: Tensor, groups_y: Tensor) -> list[float]:
    """FD of two arrays, roughly centered: of all rows, then without each group."""
    pairs = zip(without_groups(x, groups_x), without_groups(y, groups_y), strict=True)
    return [frechet_distance(x, y), *(frechet_from_statistics(*one, *other) for one, other in pairs)]


@explained
def jackknifed(found: list[float], seeds: Sequence[list[float]] = ()) -> Score:
    """The value of all rows, then without each group; of each seed likewise."""
    return Score(jackknife(found[0], found[1:]), tuple(found[1:]), "jackknife", firsts(seeds))


@explained
def infinity(found: list[float], seeds: Sequence[list[float]] = ()) -> Score:
    """FD_∞ of such values with the pseudo-values that it is the mean of."""
    by_seed = tuple(extrapolated(each[0], each[1:]).value for each in seeds)
    pseudo = tuple(GROUPS * found[0] - (GROUPS - 1) * other for other in found[1:])
    return Score(extrapolated(found[0], found[1:]), pseudo, "batches", by_seed)


@explained
def means_of(found: Sequence[list[float]]) -> list[float]:
    """Column by column."""
    return [fmean(column) for column in zip(*found, strict=True)]


@explained
def firsts(found: Sequence[list[float]]) -> tuple[float, ...]:
    """The values of all rows."""
    return tuple(each[0] for each in found)


@explained
def without_groups(x: Tensor, groups: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and unbiased covariance of x [n,d] (float64, roughly centered) without each of the 20 groups [n].

    Counts, sums and products of the groups are taken once, and a group is left out by subtraction.
    """
    parts = [x[groups == group] for group in range(GROUPS)]
    counts = len(x) - groups.bincount(minlength=GROUPS)
    total, product = x.sum(dim=0), x.T @ x
    found = []
    for part, count in zip(parts, counts.tolist(), strict=True):
        mean = (total - part.sum(dim=0)) / count
        found.append((mean, (product - part.T @ part - count * torch.outer(mean, mean)) / (count - 1)))
    return found
