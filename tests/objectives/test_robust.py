"""Training under disturbances, against closed forms."""

import pytest
import torch
from tiny_players import CAPTIONS, TinyClock, play, split, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.models.codec import Unshuffle
from lmsd.models.generator import Generator
from lmsd.objectives.base import Facts
from lmsd.objectives.denoising import Denoising
from lmsd.objectives.robust import Disturbances, RobustDenoising, moved, restricted
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Flow
from lmsd.process.times import Uniform
from lmsd.rng import Rng
from lmsd.types import Batch, Cond


def method(**disturb):
    return RobustDenoising(Uniform(), disturb=Disturbances(**disturb), caption_dropout=0.2)


class Linear(nn.Module):
    """x̂_0 = W x on flattened images, or what a row of coefficients says for each time."""

    channels, image_size, token_dim, pooled_dim, z_dim = 1, 2, 0, 0, 0

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, time, cond, z=None):
        return (x.flatten(1) @ self.weight.T).view_as(x)


def linear(weight):
    return Generator(Linear(weight), Process(Flow()), prediction="x0").double()


def facts(captions=CAPTIONS):
    """What a run with captions knows."""
    cast = tiny_players()
    cast["generator"].conditioner.reads = "text"
    return Facts(captions, lambda: None, cast)


def test_without_disturbances_it_is_denoising():
    plain = Denoising(Uniform(), caption_dropout=0.2)
    cast, batch = tiny_players(), tiny_batch(8)
    rng = Rng(0, batch.position)
    generator = cast["generator"]
    assert torch.equal(method().loss(generator, batch, rng).value, plain.loss(generator, batch, rng).value)


def test_the_attack_is_the_worst_direction_to_first_order():
    """x̂_0 = W x, L = ‖W x − x_0‖²/D: δ is along Wᵀ(W x − x_0), of norm r √D σ_t."""
    weight = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    generator, robust = linear(weight), method(attack=0.3)
    x_0, x_t = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.linspace(0.2, 1.0, 5)

    def error(x):
        return (generator(x, t, Cond()) - x_0).square().flatten(1).mean(1)

    delta = robust._worst(generator, error, x_t, t).flatten(1)
    slope = (x_t.flatten(1) @ weight.T - x_0.flatten(1)) @ weight
    expected = 0.3 * 2 * t.double()[:, None] * slope / slope.norm(dim=1, keepdim=True)
    torch.testing.assert_close(delta, expected)


def test_input_perturbation_is_more_noise_with_the_target_as_it_was():
    generator, batch = linear(torch.eye(4)), Batch(torch.zeros(40_000, 1, 2, 2), torch.arange(40_000))
    t, eps = torch.full((40_000,), 0.5), Rng(0, batch.position).normal((1, 2, 2), "eps")
    x_t = method(perturb=0.5)._noised(generator, batch.x, t, eps, Rng(0, batch.position))
    assert x_t.std().item() == pytest.approx(0.5 * (1 + 0.25) ** 0.5, rel=0.01)
    assert ((x_t * eps).mean() / eps.square().mean()).item() == pytest.approx(0.5, rel=0.02)


def test_noise_on_the_code_is_for_captions_alone():
    cond = Cond(pooled=torch.randn(1000, 64), tokens=torch.randn(1000, 2, 64))
    drop = torch.arange(1000) % 2 == 0
    made = moved(cond, drop, Rng(3, torch.arange(1000)), 0.7)
    for before, after in ((cond.pooled, made.pooled), (cond.tokens, made.tokens)):
        ratio = (after - before).norm(dim=-1) / before.norm(dim=-1)
        assert ratio[drop].max() == 0
        assert ratio[~drop].mean().item() == pytest.approx(0.7, rel=0.03)


def test_a_share_of_captions_is_wrong():
    robust, count = method(wrong=0.4), 8_000
    robust.prepare(facts())
    batch = Batch(torch.zeros(count, 1, 1, 1), torch.arange(count), text=["a cat"] * count)
    text = robust._mistaken(batch, Rng(0, batch.position)).text
    assert sum(word != "a cat" for word in text) / count == pytest.approx(0.4 * 3 / 4, abs=0.02)
    with pytest.raises(UserError, match="at least two"):
        robust.prepare(facts(["a cat"]))


def test_an_attack_on_noisy_images_leaves_the_target():
    """A denoiser that ignores what it sees cannot be attacked: κ x_t/α is of the loss, not of the net."""
    generator = linear(torch.zeros(4, 4, dtype=torch.float64))
    batch = Batch(torch.randn(6, 1, 2, 2, dtype=torch.float64), torch.arange(6))
    plain, attacked = (
        method(noisy=0.3, attack=r).loss(generator, batch, Rng(0, batch.position)).value for r in (0.0, 0.5)
    )
    torch.testing.assert_close(attacked, plain)


def test_noise_of_pixels_is_not_that_of_a_codec():
    known = facts()
    known.players["generator"].codec = Unshuffle(2, scale=2.0)
    with pytest.raises(UserError, match="noise of pixels"):
        method(noisy=0.2).prepare(known)


def test_times_are_those_with_more_noise_than_the_images_have():
    generator, t = linear(torch.eye(4)), torch.linspace(0, 1, 101)
    made = restricted(generator, t, 0.25)  # σ/α = t/(1 − t) > ¼ where t > 0.2
    assert made.min().item() >= 0.2 - 1e-6
    assert made.max().item() == pytest.approx(1.0)
    assert torch.equal(made[t > 0.21], t[t > 0.21])
    assert made[t < 0.19].std() > 0.2


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_the_best_answer_on_noisy_images_is_the_clean_one(noise):
    """x_0 ~ N(0, v), images x_0 + σ_n n: L is least at E[x_0|x_t] = α v/(α² v + σ²) x_t, at every t."""
    count, v = 200_000, 0.6
    position = torch.arange(count)
    rng = Rng(2, position)
    x_0 = v**0.5 * rng.normal((1, 1, 1), "x").double()
    y = x_0 + noise * rng.normal((1, 1, 1), "n").double()
    robust, generator = method(noisy=noise), linear(torch.eye(4))
    for time in (0.5, 0.8, 1.0):
        t = torch.full((count,), time)
        x_t = robust._noised(generator, y, t, rng.normal((1, 1, 1), "eps").double(), rng)
        alpha, sigma = 1 - time, time
        assert x_t.var().item() == pytest.approx(alpha**2 * v + sigma**2, rel=0.02)
        gain = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
        loss = robust._ambient(generator, y, x_t, t, gain * x_t).mean()
        (slope,) = torch.autograd.grad(loss, gain, create_graph=True)
        (curve,) = torch.autograd.grad(slope, gain)
        best = -slope.item() / curve.item()  # of a parabola
        assert best == pytest.approx(alpha * v / (alpha**2 * v + sigma**2), abs=0.02)


@pytest.mark.parametrize(
    "disturb", [{"attack": 0.2, "code": 0.5, "perturb": 0.1}, {"noisy": 0.2}, {"wrong": 0.3}], ids=str
)
def test_micro_batches_are_one_batch(disturb):
    runs = []
    for parts in (1, 4):
        robust = method(**disturb)
        robust.prepare(facts())
        runs.append(play(robust, tiny_players(), split(tiny_batch(12), parts), TinyClock()))
    for key, gradient in runs[0][0][1].items():
        torch.testing.assert_close(runs[1][0][1][key], gradient, rtol=1e-9, atol=1e-12)
