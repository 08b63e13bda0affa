"""Laws of training times against their distributions (Kolmogorov-Smirnov or chi-squared at fixed seeds)."""

import math

import pytest
import torch
from scipy import stats

from lmsd.errors import UserError
from lmsd.process import (
    EDM,
    Article,
    Flow,
    Grid,
    Jumps,
    Linear,
    LogitNormal,
    LogNormal,
    MixedJumps,
    Process,
    ShiftedUniform,
    Uniform,
)
from lmsd.rng import Rng

N = 20_000


def draw(law, schedule, seed=5):
    return law(Rng(seed, torch.arange(N)), Process(schedule))


def counts(times, steps):
    return torch.bincount(times.long(), minlength=steps + 1)


def test_uniform_on_a_flow():
    t = draw(Uniform(), Flow())
    assert t.dtype == torch.float32
    assert (t > 0).all()
    assert (t <= 1).all()
    assert stats.kstest(t.double().numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("schedule", [Article(), Linear(10)], ids=["article", "linear"])
def test_uniform_on_a_chain_takes_every_step_but_data(schedule):
    t = draw(Uniform(), schedule)
    seen = counts(t, schedule.steps)
    assert seen[0] == 0
    assert stats.chisquare(seen[1:].numpy()).pvalue > 0.01


def test_uniform_on_edm_is_uniform_in_its_warp():
    t = draw(Uniform(), EDM()).double()
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert stats.kstest(((t ** (1 / 7) - low) / (high - low)).numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.6, 1.6)])
def test_logit_normal_on_a_flow(mean, std):
    t = draw(LogitNormal(mean, std), Flow()).double()
    assert stats.kstest((t / (1 - t)).log().numpy(), "norm", (mean, std)).pvalue > 0.01


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_on_a_flow_is_the_shift_of_uniform_times(shift):
    t = draw(ShiftedUniform(shift), Flow()).double()
    assert (t > 0).all()
    assert (t <= 1).all()
    assert stats.kstest((t / (shift - (shift - 1) * t)).numpy(), "uniform").pvalue > 0.01
    torch.testing.assert_close(t.median().item(), shift / (1 + shift), atol=0.01, rtol=0)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_shift_that_is_none_is_refused(shift):
    with pytest.raises(UserError, match="must be above 0"):
        ShiftedUniform(shift)


def test_logit_normal_on_a_chain_has_the_bins_of_its_distribution():
    seen = counts(draw(LogitNormal(), Linear(8)), 8)
    edge = stats.norm.cdf([math.log(u / (1 - u)) for u in (i / 8 for i in range(1, 8))])
    share = [b - a for a, b in zip([0, *edge], [*edge, 1], strict=True)]
    assert stats.chisquare(seen[1:].numpy(), [N * p for p in share]).pvalue > 0.01


def test_log_normal_is_edms():
    t = draw(LogNormal(), EDM())
    assert stats.kstest(t.double().log().numpy(), "norm", (-1.2, 1.2)).pvalue > 0.01


def test_log_normal_is_refused_elsewhere():
    with pytest.raises(UserError, match="not of Flow"):
        draw(LogNormal(), Flow())


@pytest.mark.parametrize("schedule", [Article(), Flow(), EDM(), Linear()], ids=lambda s: type(s).__name__)
def test_grid_takes_every_knot_but_the_clean_one(schedule):
    t = draw(Grid(4), schedule)
    values, seen = t.unique(return_counts=True)
    assert values.tolist() == torch.tensor(schedule.grid(4)[-2::-1]).tolist()
    assert stats.chisquare(seen.numpy()).pvalue > 0.01


@pytest.mark.parametrize("schedule", [Article(), Flow(), EDM(), Linear()], ids=lambda s: type(s).__name__)
def test_jumps_are_the_neighbors_of_the_grid(schedule):
    s, t = draw(Jumps(4), schedule)
    grid = torch.tensor(schedule.grid(4))
    pairs, seen = torch.stack([t, s], 1).unique(dim=0, return_counts=True)
    assert pairs.tolist() == torch.stack([grid[:-1], grid[1:]], 1).flip(0).tolist()
    assert stats.chisquare(seen.numpy()).pvalue > 0.01


@pytest.mark.parametrize("size", [1, 5, 8, 13])
@pytest.mark.parametrize("schedule", [Flow(), EDM(), Linear()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("law", [Uniform(), LogitNormal(), Grid(4)], ids=lambda law: type(law).__name__)
def test_a_sample_has_the_same_time_in_any_batch(law, schedule, size):
    """Bit for bit: vector kernels that round their remainder differently (sigmoid, pow) would fail."""
    process, position = Process(schedule), torch.arange(100, 1099)
    whole = law(Rng(1, position), process)
    parts = torch.cat([law(Rng(1, part), process) for part in position.split(size)])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("schedule", [Flow(), EDM(), Article()], ids=lambda s: type(s).__name__)
def test_the_smallest_uniform_number_is_the_noise_end_not_data(schedule):
    class Smallest(Rng):
        def uniform(self, shape, tag):
            return torch.zeros(len(self), *shape)

    assert Uniform()(Smallest(0, torch.arange(1)), Process(schedule)).item() == schedule.t_noise


def test_jumps_give_the_last_jump_its_share():
    process = Process(Article(steps=4))
    s, t = Jumps(4, last=0.5)(Rng(0, torch.arange(40_000)), process)
    assert set(zip(t.tolist(), s.tolist(), strict=True)) == {(4.0, 3.0), (3.0, 2.0), (2.0, 1.0), (1.0, 0.0)}
    shares = torch.stack([(t == k).float().mean() for k in (1.0, 2.0, 3.0, 4.0)])
    assert torch.allclose(shares, torch.tensor([0.5, 1 / 6, 1 / 6, 1 / 6]), atol=0.01)
    with pytest.raises(UserError, match=r"last=1\.5"):
        Jumps(4, last=1.5)


@pytest.mark.parametrize("last", [None, 0.5])
def test_mixed_jumps_are_those_of_each_grid_in_equal_shares(last):
    s, t = (value.double() for value in draw(MixedJumps((2, 4), last), Flow()))
    seen = {}
    for pair in zip(s.tolist(), t.tolist(), strict=True):
        seen[pair] = seen.get(pair, 0) + 1
    ends = {2: 0.5 if last is None else last, 4: 0.25 if last is None else last}
    expected = {
        (k / n, (k + 1) / n): 0.5 * (ends[n] if k == 0 else (1 - ends[n]) / (n - 1))
        for n in (2, 4)
        for k in range(n)
    }
    assert seen.keys() == expected.keys()
    shares = [N * expected[pair] for pair in seen]
    assert stats.chisquare(list(seen.values()), shares).pvalue > 0.01


def test_one_grid_is_jumps():
    rng, process = Rng(5, torch.arange(50)), Process(Flow())
    for ours, theirs in zip(MixedJumps((4,), 0.5)(rng, process), Jumps(4, 0.5)(rng, process), strict=True):
        assert torch.equal(ours, theirs)


def test_mixed_jumps_need_a_grid_and_a_share():
    with pytest.raises(UserError, match="steps is empty"):
        MixedJumps(())
    with pytest.raises(UserError, match="must be in"):
        MixedJumps((4,), 1.5)
