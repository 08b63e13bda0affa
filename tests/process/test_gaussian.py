"""The closed forms against brute-force Gaussian conditioning in float64; the conversions at their ends."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import EDM, Article, Cosine, Discrete, Flow, Linear, Process, ScaledLinear, Schedule
from lmsd.process.gaussian import determinant, row
from lmsd.rng import Rng

SCHEDULES: list[Schedule] = [
    Linear(),
    ScaledLinear(),
    Cosine(),
    Article(),
    Article(8),
    EDM(),
    Flow(),
]
KINDS = ("eps", "x0", "v", "velocity")

schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{type(s).__name__}{s.steps or ''}")


def at(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def scales(schedule: Schedule, t: float) -> tuple[float, float]:
    """α and σ from their definitions, not through the tables of the schedule."""
    if isinstance(schedule, EDM):
        return 1.0, t
    if isinstance(schedule, Flow):
        return 1 - t, t
    abar = math.prod(1 - float(beta) for beta in definition(schedule)[: round(t)])
    return math.sqrt(abar), math.sqrt(1 - abar)


def definition(schedule: Schedule) -> list[float]:
    assert schedule.steps is not None
    n = schedule.steps
    share = [i / (n - 1) for i in range(n)]
    if isinstance(schedule, Linear):
        return [1e-4 + u * (0.02 - 1e-4) for u in share]
    if isinstance(schedule, ScaledLinear):
        low, high = math.sqrt(0.00085), math.sqrt(0.012)
        return [(low + u * (high - low)) ** 2 for u in share]
    if isinstance(schedule, Article):
        return [(i + 1) / n for i in range(n)]
    wave = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return [min(1 - wave[i + 1] / wave[i], 0.999) for i in range(n)]


def conditioned(schedule: Schedule, s: float, t: float, x0: float, x_t: float) -> tuple[float, float]:
    """Mean and std of x_s given x_t and x_0, by conditioning the joint normal of (x_s, x_t) given x_0.

    x_s = a_s x0 + s_s e1, x_t = (a_t/a_s) x_s + rest, with Var(x_t) = s_t^2: the joint has the means
    (a_s x0, a_t x0) and the covariance [[s_s^2, c], [c, s_t^2]], c = (a_t/a_s) s_s^2.
    """
    (a_s, s_s), (a_t, s_t) = scales(schedule, s), scales(schedule, t)
    c = a_t / a_s * s_s**2
    mean = a_s * x0 + c / s_t**2 * (x_t - a_t * x0)
    return mean, math.sqrt(max(s_s**2 - c**2 / s_t**2, 0.0))


def jump(schedule: Schedule, low: float, high: float) -> tuple[float, float]:
    """Two times s < t from two shares of the way in [0, 1]."""
    u = at(max(high, 1e-6))
    t = float(schedule.at(u.float()))
    if schedule.steps is not None:
        return float(math.floor(low * t * 0.999)), t
    return low * t, t


@schedules
@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(0, 0.98),
    high=st.floats(0.01, 1),
    x0=st.floats(-1, 1),
    x_t=st.floats(-3, 3),
)
def test_posterior_is_the_conditioned_normal(schedule, low, high, x0, x_t):
    s, t = jump(schedule, low, high)
    mean, std = conditioned(schedule, s, t, x0, x_t)
    got = Process(schedule).posterior(at(x0), at(x_t), at(s), at(t))
    # The brute-force variance is a difference and carries the rounding of its terms.
    slack = 1e-10 * scales(schedule, s)[1] ** 2
    assert got.mean.item() == pytest.approx(mean, abs=1e-9)
    assert got.std.item() ** 2 == pytest.approx(std**2, rel=1e-9, abs=slack + 1e-15)


@schedules
@settings(max_examples=60, deadline=None)
@given(low=st.floats(0.01, 0.98), high=st.floats(0.01, 1), x0=st.floats(-1, 1), guess=st.floats(-1, 1))
def test_kl_of_two_posteriors_is_the_difference_of_snr(schedule, low, high, x0, guess):
    s, t = jump(schedule, low, high)
    if scales(schedule, s)[1] == 0:
        return
    process = Process(schedule)
    real, fake = (process.posterior(at(x), at(0.3), at(s), at(t)) for x in (x0, guess))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(real.mean, real.std), torch.distributions.Normal(fake.mean, fake.std)
    ).item()
    huge = 1e12  # no bound in reach, so the weight is the identity itself
    weight = process.kl_weight(at(s), at(t), kappa=huge).double().item() * huge
    assert weight * (x0 - guess) ** 2 == pytest.approx(kl, rel=1e-6, abs=1e-12)


@schedules
def test_kl_weight_is_bounded_and_one_at_the_last_jump(schedule):
    process = Process(schedule)
    knots = schedule.knots(min(schedule.steps or 20, 20), torch.device("cpu"))
    weight = process.kl_weight(knots[1:], knots[:-1], kappa=5.0)
    levels = [scales(schedule, k) for k in knots.tolist()]
    snr = [math.inf if s == 0 else (a / s) ** 2 for a, s in levels]
    expected = [min(0.5 * (b - a), 5.0) / 5.0 for a, b in pairwise(snr)]
    torch.testing.assert_close(weight, torch.tensor(expected), rtol=2e-5, atol=1e-9)
    assert weight[-1] == 1.0


@schedules
def test_pair_has_the_joint_moments_of_the_chain(schedule):
    process, n = Process(schedule), 200_000
    knots = schedule.grid(4)
    t, s = knots[1], knots[2]
    x0 = torch.full((n, 1), 0.7)
    x_s, x_t = process.pair(x0, torch.full((n,), s), torch.full((n,), t), Rng(3, torch.arange(n)))
    (a_s, s_s), (a_t, s_t) = scales(schedule, s), scales(schedule, t)
    got = torch.cat([x_s, x_t], 1).double()
    error = 5 / math.sqrt(n)  # five standard errors
    assert got.mean(0)[0].item() == pytest.approx(0.7 * a_s, abs=error * s_s)
    assert got.mean(0)[1].item() == pytest.approx(0.7 * a_t, abs=error * s_t)
    cov = got.T.cov()
    assert cov[0, 0].item() == pytest.approx(s_s**2, rel=2 * error)
    assert cov[1, 1].item() == pytest.approx(s_t**2, rel=2 * error)
    # Independent draws of x_s and x_t would have covariance 0 here.
    assert cov[0, 1].item() == pytest.approx(a_t / a_s * s_s**2, abs=2 * error * s_s * s_t)


@schedules
def test_ends_of_pair_and_posterior_are_exact(schedule):
    process, rng = Process(schedule), Rng(0, torch.arange(6))
    x0 = rng.normal((2, 3), "x0")
    clean, end = torch.full((6,), schedule.t_clean), torch.full((6,), schedule.t_noise)
    x_s, x_t = process.pair(x0, clean, end, rng)
    assert torch.equal(x_s, x0)
    last = process.posterior(x0, x_t, clean, end)
    assert torch.equal(last.mean, x0)
    assert torch.equal(last.sample(torch.ones_like(x0)), x0)
    for time in (clean, end):  # an empty jump changes nothing
        still = process.posterior(x0, x_t, time, time)
        assert torch.equal(still.mean, x_t)
        assert not still.std.any()


def test_posterior_of_pure_noise_forgets_it():
    schedule = Article()
    process, rng = Process(schedule), Rng(0, torch.arange(4))
    x0, x_t = rng.normal((3,), "x0"), 100 * rng.normal((3,), "x_t")
    t, s = torch.full((4,), 4.0), torch.full((4,), 3.0)
    got = process.posterior(x0, x_t, s, t)
    torch.testing.assert_close(got.mean, math.sqrt(0.09375) * x0)
    torch.testing.assert_close(got.std, torch.full((4, 1), math.sqrt(1 - 0.09375)))


def test_small_jumps_keep_their_digits():
    """From t to t(1 - 1e-5) the variance added is ~2e-5 of sigma^2, which float32 differences get wrong."""
    schedule = Flow()
    process = Process(schedule)
    t = torch.tensor([0.1, 0.5, 0.9])
    s = t * (1 - 1e-5)
    got = process.posterior(torch.zeros(3, 1), torch.ones(3, 1), s, t).std.double().squeeze()
    s64, t64 = s.double(), t.double()
    ratio = (s64 * (1 - t64) / (t64 * (1 - s64))) ** 2
    torch.testing.assert_close(got, s64 * (1 - ratio).sqrt(), rtol=1e-6, atol=0)


def pieces(schedule: Schedule, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = Rng(1, torch.arange(64))
    time = torch.full((64,), t)
    x0, eps = rng.normal((5,), "x0").clamp(-1, 1), rng.normal((5,), "eps")
    return x0, eps, Process(schedule).noise(x0, time, eps), time


@schedules
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 1.0])
def test_targets_convert_back(schedule, kind, share):
    process = Process(schedule)
    t = float(schedule.at(torch.tensor([share])))
    x0, eps, x_t, time = pieces(schedule, t)
    target = process.target(kind, x0, eps, time)
    a, s = scales(schedule, t)
    if not (kind == "eps" and a == 0):
        # Dividing by a multiplies the rounding of x_t (of size s) by s/a: float32 can do no better.
        scale = {"eps": max(s, 1) / max(a, 1e-30), "x0": 1.0, "v": 1.0, "velocity": 1.0}[kind]
        torch.testing.assert_close(
            process.to_x0(target, kind, x_t, time), x0, rtol=0, atol=2e-6 * max(scale, 1)
        )


def at_snr(family, snr):
    """A schedule of the family, and its time with this SNR: on the flow, in one step of a chain, of EDM."""
    if family == "chain":  # beta = sigma^2 = 1 / (1 + SNR)
        return Discrete(torch.tensor([1 / (1 + snr)], dtype=torch.float64)), 1.0
    if family == "edm":
        return EDM(sigma_max=1e4), snr**-0.5
    return Flow(), 1 / (1 + snr**0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exponent", [-6, 6])
@pytest.mark.parametrize("family", ["flow", "chain", "edm"])
def test_conversions_at_extreme_snr(family, kind, exponent):
    """SNR 1e-6 and 1e+6: alpha/sigma = 1e-3 and 1e+3."""
    schedule, t = at_snr(family, 10.0**exponent)
    process = Process(schedule)
    alpha, sigma = schedule(torch.tensor([t]))
    assert ((alpha / sigma) ** 2).item() == pytest.approx(10.0**exponent, rel=1e-4)
    x0, eps, x_t, time = pieces(schedule, t)
    target = process.target(kind, x0, eps, time)
    # The division by the small scale multiplies float32's 6e-8 by 1e3, once; everything else is a few ulps.
    loss = 1e3 if (kind == "eps" and exponent < 0) else 1.0
    torch.testing.assert_close(process.to_x0(target, kind, x_t, time), x0, rtol=0, atol=1e-6 * loss)


@schedules
@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
def test_x0_is_exact_at_the_clean_end(schedule, kind):
    process = Process(schedule)
    x0, eps, x_t, time = pieces(schedule, schedule.t_clean)
    assert torch.equal(x_t, x0)
    target = process.target(kind, x0, eps, time)
    assert torch.equal(process.to_x0(target, kind, x_t, time), x0)


@pytest.mark.parametrize("schedule", [Article(), Flow()], ids=["article", "flow"])
@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
def test_x0_survives_where_alpha_is_zero(schedule, kind):
    process = Process(schedule)
    x0, eps, x_t, time = pieces(schedule, schedule.t_noise)
    assert torch.equal(x_t, eps)
    target = process.target(kind, x0, eps, time)
    torch.testing.assert_close(process.to_x0(target, kind, x_t, time), x0, rtol=0, atol=5e-7)


def test_v_off_the_unit_circle():
    """The general v -> x0, (a x - s v)/(a^2 + s^2), where a^2 + s^2 = 1 + 80^2."""
    process = Process(EDM())
    x0, eps, x_t, time = pieces(process.schedule, 80.0)
    v = process.target("v", x0, eps, time)
    torch.testing.assert_close(v, eps - 80 * x0)
    torch.testing.assert_close(process.to_x0(v, "v", x_t, time), x0, rtol=0, atol=1e-6)


def test_bfloat16_predictions_come_back_in_float32():
    process = Process(Flow())
    x0, eps, x_t, time = pieces(process.schedule, 0.5)
    u = process.target("velocity", x0, eps, time).bfloat16()
    got = process.to_x0(u, "velocity", x_t.bfloat16(), time)
    assert got.dtype == torch.float32
    assert torch.equal(got, x_t.bfloat16().float() - 0.5 * u.float())


def test_float64_stays_float64():
    process = Process(Linear())
    x = torch.rand(3, 2, dtype=torch.float64)
    t, s = torch.tensor([1000, 500, 3]), torch.tensor([999, 1, 0])
    assert process.posterior(x, x, s, t).mean.dtype == torch.float64
    abar = process.schedule.alpha_bar[t][:, None]  # type: ignore[attr-defined]
    torch.testing.assert_close(
        process.to_x0(x, "eps", x, t), (x - (1 - abar).sqrt() * x) / abar.sqrt(), rtol=1e-13, atol=1e-13
    )


@pytest.mark.parametrize("schedule", [Article(), Article(8), Flow()], ids=["article4", "article8", "flow"])
def test_eps_is_refused_where_alpha_reaches_zero(schedule):
    process = Process(schedule)
    with pytest.raises(UserError, match="choose v, velocity or x0"):
        process.check("eps")
    x = torch.ones(2, 1)
    with pytest.raises(UserError, match="alpha is 0"):
        process.to_x0(x, "eps", x, torch.tensor([schedule.t_noise, schedule.t_noise / 2]))
    for kind in ("x0", "v", "velocity"):
        process.check(kind)
    Process(Linear()).check("eps")
    Process(EDM()).check("eps")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"'epsilon'.*eps, x0, v, velocity"):
        Process(Flow()).check("epsilon")


@schedules
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_the_kinds_are_named_for(schedule, kind):
    """eps; x0; v = alpha eps - sigma x0; velocity = eps - x0: written out, bit for bit."""
    process = Process(schedule)
    x0, eps, x_t, time = pieces(schedule, float(schedule.at(torch.tensor([0.4]))))
    alpha, sigma = process.alpha_sigma(time, x0)
    written = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "velocity": eps - x0}[kind]
    assert torch.equal(process.target(kind, x0, eps, time), written)
    _, b = row(kind, alpha, sigma)
    solved = (b * x_t - sigma * written) / determinant(kind, alpha, sigma)
    torch.testing.assert_close(process.to_x0(written, kind, x_t, time), solved, rtol=1e-4, atol=1e-5)


@schedules
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_the_net_is_an_error_of_x0_times_sigma_over_the_determinant(schedule, kind):
    process = Process(schedule)
    x0, eps, x_t, time = pieces(schedule, float(schedule.at(torch.tensor([0.4]))))
    alpha, sigma = process.alpha_sigma(time, x0)
    target = process.target(kind, x0, eps, time)
    off = process.to_x0(target + 0.1, kind, x_t, time) - process.to_x0(target, kind, x_t, time)
    expected = -0.1 * sigma / determinant(kind, alpha, sigma)
    torch.testing.assert_close(off, expected.expand_as(off), rtol=1e-3, atol=1e-5)


def test_gradients_reach_x0_with_the_posterior_weight():
    process = Process(Article())
    x0 = torch.zeros(1, 1, requires_grad=True)
    got = process.posterior(x0, torch.ones(1, 1), torch.tensor([2.0]), torch.tensor([3.0]))
    (slope,) = torch.autograd.grad(got.mean.sum(), x0)
    at_1 = conditioned(process.schedule, 2, 3, 1.0, 1.0)[0]
    at_0 = conditioned(process.schedule, 2, 3, 0.0, 1.0)[0]
    assert slope.item() == pytest.approx(at_1 - at_0, rel=1e-6)
