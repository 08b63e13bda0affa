"""Fidelity and diversity apart: shares of samples in the balls that k nearest neighbors span.

Let r_k(z) be the distance of z to its k-th nearest neighbor in its own set, and B(z) the open ball around it:

    precision = mean_j 1[y_j ∈ ∪_i B(x_i)]    recall   = mean_i 1[x_i ∈ ∪_j B(y_j)]   (Kynkäänniemi 2019)
    density   = 1/(km) Σ_ij 1[y_j ∈ B(x_i)]   coverage = mean_i 1[∃j: y_j ∈ B(x_i)]   (Naeem 2020)

x real [n,d], y generated [m,d]. Where both have one distribution the expected coverage is known (ibid., Lemma
2), density is 1, and precision and recall are below 1 by an amount that depends on d and n: values of
different n do not compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, of_one_width
from lmsd.metrics.intervals import Score, divided, divided_share, stretched, thirds

_CELLS = 1 << 23
_SPARE = 8
"""Neighbors beyond the k-th whose distances are taken by differences too."""


@dataclass(frozen=True)
class Manifold:
    """Precision, recall, density (≥ 0, may exceed 1) and coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


@explained
def manifold(generated: Features, real: Features, *, k: int = 5) -> Manifold:
    """All four at once (module formulas); features [m,d] and [n,d], n and m above k, in float64.

    Distances are made in strips, so that memory grows with n + m and not with their product.
    """
    y, x = _checked(generated, real, k)
    if min(len(x), len(y)) <= k:
        raise UserError(f"{len(y)} generated and {len(x)} real samples are too few for k={k}: take n > k")
    return _manifolds(y[None], x[None], k)[0]


@explained
def manifolds(generated: Features, real: Features, *, k: int = 5) -> list[Manifold]:
    """`manifold` of two arrays [n,d] whose rows belong together, then of every one of their `thirds`."""
    y, x = _checked(generated, real, k)
    if len(y) != len(x):
        raise UserError(f"{len(y)} generated and {len(x)} real rows do not belong together")
    rows = torch.stack(thirds(len(x)))
    if rows.shape[1] <= k:
        raise UserError(f"{len(x)} samples are too few for k={k} with an interval: take n ≥ {3 * k + 3}")
    return [manifold(y, x, k=k), *_manifolds(y[rows], x[rows], k)]


@explained
def manifold_by_rows(fakes: Sequence[Features], real: Features, *, k: int = 5) -> dict[str, Score]:
    """All four by name, mean over the fake arrays [n,d], with intervals from thirds of the rows of all."""
    every = [manifolds(fake, real, k=k) for fake in fakes]
    return {field.name: _share(field.name, every, len(real)) for field in fields(Manifold)}


def _share(name: str, every: Sequence[Sequence[Manifold]], rows: int) -> Score:
    """One of the four, of each array's [whole, first third, ...], as the mean over the arrays."""
    values = [[float(vars(each)[name]) for each in one] for one in every]
    whole, *parts = (fmean(column) for column in zip(*values, strict=True))
    by_seed = tuple(one[0] for one in values)
    if name == "density":
        return Score(divided(whole, parts), tuple(parts), "thirds", by_seed)
    parts = stretched(whole, parts)
    return Score(divided_share(whole, parts, rows), tuple(parts), "thirds", by_seed)


def _checked(generated: Features, real: Features, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise UserError(f"k={k}: neighbors are counted from 1, and 5 (or 3) is usual")
    return of_one_width(generated, real, ("generated", "real"))


def _manifolds(y: Tensor, x: Tensor, k: int) -> list[Manifold]:
    """One `Manifold` for each of several pairs of arrays [p,m,d] and [p,n,d]."""
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    inside = torch.zeros(y.shape[:2], dtype=torch.int32, device=y.device)
    covered, recalled = torch.zeros(2, len(x), device=x.device)
    for rows in _strips(x.shape[1], y.shape[0] * y.shape[1]):
        near, far = radius_x[:, rows, None], radius_y[:, None]
        gap = _settled(_squares(x[:, rows], y), x[:, rows], y, (near, far))
        inside += (gap < near).sum(dim=1, dtype=torch.int32)
        covered += (gap.amin(dim=2) < radius_x[:, rows]).sum(dim=1)
        recalled += (gap.sub_(far).amin(dim=2) < 0.0).sum(dim=1)
    precision, density = (inside > 0).double().mean(dim=1), inside.double().mean(dim=1) / k
    columns = (precision, recalled.double() / x.shape[1], density, covered.double() / x.shape[1])
    return [Manifold(*map(float, column)) for column in zip(*columns, strict=True)]


def _radii(z: Tensor, k: int) -> Tensor:
    """Squared distance [p,n] of each row of z [p,n,d] to its k-th nearest other row, by differences.

    Matrix products find the neighbors, a few more than k: rounding may have changed the order of near ones.
    """
    found, some = [], min(k + _SPARE, z.shape[1] - 1)
    every = torch.arange(z.shape[0])[:, None, None]
    for rows in _strips(z.shape[1], z.shape[0] * z.shape[1]):
        gap = _squares(z[:, rows], z)
        gap[:, torch.arange(len(rows)), rows] = torch.inf
        neighbors = gap.topk(some, dim=2, largest=False).indices
        exact = torch.stack(
            [
                (z[:, rows] - z[every[:, 0], neighbors[:, :, place]]).square().sum(dim=2)
                for place in range(some)
            ],
            dim=2,
        )
        found.append(exact.sort(dim=2).values[:, :, k - 1])
    return torch.cat(found, dim=1)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances [p,n,m] of rows [p,n,d] and [p,m,d]: no root is needed to compare them."""
    lengths = a.square().sum(dim=2)[:, :, None] + b.square().sum(dim=2)[:, None]
    return torch.baddbmm(lengths, a, b.mT, alpha=-2.0)


def _settled(gap: Tensor, a: Tensor, b: Tensor, radii: Sequence[Tensor]) -> Tensor:
    """Squared distances [p,n,m], by differences where they are too near to a radius for `_squares` to tell.

    Equal rows, copies and features on a grid tie with a radius exactly; a product's rounding would decide.
    """
    doubt = 1e-12 * float(a.square().sum(dim=2).amax() + b.square().sum(dim=2).amax())
    close = torch.zeros_like(gap, dtype=torch.bool)
    for radius in radii:
        close |= (gap - radius).abs_() <= doubt
    for cells in close.nonzero().split(_CELLS // (8 * a.shape[2]) + 1):
        p, i, j = cells.T
        gap[p, i, j] = (a[p, i] - b[p, j]).square().sum(dim=1)
    return gap


def _strips(rows: int, width: int) -> tuple[Tensor, ...]:
    """Row numbers in strips of at most `_CELLS` distances, where a row has `width` of them."""
    strips: tuple[Tensor, ...] = torch.arange(rows).split(max(1, _CELLS // width))
    return strips
