"""Memorization: how near generated samples lie to the training set, measured against held-out real samples.

    d(x) = min_{t in train} |x − t|,      ratio = median d(generated) / median d(held out)

An honest model is about as far from its training set as unseen real data are: the ratio is near 1. Copies
pull it, and the low quantiles first, toward 0 (the question of Meehan et al. 2020,
asked in its simplest form).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.metrics.frechet import Features, as_features

_CHUNK_CELLS = 1 << 24
"""Distances held at once (128 MiB of float64)."""


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


def nearest_distances(x: Features, to: Features) -> Tensor:
    """Euclidean distance [n], float64, of each row of `x` [n,d] to the nearest row of `to` [m,d]."""
    a, b = as_features(x, "x"), as_features(to, "to")
    chunk = max(1, _CHUNK_CELLS // len(b))
    exact = "donot_use_mm_for_euclid_dist" if a.shape[1] <= 16 else "use_mm_for_euclid_dist_if_necessary"
    nearest = torch.cat([torch.cdist(part, b, compute_mode=exact).argmin(dim=1) for part in a.split(chunk)])
    return (a - b[nearest]).square().sum(dim=1).sqrt()


def nearest_neighbor_ratio(generated: Features, train: Features, held_out: Features) -> NeighborRatio:
    """Nearest-training-neighbor distances of generated against held-out samples (module formula).

    All three are arrays [n,d] in one space: features, or flattened pixels. Where held-out samples lie on
    training samples (duplicates across the splits) the ratio has no meaning and comes out infinite.
    """
    fake, real = nearest_distances(generated, train), nearest_distances(held_out, train)
    quantiles = torch.tensor([0.05, 0.5], dtype=torch.float64, device=fake.device)
    low, middle = (fake.quantile(quantiles) / real.quantile(quantiles)).tolist()
    return NeighborRatio(ratio=middle, low=low, closer=float((fake < real.quantile(0.01)).double().mean()))
