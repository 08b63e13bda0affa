"""Intervals: coverage on known Gaussians, closed forms, edges."""

import pytest
import torch
from scipy.stats import binomtest, ttest_1samp, ttest_rel
from scipy.stats import t as student

from lmsd.errors import UserError
from lmsd.metrics import (
    Interval,
    Score,
    batch_means,
    clustered_share,
    compare,
    divided,
    divided_share,
    extrapolated,
    frechet_distance,
    frechet_infinity,
    jackknife,
    jackknife_groups,
    mean_interval,
    stretched,
    thirds,
    wilson,
)


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


def test_a_clustered_share_knows_how_many_prompts_there_are():
    """Equal answers of one prompt count once, independent ones as often as they are; by Wilson's formula."""
    generator = torch.Generator().manual_seed(0)
    once = torch.rand(400, 1, generator=generator) < 0.3
    same = clustered_share(once.expand(400, 3))
    by_hand = wilson(int(once.sum()), 400)
    assert (same.low, same.high) == pytest.approx((by_hand.low, by_hand.high), rel=0.01)
    free = clustered_share(torch.rand(400, 3, generator=generator) < 0.3)
    width = wilson(360, 1200)
    assert free.high - free.low == pytest.approx(width.high - width.low, rel=0.1)
    every = clustered_share(torch.ones(50, 3, dtype=torch.bool))
    assert (every.low, every.high) == (wilson(50, 50).low, 1.0), "three times the same 50 prompts"
    shared = clustered_share(torch.tensor([[True, False]] * 49 + [[True, True]]))
    assert (shared.low, shared.high) == (wilson(51, 100).low, wilson(51, 100).high), "no more than 100 trials"


def test_the_interval_of_a_mean_is_students():
    values = torch.randn(30, 4, generator=torch.Generator().manual_seed(1)).double() + 2.0
    found, theirs = mean_interval(values), ttest_1samp(values.mean(dim=1).numpy(), 0.0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-10)
    with pytest.raises(UserError, match="one prompt has no spread"):
        mean_interval(values[:1])


def test_batches_and_pseudo_values_of_a_mean_are_students_too():
    """For a mean both methods are the t-interval over the groups' means."""
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(2)).double() + 9.0
    means, everything = x.mean(dim=1), float(x.mean())
    theirs = ttest_1samp(means.numpy(), 0.0).confidence_interval()
    without = [float(x[torch.arange(20) != group].mean()) for group in range(20)]
    for found in (batch_means(everything, means.tolist()), extrapolated(everything, without)):
        assert found.value == pytest.approx(everything, rel=1e-12)
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-10)


T_20 = 2.0859634
"""Student's t of 20 degrees of freedom at 0.975."""


def test_thirds_divide_the_rows_ten_times():
    found = thirds(32)
    assert len(found) == 30
    assert {len(rows) for rows in found} == {10}
    for division in range(0, 30, 3):
        assert len(torch.cat(found[division : division + 3]).unique()) == 30
    assert torch.equal(found[9], thirds(32)[9])
    assert not torch.equal(found[9], thirds(32, seed=1)[9])


def test_thirds_of_a_mean_give_its_standard_error():
    """By hand, and on average over samples σ/√n."""
    found = divided(5.0, [4.0, 5.0, 6.0] * 10)
    assert found.high - 5.0 == pytest.approx(T_20 / 3**0.5, rel=1e-6)
    assert divided(0.1, [0.0, 1.0, 2.0] * 10).low == 0.0
    squared = []
    for seed in range(200):
        x = torch.randn(81, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 9.0
        ends = divided(float(x.mean()), [float(x[rows].mean()) for rows in thirds(81, seed=seed)])
        squared.append(((ends.high - ends.low) / 2 / T_20) ** 2)
    assert sum(squared) / 200 == pytest.approx(1 / 81, rel=0.1)


def test_a_share_is_never_surer_than_of_independent_rows():
    sure, known = divided_share(1.0, [1.0] * 30, 50), wilson(50, 50)
    assert (sure.low, sure.high) == (known.low, known.high)
    spread = [0.8, 0.9, 1.0] * 10
    wide = divided_share(0.95, spread, 400)
    assert wide.high == 1.0
    assert wide.low == divided(0.95, spread).low < wilson(380, 400).low


def test_parts_are_stretched_to_the_spread_of_the_whole():
    """A share that is nearer to ½ on all rows: by the quotient of p (1 − p); else not at all."""
    parts = [0.8, 0.9, 1.0] * 10
    step = 0.1 * (8 / 3) ** 0.5
    assert stretched(0.6, parts)[:3] == pytest.approx([0.9 - step, 0.9, 0.9 + step])
    assert stretched(0.95, parts) == pytest.approx(parts)
    assert stretched(1.0, [1.0] * 30) == [1.0] * 30


def test_fd_infinity_has_no_bias_of_order_one_over_n():
    """Equal Gaussians: FD at n=100 is far above 0, its extrapolation is not."""
    found = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 100, 4, generator=generator, dtype=torch.float64)
        found.append((frechet_distance(x, y), frechet_infinity(x, y).value))
    biased, free = torch.tensor(found).mean(dim=0).tolist()
    assert biased > 0.15
    assert abs(free) < 0.15 * biased


def test_fd_infinity_is_the_line_through_two_sizes():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 200, 3, generator=generator, dtype=torch.float64)
    groups = jackknife_groups(200)
    less = sum(frechet_distance(x[groups != g], y[groups != g]) for g in range(20)) / 20
    whole = frechet_distance(x, y)
    slope = (less - whole) / (1 / 190 - 1 / 200)
    assert frechet_infinity(x, y).value == pytest.approx(whole - slope / 200, rel=1e-9)


def test_fd_infinity_refuses_what_it_cannot_bear():
    with pytest.raises(UserError, match="99 samples are too few for FD∞ of 50 features: take n ≥ 100"):
        frechet_infinity(torch.zeros(99, 50), torch.zeros(200, 50))


def test_a_comparison_of_thirds_is_of_their_differences():
    """The error of 30 differences, 20 degrees of freedom."""
    one, other = [4.0, 5.0, 6.0] * 10, [2.0, 2.0, 3.0] * 10
    scores = [Score(divided(v, parts), tuple(parts), "thirds") for v, parts in ((5.0, one), (4.0, other))]
    found, error = compare(*scores), (1 / 3 / 3) ** 0.5  # of the differences 2, 3, 3
    assert found.difference.value == 1.0
    assert found.difference.high - 1.0 == pytest.approx(T_20 * error, rel=1e-6)
    assert found.p == pytest.approx(2 * student.sf(1.0 / error, 20), rel=1e-9)


@pytest.mark.parametrize("method", ["batches", "jackknife"])
def test_a_comparison_is_students_paired_test(method):
    """On means, where it is known: the t-test on the groups' differences."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(20, generator=generator).double()
    one, other = base + 5.1, base + 0.3 * torch.randn(20, generator=generator).double() + 5.0

    def parts(x):
        return [float((x.sum() - v) / 19) for v in x] if method == "jackknife" else x.tolist()

    values = [Score(Interval(float(x.mean()), 0, 0), tuple(parts(x)), method) for x in (one, other)]
    found, theirs = compare(*values), ttest_rel(one.numpy(), other.numpy())
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.different == (theirs.pvalue < 0.05)
    ends = theirs.confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_parts_that_are_all_alike_tell_nothing_apart():
    """1 of 400 beyond the neighborhoods, which those of thirds are too large to show; all against none."""
    whole = Score(divided_share(1.0, [1.0] * 30, 400), (1.0,) * 30, "thirds")
    one_less = Score(divided_share(0.9975, [1.0] * 30, 400), (1.0,) * 30, "thirds")
    none = Score(divided_share(0.0, [0.0] * 30, 400), (0.0,) * 30, "thirds")
    assert compare(whole, one_less).p == 1.0
    assert compare(whole, none).p == 0.0


def test_a_comparison_of_a_model_with_itself_finds_nothing():
    model = Score(Interval(1.0, 0.5, 1.5), (1.0, 2.0), "log jackknife")
    same = compare(model, model)
    assert (same.p, same.different) == (1.0, False)
    with pytest.raises(UserError, match="2 and 3 groups"):
        compare(model, Score(Interval(1.0, 0.5, 1.5), (1.0, 2.0, 3.0), "log jackknife"))
