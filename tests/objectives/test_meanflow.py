"""MeanFlow against the exact average velocity of Gaussian data, whose flow is a line for every (r, t)."""

import math

import pytest
import torch
from tiny_players import TinyClock, play, split, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.models.backbones import TextTransformer
from lmsd.models.conditioner import Conditioner
from lmsd.models.generator import Generator
from lmsd.objectives import MeanFlow
from lmsd.objectives.base import Facts
from lmsd.objectives.meanflow import told, velocity_and_slope
from lmsd.process import EDM, Flow, Process, Uniform
from lmsd.rng import Rng
from lmsd.sampling import Settings, Tau, sample
from lmsd.types import Batch, Cond, Sizes

MEAN, STD = 0.3, 0.6


class Pooled(Conditioner):
    """Zeros: what F(r) is added to."""

    pooled_dim = 2

    def forward(self, batch, drop=None):
        return Cond(pooled=torch.zeros(len(batch), 2, dtype=batch.x.dtype))


class Exact(nn.Module):
    """U(x, r, t) = (x_t − x_r)/(t − r) of data N(m, s²): x_r = (1−r) m + (σ_r/σ_t)(x_t − (1−t) m).

    average: else the velocity at t, whatever r.
    """

    channels, image_size, token_dim, pooled_dim, z_dim = 1, 1, 0, 2, 0

    def __init__(self, *, average=True):
        super().__init__()
        self.average = average

    def forward(self, x, time, cond, z=None):
        t = time.double()[:, None, None, None] / 1000
        r = torch.atan2(cond.pooled[:, 1], cond.pooled[:, 0] + 1)[:, None, None, None] / (math.pi / 2)
        r = torch.minimum(r if self.average else t, t - 1e-6)

        def spread(time):
            return ((1 - time).square() * STD**2 + time.square()).sqrt()

        x_r = (1 - r) * MEAN + spread(r) / spread(t) * (x - (1 - t) * MEAN)
        return (x - x_r) / (t - r)


def exact(**options):
    return Generator(Exact(**options), Process(Flow()), prediction="velocity", conditioner=Pooled())


def gaussian_batch(count):
    position = torch.arange(count)
    return Batch(MEAN + STD * Rng(1, position).normal((1, 1, 1), "x").double(), position)


def dependence(generator, count=40_000):
    """How far the target's distance from u depends on x_t, t and r: the largest coefficient in its errors."""
    batch, objective = gaussian_batch(count), MeanFlow(Uniform(), apart=1.0)
    rng = Rng(3, batch.position)
    r, t = objective.draw_times(generator, rng)
    eps = rng.normal((1, 1, 1), "eps").double()
    x_t, v = generator.process.noise(batch.x, t, eps), eps - batch.x
    with torch.no_grad():
        u, slope = velocity_and_slope(generator, x_t, t, v, told(generator.condition(batch), r), None)
    left = (v - (t - r).double()[:, None, None, None] * slope - u).flatten()
    x = x_t.flatten()
    inputs = torch.stack([torch.ones_like(left), x, t.double(), r.double(), x * t, x * r], 1)
    found = torch.linalg.lstsq(inputs, left).solution
    inverse = torch.linalg.inv(inputs.T @ inputs)
    spread = inverse @ (inputs * left.square()[:, None]).T @ inputs @ inverse
    return (found.abs() / spread.diagonal().sqrt()).max().item()


def test_the_average_velocity_is_the_fixed_point_and_the_velocity_at_t_is_not():
    """There the target has u as its mean at every (x_t, r, t)."""
    assert dependence(exact()) < 4
    assert dependence(exact(average=False)) > 10


def test_one_step_is_exact():
    generator, batch = exact(), gaussian_batch(50)
    rng = Rng(5, batch.position)
    x = sample(
        generator, generator.condition(batch), sampler=Tau(0.0), settings=Settings(1, bound=None), rng=rng,
        shape=(1, 1, 1), dtype=torch.float64,
    )  # fmt: skip
    noise = rng.normal((1, 1, 1), "x_T").double()
    torch.testing.assert_close(x, MEAN + STD * noise, rtol=0, atol=1e-5)


def test_the_derivative_is_that_of_a_small_step():
    generator, batch = tiny_players(schedule=Flow(), prediction="velocity")["generator"], tiny_batch(6)
    t, v, h = torch.full((6,), 0.4, dtype=torch.float64), torch.randn_like(batch.x), 1e-5
    cond, z = generator.condition(batch), torch.ones(6, 2, dtype=torch.float64)
    _, slope = velocity_and_slope(generator, batch.x, t, v, cond, z)
    up, down = (generator.net(batch.x + k * v, (t + k) * 1000, cond, z) for k in (h, -h))
    torch.testing.assert_close(slope, ((up - down) / (2 * h)).detach(), rtol=1e-2, atol=1e-4)


def test_attention_goes_through_the_math_kernel():
    """The fused kernel has no forward derivative, and a transformer trains all the same."""
    torch.manual_seed(0)
    net = TextTransformer(Sizes(1, 4, token_dim=8), patch=2, layers=1, heads=2, head_dim=8)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t, cond = torch.randn(2, 1, 4, 4), torch.full((2,), 0.5), Cond(tokens=torch.randn(2, 3, 8))

    def native(x, t):
        return net(x, t * 1000, cond)

    with pytest.raises(NotImplementedError):
        torch.func.jvp(native, (x, t), (torch.randn_like(x), torch.ones(2)))
    generator = Generator.__new__(Generator)
    nn.Module.__init__(generator)
    generator.net, generator.process, generator.z_dim, generator.precondition = (
        net,
        Process(Flow()),
        0,
        "none",
    )
    u, slope = velocity_and_slope(generator, x, t, torch.randn_like(x), cond, None)
    (u - slope).square().mean().backward()
    assert slope.any()
    assert any(p.grad is not None and p.grad.any() for p in net.parameters())


def test_without_a_second_time_nothing_is_told():
    cond = Cond(
        tokens=torch.randn(2, 3, 8), mask=torch.ones(2, 3, dtype=torch.bool), pooled=torch.randn(2, 5)
    )
    same, other = told(cond, torch.zeros(2)), told(cond, torch.tensor([0.0, 0.5]))
    assert torch.equal(same.tokens, cond.tokens)
    assert torch.equal(same.pooled, cond.pooled)
    assert torch.equal(other.pooled[0], cond.pooled[0])
    assert (other.pooled[1, :4] != cond.pooled[1, :4]).all()
    assert (other.tokens[1] != cond.tokens[1]).all()
    assert other.mask is cond.mask


def test_a_share_is_flow_matching():
    generator, batch = exact(), gaussian_batch(4000)
    r, t = MeanFlow(Uniform(), apart=0.25).draw_times(generator, Rng(0, batch.position))
    assert (r <= t).all()
    assert (r < t).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_four_micro_batches_are_one_batch():
    runs = [
        play(
            MeanFlow(Uniform(), apart=0.5),
            {"generator": tiny_players(schedule=Flow(), prediction="velocity")["generator"]},
            split(tiny_batch(12), parts),
            TinyClock(),
        )
        for parts in (1, 4)
    ]
    (((_, whole, _),), ((_, parts, _),)) = runs
    largest = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-10, atol=1e-11 * largest)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": EDM(), "prediction": "velocity"}, "schedule=flow"),
        ({"schedule": Flow(), "prediction": "v"}, "prediction=velocity"),
    ],
)
def test_what_is_no_velocity_of_a_flow_is_refused(options, said):
    generator = tiny_players()["generator"]
    generator.process, generator.prediction = Process(options["schedule"]), options["prediction"]
    with pytest.raises(UserError, match=said):
        MeanFlow(Uniform()).prepare(Facts([], lambda: None, {"generator": generator}))


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="apart=2"):
        MeanFlow(Uniform(), apart=2)
    generator = exact()
    generator.net.pooled_dim = 0
    with pytest.raises(UserError, match="this net takes none"):
        MeanFlow(Uniform()).prepare(Facts([], lambda: None, {"generator": generator}))
