"""Intervals: coverage on known Gaussians, closed forms, edges."""

import pytest
import torch
from scipy.stats import binomtest

from lmsd.errors import UserError
from lmsd.metrics import frechet_distance, jackknife, jackknife_groups, wilson


def test_jackknife_of_a_mean_is_its_standard_error():
    """For a mean and groups of one row the jackknife variance is s²/n exactly."""
    x = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 9.0
    without = [float((x.sum() - value) / 39) for value in x]
    found = jackknife(float(x.mean()), without)
    half = 2.0226909 * float(x.std()) / 40**0.5  # t of 39 degrees of freedom at 0.975
    assert found.high - found.value == pytest.approx(half, rel=1e-6)
    assert found.value - found.low == pytest.approx(half, rel=1e-6)


def test_a_quotient_on_the_log_scale_stays_positive_and_is_symmetric_in_its_parts():
    values = [2.0, 5.0, 1.0, 4.0, 3.0, 8.0] * 4
    one, other = jackknife(3.0, values, scale="log"), jackknife(1 / 3.0, [1 / v for v in values], scale="log")
    assert 0.0 < one.low < 3.0 < one.high
    assert (1 / other.high, 1 / other.low) == pytest.approx((one.low, one.high), rel=1e-12)


def coverage(shift: float, trials: int) -> float:
    """Share of jackknife intervals that hold the mean of FD at this n."""
    n, d = 200, 4
    groups = jackknife_groups(n)
    found = []
    for seed in range(trials):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
        y = y * (1 + shift) + shift
        keep = [groups != group for group in range(20)]
        found.append(jackknife(frechet_distance(x, y), [frechet_distance(x[k], y[k]) for k in keep]))
    truth = sum(each.value for each in found) / trials
    return sum(each.low <= truth <= each.high for each in found) / trials


def test_fd_intervals_cover_what_they_say():
    """Nominal 95 %: near it for different Gaussians, above it for equal ones (FD of second order)."""
    assert 0.91 <= coverage(0.3, 200) <= 0.98
    assert coverage(0.0, 100) >= 0.95


def test_groups_are_equal_and_fixed():
    groups = jackknife_groups(105)
    assert sorted(set(groups.bincount().tolist())) == [5, 6]
    assert torch.equal(groups, jackknife_groups(105))
    assert not torch.equal(groups, jackknife_groups(105, seed=1))
    with pytest.raises(UserError, match="use n ≥ 40"):
        jackknife_groups(39)


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (20, 20), (489, 500), (31, 100)])
def test_wilson_equals_scipy(hits, trials):
    theirs = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    ours = wilson(hits, trials)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == hits / trials


def test_wilson_refuses_nonsense():
    for hits, trials in ((3, 2), (-1, 5), (0, 0)):
        with pytest.raises(UserError, match="no share"):
            wilson(hits, trials)
