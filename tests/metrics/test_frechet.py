"""FD against closed forms, 50-digit arithmetic and torchmetrics."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmsd.errors import UserError
from lmsd.metrics import frechet_distance, frechet_from_statistics, gaussian_statistics


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: Tensor, root: Tensor, n: int, seed: int) -> Tensor:
    """Rows whose sample mean is `mean` and whose unbiased sample covariance is root·rootᵀ, to rounding."""
    raw = draw(n, len(mean), seed=seed)
    white = torch.linalg.qr(raw - raw.mean(dim=0)).Q * (n - 1) ** 0.5
    return mean + white @ root.T


def rotation(d: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw(d, d, seed=seed)).Q


@pytest.mark.parametrize(("n", "m"), [(40, 200), (200, 40)])
def test_common_axes_give_the_sum_of_squared_differences(n, m):
    d = 12
    q, a, b = rotation(d, 1), 0.1 + draw(d, seed=2).abs(), 0.1 + draw(d, seed=3).abs()
    mu, nu = draw(d, seed=4), draw(d, seed=5)
    x, y = with_moments(mu, q * a, n, 6), with_moments(nu, q * b, m, 7)
    truth = float((mu - nu).square().sum() + (a - b).square().sum())
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-12)


def test_two_dimensions_that_do_not_commute():
    """In 2-D tr M^½ = √(tr M + 2 √det M) for M = Σ_x Σ_y."""
    a, b = draw(2, 2, seed=1), draw(2, 2, seed=2)
    product = a @ a.T @ b @ b.T
    root = (product.trace() + 2 * torch.linalg.det(product).sqrt()).sqrt()
    truth = float((a @ a.T).trace() + (b @ b.T).trace() - 2 * root)
    zero = torch.zeros(2, dtype=torch.float64)
    found = frechet_distance(with_moments(zero, a, 30, 3), with_moments(zero, b, 50, 4))
    assert found == pytest.approx(truth, rel=1e-11)
    assert frechet_from_statistics(zero, a @ a.T, zero, b @ b.T) == pytest.approx(truth, rel=1e-11)


def exact(x: Tensor, y: Tensor) -> float:
    """FD by singular values of the n×m form, with 50 digits."""
    with mpmath.workdps(50):
        a, b = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())

        def center(z):
            means = [sum(z[i, j] for i in range(z.rows)) / z.rows for j in range(z.cols)]
            return mpmath.matrix([[z[i, j] - means[j] for j in range(z.cols)] for i in range(z.rows)]), means

        (a, mean_a), (b, mean_b) = center(a), center(b)
        a, b = a / mpmath.sqrt(a.rows - 1), b / mpmath.sqrt(b.rows - 1)
        cross = sum(mpmath.svd_r(a * b.T, compute_uv=False))
        squares = sum(v**2 for v in a) + sum(v**2 for v in b)
        return float(sum((p - q) ** 2 for p, q in zip(mean_a, mean_b, strict=True)) + squares - 2 * cross)


@pytest.mark.parametrize(("n", "m", "d"), [(8, 11, 16), (9, 30, 12), (30, 9, 12), (14, 16, 12)])
def test_equals_fifty_digits_also_when_rank_deficient(n, m, d):
    x, y = draw(n, d, seed=1), draw(m, d, seed=2) * 1.5 + 0.3
    assert frechet_distance(x, y) == pytest.approx(exact(x, y), rel=1e-12)


@pytest.mark.parametrize("case", ["dead", "nearly dead", "tied"])
def test_equals_fifty_digits_with_singular_features(case):
    x, y = draw(14, 6, seed=1), draw(12, 6, seed=2) + 0.5
    if case == "dead":
        x[:, 2] = y[:, 2] = 0.25
    elif case == "nearly dead":
        y[:, 2] = 1.0 + 1e-9 * y[:, 2]
    else:
        x[:, 1], y[:, 1] = x[:, 0], y[:, 0]
    assert frechet_distance(x, y) == pytest.approx(exact(x, y), rel=1e-12)


@pytest.mark.parametrize("n", [300, 60])
def test_equals_torchmetrics(n):
    """1e-9 on the same float64 statistics; 1e-7 where torchmetrics itself loses digits (n < d)."""
    from torchmetrics.image.fid import _compute_fid

    x, y = draw(n, 96, seed=1), draw(n + 20, 96, seed=2) @ rotation(96, 3) * 1.3 + 0.1
    theirs = float(_compute_fid(*gaussian_statistics(x), *gaussian_statistics(y)))
    rel = 1e-9 if n > 96 else 1e-7
    assert frechet_distance(x, y) == pytest.approx(theirs, rel=rel)
    if n > 96:
        ours = frechet_from_statistics(*gaussian_statistics(x), *gaussian_statistics(y))
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_numpy_float32_is_computed_in_float64():
    x, y = draw(50, 8).float(), draw(60, 8, seed=1).float()
    assert frechet_distance(x.numpy(), y.numpy()) == frechet_distance(x.double(), y.double())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), n=st.integers(5, 40))
def test_invariances(seed, scale, n):
    """FD does not see a common rotation and shift or the order of rows; it scales as a square; symmetric."""
    d = 6
    x, y = draw(n, d, seed=seed), draw(n + 3, d, seed=seed + 1) * 0.7
    value = frechet_distance(x, y)
    moved = frechet_distance(x @ rotation(d, seed) + 2.0, (y @ rotation(d, seed) + 2.0).flip(0))
    assert moved == pytest.approx(value, rel=1e-9, abs=1e-10)
    assert frechet_distance(scale * x, scale * y) == pytest.approx(scale**2 * value, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9)
    assert 0.0 <= frechet_distance(x, x) <= 1e-12 * d


def test_statistics_are_unbiased_moments():
    x = draw(30, 4)
    mean, cov = gaussian_statistics(x)
    np.testing.assert_allclose(cov.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    np.testing.assert_allclose(mean.numpy(), x.numpy().mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(5, 3), torch.ones(5, 4), "widths differ: 3 and 4"),
        (torch.ones(1, 3), torch.ones(5, 3), r"x must be \[n,d\] with n ≥ 2"),
        (torch.ones(5, 3), torch.tensor([[1.0, 2.0, float("nan")]] * 2), "y: 2 of 2 rows are not finite"),
    ],
)
def test_bad_arrays_are_refused(x, y, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(x, y)
