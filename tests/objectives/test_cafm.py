"""CAFM: its closed form, its fixed point, and differences in t that are derivatives."""

import math

import pytest
import torch
from tiny_players import CAPTIONS, SHAPE, TinyClock, Words, play, split, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.models.discriminator import Discriminator
from lmsd.nets.critics import ConvCritic, MLPCritic
from lmsd.objectives import CAFM
from lmsd.objectives.base import Facts
from lmsd.process import Article, Flow, Process, Uniform
from lmsd.rng import Rng
from lmsd.types import Batch, Cond


class Plane(nn.Module):
    """D(x, t) = a t + g·x on vectors as images [B,k,1,1]."""

    smooth = True

    def __init__(self, size):
        super().__init__()
        self.process = Process(Flow())
        self.a = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.g = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x, x_t, s, t, cond):
        return (self.a * t + x.flatten(1) @ self.g)[:, None]


def lines(x, t, w):
    """The straight lines (x₀, ε) of velocities w through x at t."""
    time = t[:, None, None, None]
    return x - time * w, x + (1 - time) * w


def test_the_closed_form_at_one_place():
    """Least squares over 200,000 velocities: g, the slopes, L_D, and the gradient of L_G."""
    count, size = 200_000, 3
    generator = torch.Generator().manual_seed(0)
    root = 0.5 * torch.randn(size, size, generator=generator).double() + torch.eye(size)
    delta, u = torch.tensor([0.6, -0.4, 0.5]).double(), torch.tensor([0.3, 0.1, -0.2]).double()
    noise = torch.randn(count // 2, size, generator=generator).double()
    v = (u + delta + torch.cat([noise, -noise]) @ root.T)[:, :, None, None]
    x, t = torch.full((count, size, 1, 1), 0.2).double(), torch.full((count,), 0.4).double()
    objective, plane = CAFM(Uniform()), Plane(size)
    real_line, fake_line = lines(x, t, v), lines(x, t, u[:, None, None].expand_as(x))

    def rows():
        found = []
        for parameter in (plane.a, *[None] * size):
            with torch.no_grad():
                plane.a.fill_(float(parameter is not None))
                plane.g.zero_()
                if parameter is None:
                    plane.g[len(found) - 1] = 1.0
                found.append(torch.stack(objective.slopes(plane, [real_line, fake_line], t, Cond())))
        return torch.stack(found, -1)  # [2,count,1+size]: slopes are linear in (a, g)

    real, fake = rows()
    best = torch.linalg.solve(real.T @ real + fake.T @ fake, real.sum(0) - fake.sum(0))
    covariance = torch.cov(v.flatten(1).T, correction=0)
    d = delta @ torch.linalg.solve(covariance, delta)
    torch.testing.assert_close(
        best[1:], torch.linalg.solve(covariance, delta) / (1 + d / 2), rtol=1e-2, atol=2e-3
    )
    of_fake = (fake @ best).mean().item()
    assert of_fake == pytest.approx((-d / 2 / (1 + d / 2)).item(), abs=1e-3)
    loss = (real @ best - 1).square().mean() + (fake @ best + 1).square().mean()
    assert loss.item() == pytest.approx((2 / (1 + d / 2)).item(), abs=2e-3)
    with torch.no_grad():
        plane.a.copy_(best[0])
        plane.g.copy_(best[1:])
    own = u.clone().requires_grad_()
    one = lines(x[:1], t[:1], own[None, :, None, None])
    (slope,) = objective.slopes(plane, [one], t[:1], Cond())
    (slope - 1).square().sum().backward()
    expected = -2 * (1 + d) * torch.linalg.solve(covariance, delta) / (1 + d / 2) ** 2
    torch.testing.assert_close(own.grad, expected, rtol=1e-2, atol=2e-3)


MEAN, STD = 0.4, 0.5


class Velocity(nn.Module):
    """x̂₀ of data N(m, s²), exact but for a shift."""

    z_dim = 0

    def __init__(self, shift=0.0):
        super().__init__()
        self.process = Process(Flow())
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def condition(self, batch, drop=None):
        return Cond()

    def forward(self, x, t, cond, z=None):
        alpha, sigma = self.process.alpha_sigma(t, x)
        gain = alpha * STD**2 / (alpha.square() * STD**2 + sigma.square())
        return MEAN + gain * (x - alpha * MEAN) + self.shift


class Waves(nn.Module):
    """A potential Σ c_j cos(w_j·x + ω_j t + b_j), linear in its weights c."""

    smooth = True

    def __init__(self, count=12):
        super().__init__()
        self.process = Process(Flow())
        generator = torch.Generator().manual_seed(1)
        self.w, self.o, self.b = (
            torch.randn(k, count, generator=generator).double() for k in (SHAPE[0], 1, 1)
        )
        self.weight = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def forward(self, x, x_t, s, t, cond):
        phase = x.flatten(1) @ self.w + t.double()[:, None] * self.o + 2 * self.b
        return (phase.cos() @ self.weight)[:, None]


def gaussian(count=20_000):
    position = torch.arange(count)
    return Batch(MEAN + STD * Rng(1, position).normal((SHAPE[0], 1, 1), "x").double(), position)


def slope_in_errors(shift):
    """The gradient of L_D at D = 0, along 12 directions: the largest, in its standard errors."""
    batch, waves = gaussian(), Waves()
    objective = CAFM(Uniform(), center=0.0)
    t, eps, x_t = objective.drawn(waves.process, batch.x, Rng(2, batch.position))
    net, found = Velocity(shift), []
    for index in range(len(waves.weight)):
        with torch.no_grad():
            waves.weight.zero_()
            waves.weight[index] = 1.0
            real, fake = objective.slopes(
                waves, [(batch.x, eps), objective._line(net, x_t, t, Cond(), None)], t, Cond()
            )
        gradient = 2 * (fake - real)  # of (s_v − 1)² + (s_u + 1)² at 0
        found.append(gradient.mean().abs() / (gradient.std() / math.sqrt(len(batch))))
    return max(found).item()


def test_the_exact_velocity_is_a_fixed_point():
    """To first order no direction of D lowers L_D below 2, and at D = 0 G has no gradient."""
    assert slope_in_errors(0.0) < 4
    assert slope_in_errors(0.2) > 10
    net, waves = Velocity(), Waves()
    (_, _, logs), (_, gradients, _) = play(
        CAFM(Uniform(), alone=0, every=1),
        {"generator": net, "discriminator": waves},
        [gaussian(64)],
        TinyClock(),
        rate=0.0,
    )
    assert logs["adversary"] == 2.0
    assert not gradients["shift"].any()


def test_no_potential_does_better_than_2_against_the_exact_velocity():
    batch, waves, objective = gaussian(), Waves(), CAFM(Uniform(), center=0.0)
    for size in (0.02, 0.1, 0.5):
        with torch.no_grad():
            waves.weight.copy_(size * torch.randn(12, generator=torch.Generator().manual_seed(2)).double())
        loss = objective._d_loss(Velocity(), waves, batch, Rng(4, batch.position))
        assert loss.value.item() > 2 - 0.02


def critic(trunk, *, smooth, channels=3, side=4):
    torch.manual_seed(0)
    found = Discriminator(
        trunk((channels, side, side), cond_dim=16),
        process=Process(Flow()),
        cond_dim=0,
        marginal=True,
        smooth=smooth,
    )
    for name, parameter in found.named_parameters():
        if ".film." in name or ".second." in name:
            nn.init.normal_(parameter, std=0.1)
    return found.double()


def error_of_differences(trunk, *, smooth, h=0.01):
    """Of Ḋ by differences, against the exact one, along 256 lines at t away from the ends."""
    found, objective, position = critic(trunk, smooth=smooth), CAFM(Uniform(), h=h), torch.arange(256)
    x_0, eps = (Rng(k, position).normal((3, 4, 4), "x").double() for k in (1, 2))
    t = (0.1 + 0.8 * Rng(3, position).uniform((), "t")).double()
    x_t = found.process.noise(x_0, t, eps)

    def value(x, time):
        return found(x, None, time, time, Cond())[:, 0]

    with torch.no_grad():
        (differences,) = objective.slopes(found, [(x_0, eps)], t, Cond())
        _, exact = torch.func.jvp(value, (x_t, t), (eps - x_0, torch.ones_like(t)))
    return ((differences - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("trunk", [MLPCritic, ConvCritic])
def test_differences_are_derivatives_where_time_is_slow(trunk):
    coarse, fine = (error_of_differences(trunk, smooth=True, h=h) for h in (0.01, 0.005))
    assert fine < 1e-3
    assert fine == pytest.approx(coarse / 4, rel=0.1)  # central: the error is O(h²)
    assert error_of_differences(trunk, smooth=False) > 0.5


def cast_of(**options):
    players = tiny_players(schedule=Flow(), marginal=True, prediction="velocity")
    trunk, process = MLPCritic(SHAPE, 16, depth=1, cond_dim=8), Process(Flow())
    players["discriminator"] = Discriminator(
        trunk, process=process, cond_dim=Words.pooled_dim, features=16, marginal=True, smooth=True
    ).double()
    return {**players, **options}


def test_both_ends_of_a_difference_lie_within_the_flow():
    seen = []

    class Listening(Plane):
        def forward(self, x, x_t, s, t, cond):
            seen.append(t)
            return super().forward(x, x_t, s, t, cond)

    players = {**cast_of(), "discriminator": Listening(18)}
    play(CAFM(Uniform(), alone=0, every=1), players, [tiny_batch(400)], TinyClock())
    times = torch.cat(seen)
    assert times.min() >= 0
    assert times.max() <= 1
    assert times.min() < 0.01
    assert times.max() > 0.99


def test_the_script_follows_the_discriminators_count():
    clock, script = TinyClock(), []
    objective, players = CAFM(Uniform(), alone=5, every=3), cast_of()
    for _ in range(12):
        turns = [turn[0] for turn in play(objective, players, [tiny_batch(4)], clock)]
        for name in turns:
            clock.count(name)
        script.append("".join(name[0] for name in turns))
    assert script == ["d"] * 5 + ["dg", "d", "d", "dg", "d", "d", "dg"]


def test_four_micro_batches_are_one_batch():
    objective = CAFM(Uniform(), alone=0, every=1, caption_dropout=0.3)
    torch.manual_seed(0)
    state = cast_of()["discriminator"].state_dict()
    runs = []
    for parts in (1, 4):
        players = cast_of()
        players["discriminator"].load_state_dict(state)
        runs.append(play(objective, players, split(tiny_batch(12), parts), TinyClock()))
    for (_, whole, logs), (_, parts, others) in zip(*runs, strict=True):
        largest = max(gradient.abs().max() for gradient in whole.values())
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-10, atol=1e-11 * largest)
        assert others == pytest.approx(logs, rel=1e-6)


def test_it_says_when_the_discriminator_has_won():
    assert CAFM(Uniform()).collapsed({"generator/slope_fake": -0.5}) is None
    assert "tells every velocity" in CAFM(Uniform()).collapsed({"generator/slope_fake": -0.99})


def test_what_does_not_fit_is_refused():
    def prepared(players):
        CAFM(Uniform()).prepare(Facts(CAPTIONS, lambda: None, players))

    prepared(cast_of())
    with pytest.raises(UserError, match="schedule=flow"):
        prepared(tiny_players(schedule=Article(4), marginal=True))
    with pytest.raises(UserError, match="sees time in waves"):
        prepared(tiny_players(schedule=Flow(), marginal=True))
    with pytest.raises(UserError, match=r"h=0\.6"):
        CAFM(Uniform(), h=0.6)
