import pytest
import torch
from tiny_players import TinyClock, TinyNet, Words, play, split, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import mean_square
from lmsd.objectives.denoising import Denoising, native_weight
from lmsd.process.gaussian import Process
from lmsd.process.schedules import EDM, Article, Cosine, Flow
from lmsd.process.times import Grid, LogNormal, Uniform
from lmsd.rng import Rng
from lmsd.types import Batch, Cond

RNG = Rng(0, torch.arange(32))


class Fixed(nn.Module):
    """A net that says what it was told to."""

    channels, image_size, token_dim, pooled_dim, z_dim = 3, 2, 0, 0, 0

    def __init__(self, says):
        super().__init__()
        self.says = says

    def forward(self, x, time, cond, z=None):
        return self.says


@pytest.mark.parametrize(
    ("schedule", "prediction", "precondition"),
    [
        (Article(4), "x0", "none"),
        (Article(4), "v", "none"),
        (Cosine(), "eps", "none"),
        (Flow(), "velocity", "none"),
        (EDM(), "x0", "edm"),
        (Flow(), "x0", "edm"),
    ],
)
def test_weights_carry_over_from_the_error_of_x0(schedule, prediction, precondition):
    process = Process(schedule)
    t = Uniform()(RNG, process)
    x_0, eps = (RNG.normal((3, 2, 2), tag).double() for tag in ("x", "e"))
    net = Fixed(RNG.normal((3, 2, 2), "says").double())
    generator = Generator(net, process, prediction=prediction, precondition=precondition)
    x_t = process.noise(x_0, t, eps)
    of_x0 = mean_square(generator(x_t, t, Cond()) - x_0)
    of_net = mean_square(generator(x_t, t, Cond(), output="native") - generator.target(x_0, eps, t))
    alpha, sigma = (value.double() for value in process.schedule(t))
    ratio = sigma / alpha
    weights = {
        "min_snr": (alpha / sigma).square().clamp(max=5.0),
        "edm": (ratio.square() + 0.25) / (0.5 * ratio).square(),
    }
    for name, weight in weights.items():
        expected = (weight * of_x0)[alpha > 0]
        found = (native_weight(name, generator, t) * of_net)[alpha > 0]
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)
    assert torch.equal(native_weight("none", generator, t), torch.ones_like(t))


def test_min_snr_weights_are_hang_et_al_s():
    snr_limit, process = 5.0, Process(Cosine())
    t = torch.tensor([1.0, 100.0, 500.0, 990.0])
    alpha, sigma = process.schedule(t)
    snr = (alpha / sigma).square()
    for kind, expected in (
        ("x0", snr.clamp(max=snr_limit)),
        ("eps", snr.clamp(max=snr_limit) / snr),
        ("v", snr.clamp(max=snr_limit) / (snr + 1)),
    ):
        generator = Generator(Fixed(None), process, prediction=kind)
        torch.testing.assert_close(native_weight("min_snr", generator, t), expected, rtol=1e-3, atol=0)


def test_edm_weight_of_the_preconditioned_net_is_one():
    generator = Generator(Fixed(None), Process(EDM()), precondition="edm")
    t = LogNormal()(RNG, generator.process)
    torch.testing.assert_close(native_weight("edm", generator, t), torch.ones(32))


def test_optimum_is_the_posterior_mean_of_gaussian_data():
    """Data N(0, r²), one time, a net v̂ = k x: the optimum is k = ασ(1 − r²)/(α²r² + σ²)."""
    process, std = Process(Article(4)), 0.5

    class Slope(nn.Module):
        channels, image_size, token_dim, pooled_dim, z_dim = 1, 1, 0, 0, 0

        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x, time, cond, z=None):
            return self.slope * x

    generator = Generator(Slope(), process, prediction="v")
    position = torch.arange(100_000)
    batch = Batch(std * Rng(1, position).normal((1, 1, 1), "x").double(), position)
    objective = Denoising(lambda rng, process: torch.full((len(rng),), 2.0), caption_dropout=0.0)
    (turn,) = objective.turns({"generator": generator}, batch, TinyClock(), Rng(2, position))
    turn.loss().value.backward()  # a quadratic in the slope: k = −L'(0)/L'', L'' = 2 E x_t²
    alpha, sigma = (value.item() for value in process.schedule(torch.tensor([2.0])))
    variance = (alpha * std) ** 2 + sigma**2
    optimum = -generator.net.slope.grad.item() / (2 * variance)
    assert optimum == pytest.approx(alpha * sigma * (1 - std**2) / variance, rel=0.02)


def test_loss_is_a_plain_loop_bit_for_bit():
    torch.manual_seed(0)
    generator = Generator(TinyNet(2), Process(Flow()), prediction="velocity", conditioner=Words(), z_dim=2)
    batch = tiny_batch(6)
    batch = Batch(batch.x.float(), batch.position, text=batch.text)
    rng = Rng(4, batch.position)
    loss = Denoising(Uniform(), caption_dropout=0.5).loss(generator, batch, rng)
    t = Uniform()(rng, generator.process)
    eps, drop = rng.normal((2, 3, 3), "eps"), rng.uniform((), "drop") < 0.5
    assert 0 < drop.sum() < 6
    cond = generator.conditioner(batch, drop)
    x_t = (1 - t)[:, None, None, None] * batch.x + t[:, None, None, None] * eps
    out = generator.net(x_t, 1000 * t, cond, rng.normal((2,), "z"))
    plain = (out - (eps - batch.x)).square().flatten(1).mean(1).mean()
    assert torch.equal(loss.value, plain)
    assert torch.equal(loss.logs["denoising"], plain)
    assert not loss.logs["denoising"].requires_grad


@pytest.mark.parametrize("weighting", ["none", "min_snr", "edm"])
def test_four_micro_batches_are_one_batch(weighting):
    objective = Denoising(Grid(4), weighting=weighting, caption_dropout=0.3)
    results = []
    for parts in (1, 4):
        players = tiny_players()
        results.append(play(objective, players, split(tiny_batch(12), parts), TinyClock()))
    (whole,), (parts,) = results
    assert whole[0] == parts[0] == "generator"
    assert whole[1].keys() == parts[1].keys() == dict(players["generator"].named_parameters()).keys()
    for name, gradient in whole[1].items():
        torch.testing.assert_close(parts[1][name], gradient, rtol=1e-10, atol=1e-12 * gradient.abs().max())


def test_unknown_weighting_is_refused():
    with pytest.raises(UserError, match="min_snr"):
        Denoising(Uniform(), weighting="snr")
