"""The loop: its knots, its random numbers, what it hands to the denoiser."""

import math

import pytest
import torch

from lmsd.errors import UserError
from lmsd.process import EDM, Article, Flow, Linear, Process
from lmsd.rng import Rng
from lmsd.sampling import DPMSolverPP2M, Heun, Tau, levels

SAMPLERS = [Tau(0), Tau(1), Heun(), DPMSolverPP2M()]
samplers = pytest.mark.parametrize("sampler", SAMPLERS, ids=["tau0", "tau1", "heun", "dpm2m"])


@pytest.mark.parametrize("schedule", [Linear(), Article(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_levels_are_the_schedule_in_plain_floats(schedule):
    table = levels(schedule, 4)
    alpha, sigma = schedule(torch.tensor(schedule.grid(4)))
    assert [level.time for level in table] == schedule.grid(4)
    torch.testing.assert_close(torch.tensor([level.alpha for level in table]), alpha, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor([level.sigma for level in table]), sigma, rtol=1e-6, atol=0)
    assert table[-1].lam == math.inf
    assert levels(schedule, 4) is table


@samplers
def test_the_denoiser_sees_the_knots_as_batches_of_times(sampler):
    seen = []

    def denoise(x_t, t):
        seen.append(t.clone())
        return 0.1 * x_t

    process = Process(Flow())
    x = sampler(denoise, torch.ones(3, 2), Rng(0, torch.arange(3)), process=process, steps=4)
    assert x.shape == (3, 2)
    times = [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25] if isinstance(sampler, Heun) else [1.0, 0.75, 0.5, 0.25]
    assert [t.tolist() for t in seen] == [[time] * 3 for time in times]


@samplers
def test_a_sample_does_not_depend_on_its_batch(sampler):
    process, position = Process(Flow()), torch.arange(20)

    def draw(rng):
        x_T = rng.normal((2, 3), "x_T")
        return sampler(lambda x, t: torch.tanh(x), x_T, rng, process=process, steps=5)

    parts = [draw(Rng(3, part)) for part in position.split(7)]
    torch.testing.assert_close(draw(Rng(3, position)), torch.cat(parts), rtol=0, atol=1e-6)


def test_noise_is_fresh_in_every_step():
    process, rng = Process(Flow()), Rng(3, torch.arange(2000))
    path = list(
        Tau(1).path(
            lambda level, here: lambda x, t: 0 * x, rng.normal((1,), "x_T"), rng=rng, process=process, steps=4
        )
    )
    noise = torch.stack([((step.x_s - step.mean) / step.std).flatten() for step in path[:-1]])
    assert path[-1].std == 0
    off = noise.corrcoef() - torch.eye(3)
    assert off.abs().max() < 4.5 / math.sqrt(2000)
    torch.testing.assert_close(noise[1], rng.at(1).normal((1,), "step").flatten(), rtol=0, atol=1e-5)


def test_the_path_hands_each_step_its_start_and_numbers():
    starts = []

    def denoise_at(level, here):
        starts.append((level.time, here.turn))
        return lambda x, t: x

    rng = Rng(0, torch.arange(2))
    for step in Heun().path(denoise_at, torch.ones(2, 1), rng=rng, process=Process(Flow()), steps=2):
        assert torch.equal(step.x_s, step.mean)
    assert starts == [(1.0, 0), (0.5, 1)]


def test_gradients_flow_through_the_whole_path():
    """For x̂0 = w everywhere the end is w itself, whatever the path: d x0 / d w = 1."""
    w, process, rng = torch.tensor(0.2, requires_grad=True), Process(Flow()), Rng(0, torch.arange(1))
    for sampler in SAMPLERS:
        x = sampler(lambda x, t: w.expand_as(x), torch.ones(1, 1), rng, process=process, steps=3)
        (slope,) = torch.autograd.grad(x.sum(), w)
        assert slope.item() == pytest.approx(1, abs=1e-6)


def test_more_steps_than_the_chain_has_are_refused():
    with pytest.raises(UserError, match="steps=5 on a chain of 4"):
        Tau(1)(lambda x, t: x, torch.ones(1, 1), Rng(0, torch.arange(1)), process=Process(Article()), steps=5)
