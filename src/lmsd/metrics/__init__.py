"""Numbers from feature arrays [n,d], in float64. Trains nothing, knows no images."""

from lmsd.metrics.frechet import (
    Features,
    as_features,
    frechet_distance,
    frechet_from_statistics,
    gaussian_statistics,
)
from lmsd.metrics.intervals import Interval, jackknife, jackknife_groups, wilson
from lmsd.metrics.matching import matched_halves
from lmsd.metrics.neighbors import NeighborRatio, nearest_distances, nearest_neighbor_ratio

__all__ = [
    "Features",
    "Interval",
    "NeighborRatio",
    "as_features",
    "frechet_distance",
    "frechet_from_statistics",
    "gaussian_statistics",
    "jackknife",
    "jackknife_groups",
    "matched_halves",
    "nearest_distances",
    "nearest_neighbor_ratio",
    "wilson",
]
