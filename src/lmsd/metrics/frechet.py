"""The Fréchet distance of two Gaussians fitted to feature arrays, in float64 from end to end.

    FD(x, y) = |μ_x − μ_y|² + tr Σ_x + tr Σ_y − 2 tr (Σ_x Σ_y)^½        (Dowson and Landau 1982)

With Σ_x = L Lᵀ, the trace is the sum of the roots of the eigenvalues of Lᵀ Σ_y L, a symmetric matrix: no
square root of a non-symmetric product is taken. Where a covariance is singular (n ≤ d, or a dead feature)
that loses half the digits, and the same trace is the nuclear norm of the centered arrays' product,

    tr (Σ_x Σ_y)^½ = ‖X_c Y_cᵀ‖_* / √((n−1)(m−1)),

an n × m matrix, whose singular values are found without squaring anything. Nothing is added to a diagonal.

FD is biased: E FD_n ≈ FD_∞ + C/n with C of the model's own (Chong and Forsyth 2020), so two values are
compared at the same n only, or without it (`frechet_infinity`).
"""

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError

Features: TypeAlias = Tensor | NDArray[np.floating]
"""A feature array [n,d], one row a sample."""

_SINGULAR = 1e-10
"""Below this ratio of smallest to largest eigenvalue (or squared pivot) the n × n form is taken."""


@explained
def as_features(x: Features, name: str = "features") -> Tensor:
    """`x` as float64 [n,d] on its own device, all finite, n ≥ 2."""
    given = torch.as_tensor(x).detach()
    if given.is_complex():
        raise UserError(f"{name} are complex numbers: take their real part, or their size, first")
    array = given.double()
    if array.ndim != 2 or len(array) < 2:
        raise UserError(f"{name} must be [n,d] with n ≥ 2, not {list(array.shape)}")
    if not bool(array.isfinite().all()):
        rows = int((~array.isfinite()).any(dim=1).sum())
        raise UserError(f"{name}: {rows} of {len(array)} rows are not finite (broken images?)")
    return array


@explained
def of_one_width(x: Features, y: Features, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Both as `as_features`. Raises UserError where their widths differ."""
    a, b = (as_features(each, name) for each, name in zip((x, y), names, strict=True))
    if a.shape[1] != b.shape[1]:
        raise UserError(f"feature widths differ: {a.shape[1]} and {b.shape[1]}; use one extractor for both")
    return a, b


@explained
def gaussian_statistics(x: Features) -> tuple[Tensor, Tensor]:
    """Mean [d] and unbiased covariance [d,d] of a feature array [n,d], float64."""
    array = as_features(x)
    mean = array.mean(dim=0)
    centered = array - mean
    return mean, centered.T @ centered / (len(array) - 1)


@explained
def frechet_distance(x: Features, y: Features) -> float:
    """FD(x, y) of two feature arrays [n,d] and [m,d] (module formula); 0 for equal arrays, never negative.

    Raises UserError where the widths differ, a value is not finite, or fewer than two rows are given.
    """
    a, b = of_one_width(x, y)
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    a, b = (a - mean_a) / (len(a) - 1) ** 0.5, (b - mean_b) / (len(b) - 1) ** 0.5
    cross = _regular_trace(a.T @ a, b.T @ b) if min(len(a), len(b)) > a.shape[1] else None
    if cross is None:
        cross = torch.linalg.svdvals(_rows(a) @ _rows(b).T).sum()
    total = (mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2.0 * cross
    return max(float(total), 0.0)


@explained
def frechet_from_statistics(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """FD of N(mean_x, cov_x) and N(mean_y, cov_y), means [d], covariances [d,d], computed in float64.

    A singular covariance costs about half the digits here; `frechet_distance` of the arrays does not.
    """
    mx, cx, my, cy = (torch.as_tensor(value).double() for value in (mean_x, cov_x, mean_y, cov_y))
    d = len(mx) if mx.ndim else 0
    if not d or my.shape != (d,) or any(cov.shape != (d, d) for cov in (cx, cy)):
        shapes = ", ".join(str(list(value.shape)) for value in (mx, cx, my, cy))
        raise UserError(f"means are [d] and covariances [d,d] of one d, not {shapes}")
    if not all(bool(value.isfinite().all()) for value in (mx, cx, my, cy)):
        raise UserError("means and covariances must be finite numbers")
    if min(float(cx.diagonal().min()), float(cy.diagonal().min())) < 0:
        raise UserError("a covariance has no negative number on its diagonal")
    cross = _regular_trace(cx, cy)
    if cross is None:
        cross = torch.linalg.svdvals(_root(cx).T @ _root(cy)).sum()
    return max(float((mx - my).square().sum() + cx.trace() + cy.trace() - 2.0 * cross), 0.0)


def _regular_trace(cov_x: Tensor, cov_y: Tensor) -> Tensor | None:
    """The trace tr (Σ_x Σ_y)^½ by Cholesky and eigvalsh; None where either is close to singular."""
    lower, failed = torch.linalg.cholesky_ex(cov_x)
    pivots = lower.diagonal().square()
    if int(failed) or bool(pivots.min() < _SINGULAR * pivots.max()):
        return None
    values = torch.linalg.eigvalsh(lower.T @ cov_y @ lower)
    return None if bool(values[0] < _SINGULAR * values[-1]) else values.sqrt().sum()


def _rows(centered: Tensor) -> Tensor:
    """An array with the same Gram matrix XᵀX and at most d rows (the R of X = QR)."""
    if len(centered) <= centered.shape[1]:
        return centered
    reduced: Tensor = torch.linalg.qr(centered, mode="r").R
    return reduced


def _root(cov: Tensor) -> Tensor:
    """A [d,d] with A Aᵀ = Σ; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(cov)
    root: Tensor = vectors * values.clamp(min=0.0).sqrt()
    return root
