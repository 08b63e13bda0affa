"""Fidelity and diversity apart: shares of samples in the balls that k nearest neighbors span.

Let r_k(z) be the distance of z to its k-th nearest neighbor in its own set, and B(z) the open ball around it:

    precision = mean_j 1[y_j ∈ ∪_i B(x_i)]    recall   = mean_i 1[x_i ∈ ∪_j B(y_j)]   (Kynkäänniemi 2019)
    density   = 1/(km) Σ_ij 1[y_j ∈ B(x_i)]   coverage = mean_i 1[∃j: y_j ∈ B(x_i)]   (Naeem 2020)

x real [n,d], y generated [m,d]. Where both have one distribution the expected coverage is known (ibid., Lemma
2), density is 1, and precision and recall are below 1 by an amount that depends on d and n: values of
different n do not compare.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features
from lmsd.metrics.intervals import GROUPS

_CELLS = 1 << 23
_SPARE = 30
"""Neighbors beyond the k-th that are looked at where those of one group are left out."""


@dataclass(frozen=True)
class Manifold:
    """Precision, recall, density (≥ 0, may exceed 1) and coverage."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(generated: Features, real: Features, *, k: int = 5) -> Manifold:
    """All four at once (module formulas); features [m,d] and [n,d], n and m above k, in float64.

    Distances are made in strips, so that memory grows with n + m and not with their product.
    """
    y, x = as_features(generated, "generated"), as_features(real, "real")
    if min(len(x), len(y)) <= k:
        raise UserError(f"{len(y)} generated and {len(x)} real samples are too few for k={k}: take n > k")
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    inside = torch.zeros(len(y), device=y.device)
    recalled, covered = [], []
    for rows in torch.arange(len(x)).split(max(1, _CELLS // len(y))):
        distance = torch.cdist(x[rows], y)
        hits = distance < radius_x[rows, None]
        inside += hits.sum(dim=0)
        covered.append(hits.any(dim=1))
        recalled.append((distance < radius_y).any(dim=1))
    return Manifold(
        precision=float((inside > 0).double().mean()),
        recall=float(torch.cat(recalled).double().mean()),
        density=float(inside.double().mean()) / k,
        coverage=float(torch.cat(covered).double().mean()),
    )


def precision_recall(generated: Features, real: Features, *, k: int = 3) -> tuple[float, float]:
    """Precision and recall, with the usual k = 3."""
    found = manifold(generated, real, k=k)
    return found.precision, found.recall


def density_coverage(generated: Features, real: Features, *, k: int = 5) -> tuple[float, float]:
    """Density and coverage, with the usual k = 5."""
    found = manifold(generated, real, k=k)
    return found.density, found.coverage


def manifolds(generated: Tensor, real: Tensor, groups: Tensor, *, k: int = 5) -> list[Manifold]:
    """`manifold` of two arrays [n,d] whose rows belong together, then without each of the 20 groups [n].

    The same as leaving the rows out one group after another, from one pass over the distances.
    """
    y, x = as_features(generated, "generated"), as_features(real, "real")
    kept = torch.stack([torch.ones_like(groups, dtype=torch.bool), *(groups != g for g in range(GROUPS))])
    radius_x, radius_y = _radii_without(x, groups, k), _radii_without(y, groups, k)
    inside = torch.zeros(len(kept), len(y), dtype=torch.int64)
    covered, recalled = torch.zeros(len(kept)), torch.zeros(len(kept))
    for rows in torch.arange(len(x)).split(max(1, _CELLS // len(y))):
        distance = torch.cdist(x[rows], y)
        for place, keep in enumerate(kept):
            both = keep[rows, None] & keep
            hits = (distance < radius_x[rows, place, None]) & both
            inside[place] += hits.sum(dim=0)
            covered[place] += hits.any(dim=1).sum()
            recalled[place] += ((distance < radius_y[:, place]) & both).any(dim=1).sum()
    count = kept.sum(dim=1).double()
    precision = (inside > 0).sum(dim=1) / count
    density = inside.sum(dim=1) / (count * k)
    columns = zip(precision, recalled / count, density, covered / count, strict=True)
    return [Manifold(*map(float, column)) for column in columns]


def _radii_without(z: Tensor, groups: Tensor, k: int) -> Tensor:
    """Distance [n,21] of each row to its k-th nearest other row: among all, and without each group."""
    found = []
    for rows in torch.arange(len(z)).split(max(1, _CELLS // len(z))):
        distance = torch.cdist(z[rows], z)
        distance[torch.arange(len(rows)), rows] = torch.inf
        near = distance.topk(min(k + _SPARE, len(z) - 1), dim=1, largest=False)
        member = groups[near.indices]
        columns = [near.values[:, k - 1]]
        for group in range(GROUPS):
            rank = (member != group).cumsum(dim=1)
            place = (rank < k).sum(dim=1, keepdim=True).clamp(max=rank.shape[1] - 1)
            columns.append(near.values.gather(1, place)[:, 0])
        found.append(torch.stack(columns, dim=1))
    return torch.cat(found)


def _radii(z: Tensor, k: int) -> Tensor:
    """Distance [n] of each row to its k-th nearest other row."""
    found = []
    for rows in torch.arange(len(z)).split(max(1, _CELLS // len(z))):
        distance = torch.cdist(z[rows], z)
        distance[torch.arange(len(rows)), rows] = torch.inf
        found.append(distance.kthvalue(k, dim=1).values)
    return torch.cat(found)
