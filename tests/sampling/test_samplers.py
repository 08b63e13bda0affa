"""Every sampler on Gaussian data, where the denoiser, the flow and its end are known exactly.

Data x0 ~ N(m, d^2): x̂0(x, t) = m + a d^2 (x - a m) / (a^2 d^2 + s^2), and the probability flow takes
x_T = a_T m + sqrt(a_T^2 d^2 + s_T^2) n to m + d n.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import EDM, Article, Cosine, Flow, Jumps, Linear, Process, Schedule
from lmsd.rng import Rng
from lmsd.sampling import DPMSolverPP2M, Heun, Knot, Level, Sampler, Tau, levels

MEAN, STD = 0.3, 0.5
SCHEDULES: dict[str, Schedule] = {"flow": Flow(), "edm": EDM(), "linear": Linear(), "cosine": Cosine()}


def exact(process: Process):
    """x̂0 of N(MEAN, STD^2) data, in the dtype of x."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, s = process.alpha_sigma(t, x_t)
        return MEAN + a * STD**2 * (x_t - a * MEAN) / (a**2 * STD**2 + s**2)

    return denoise


def flow_error(sampler: Sampler, schedule: Schedule, steps: int) -> float:
    """Largest distance to the exact end of the probability flow, from a few x_T, in float64."""
    process = Process(schedule)
    top = levels(schedule, steps)[0]
    n = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    x_T = top.alpha * MEAN + math.hypot(top.alpha * STD, top.sigma) * n
    got = sampler(exact(process), x_T, Rng(0, torch.arange(5)), process=process, steps=steps)
    return float((got - (MEAN + STD * n)).abs().max())


@pytest.mark.parametrize("name", ["flow", "edm"])
@pytest.mark.parametrize(
    ("sampler", "order", "slack"),
    [(Tau(0), 1, 0.05), (Heun(), 2, 0.1), (DPMSolverPP2M(), 2, 0.25)],
    ids=["tau0", "heun", "dpm2m"],
)
def test_deterministic_samplers_have_their_order(sampler, order, slack, name):
    """Doubling the steps divides the distance to the exact end by 2^order (2M on a flow: nearly)."""
    coarse, fine = (flow_error(sampler, SCHEDULES[name], steps) for steps in (150, 300))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=slack)
    assert fine < (0.01 if order == 1 else 2e-4)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", [Tau(0), Heun(), DPMSolverPP2M()], ids=["tau0", "heun", "dpm2m"])
def test_deterministic_samplers_converge_on_chains(sampler, name):
    """On even steps of a chain the last one, Euler's from sigma ~ 1/sqrt(n), bounds the order: 1 for all."""
    coarse, fine = (flow_error(sampler, SCHEDULES[name], steps) for steps in (50, 200))
    assert fine < coarse / 2.5
    assert fine < (0.016 if isinstance(sampler, Tau) else 1.5e-3)


def moments(tau: float, schedule: Schedule, steps: int) -> tuple[float, float]:
    """Mean and std of the sampler's result from the true marginal at T, without drawing a sample.

    With this denoiser a step is affine in x_t plus noise: its mean at x_t = 0 and 1 gives the map.
    """
    process, sampler = Process(schedule), Tau(tau)
    table = levels(schedule, steps)
    probe, rng = torch.tensor([[0.0], [1.0]], dtype=torch.float64), Rng(0, torch.arange(2))
    mean, variance = table[0].alpha * MEAN, (table[0].alpha * STD) ** 2 + table[0].sigma ** 2
    for t, s in pairwise(table):
        start, to = (Knot(level, torch.tensor([level.time] * 2)) for level in (t, s))
        step = sampler.step(exact(process), probe, start, to, rng, None)
        slope = float(step.mean[1] - step.mean[0])
        mean = float(step.mean[0]) + slope * mean
        variance = slope**2 * variance + step.std**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("name", ["flow", "edm", "linear"])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.5])
def test_every_tau_converges_to_the_data_with_first_order(tau, name):
    results = [moments(tau, SCHEDULES[name], steps) for steps in (50, 100, 200)]
    errors = [math.hypot(mean - MEAN, std - STD) for mean, std in results]
    assert errors[2] < 0.04
    for coarse, fine in pairwise(errors):
        assert 1.55 < coarse / fine < 2.4


@pytest.mark.parametrize("steps", [5, 20])
def test_samples_have_the_moments_of_their_steps(steps):
    """The loop itself, noise included: 100,000 samples against the exact moments of the same chain."""
    process, n = Process(Flow()), 100_000
    rng = Rng(2, torch.arange(n))
    x = Tau(1.0)(exact(process), rng.normal((1,), "x_T"), rng, process=process, steps=steps)
    mean, std = moments(1.0, Flow(), steps)
    assert x.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(n))
    assert x.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))


def run(sampler: Sampler, t: float, s: float, schedule: Schedule, x0: Tensor, x_t: Tensor):
    """One step with a denoiser that says x0."""
    rows = zip(*(row.tolist() for row in schedule.coefficients(torch.tensor([t, s]).double())), strict=True)
    start, to = (
        Knot(Level(time, *row), torch.full((len(x_t),), time)) for time, row in zip((t, s), rows, strict=True)
    )
    return sampler.step(lambda x, time: x0, x_t, start, to, Rng(0, torch.arange(len(x_t))), None)


@pytest.mark.parametrize(
    ("schedule", "t", "s"),
    [
        (Linear(), 700.0, 150.0),
        (Linear(), 5.0, 0.0),
        (Cosine(), 999.0, 998.0),
        (Article(), 4.0, 3.0),
        (Article(), 4.0, 0.0),
        (EDM(), 80.0, 3.0),
        (EDM(), 3.0, 0.0),
        (Flow(), 1.0, 0.9),
        (Flow(), 0.5, 0.1),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Schedule) else None,
)
class TestOneStep:
    x0 = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    x_t = torch.linspace(2, -3, 8, dtype=torch.float64)[:, None]

    def test_tau_one_is_the_posterior(self, schedule, t, s):
        step = run(Tau(1), t, s, schedule, self.x0, self.x_t)
        end, start = torch.full((8,), s), torch.full((8,), t)
        posterior = Process(schedule).posterior(self.x0, self.x_t, end, start)
        torch.testing.assert_close(step.mean, posterior.mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            torch.full((8, 1), step.std, dtype=torch.float64), posterior.std, rtol=1e-10, atol=1e-12
        )
        noise = Rng(0, torch.arange(8)).normal((1,), "step")
        torch.testing.assert_close(step.x_s, posterior.sample(noise), rtol=1e-6, atol=1e-6)

    def test_tau_zero_is_ddim(self, schedule, t, s):
        step = run(Tau(0), t, s, schedule, self.x0, self.x_t)
        process, start = Process(schedule), torch.full((8,), t)
        alpha, sigma = process.alpha_sigma(start, self.x_t)
        eps = (self.x_t - alpha * self.x0) / sigma
        expected = process.noise(self.x0, torch.full((8,), s), eps)
        assert step.std == 0
        assert step.x_s is step.mean
        torch.testing.assert_close(step.mean, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("sampler", [Heun(), DPMSolverPP2M(), Tau(0.3)], ids=lambda v: type(v).__name__)
    def test_a_point_of_data_is_met_exactly(self, sampler, schedule, t, s):
        """If x̂0 never changes, every deterministic sampler follows the same line, and all end in x̂0."""
        step = run(sampler, t, s, schedule, self.x0, self.x_t)
        if s == 0:
            torch.testing.assert_close(step.x_s, self.x0, rtol=1e-12, atol=1e-12)
            assert step.std == 0
        elif not isinstance(sampler, Tau):
            line = run(Tau(0), t, s, schedule, self.x0, self.x_t)
            torch.testing.assert_close(step.x_s, line.x_s, rtol=1e-9, atol=1e-11)


def test_few_steps_are_the_training_chain():
    """The four jumps of the article's grid: posterior draws on the knots of Jumps(4), x̂0 at last."""
    process, rng = Process(Article()), Rng(4, torch.arange(6))
    denoise = exact(process)
    x = x_T = rng.normal((3,), "x_T")
    s, t = Jumps(4)(Rng(0, torch.arange(500)), process)
    trained = torch.stack([t, s], 1).unique(dim=0).flip(0)
    for k, (t_k, s_k) in enumerate(trained):
        start, end = t_k.expand(6), s_k.expand(6)
        normal = process.posterior(denoise(x, start), x, end, start)
        x = normal.sample(rng.at(k).normal((3,), "step"))
    got = Tau(1)(denoise, x_T, rng, process=process, steps=4)
    torch.testing.assert_close(got, x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("tau", [-0.1, math.inf, math.nan])
def test_tau_out_of_range_is_refused(tau):
    with pytest.raises(UserError, match=f"not {tau}"):
        Tau(tau)
