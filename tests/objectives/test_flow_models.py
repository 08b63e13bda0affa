"""AFM: fakes along the ODE, transport and its bias, centered logits, a gradient of one size."""

import math
from itertools import pairwise

import pytest
import torch
from tiny_players import TinyClock, game, play, split, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.models.conditioner import NullConditioner
from lmsd.objectives import Anchor, Anchored
from lmsd.objectives.balance import Balance
from lmsd.objectives.jumps import carried, draw_jump
from lmsd.objectives.terms import center, discriminator_loss
from lmsd.process import EDM, Article, Flow, Jumps, Process
from lmsd.rng import Rng
from lmsd.sampling import Tau
from lmsd.sampling.sampler import knots
from lmsd.types import Batch

MEAN, STD = 0.5, 0.7


class Line(nn.Module):
    """x̂₀ = a + b x_T for one step of a flow, as a generator."""

    z_dim, bound = 0, None

    def __init__(self, a, b):
        super().__init__()
        self.process, self.conditioner = Process(Flow()), NullConditioner()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))

    def condition(self, batch, drop=None):
        return self.conditioner(batch, drop)

    def forward(self, x, t, cond, z=None):
        return self.a + self.b * x


class Ideal(nn.Module):
    """log N(x; .5, .7²) − log N(x; a, b²): the optimal discriminator of that generator."""

    def __init__(self, line):
        super().__init__()
        self.line = [line]
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x_s, x_t, s, t, cond):
        a, b = self.line[0].a.detach(), self.line[0].b.detach().abs()
        x = x_s.flatten(1)
        real, fake = (
            (x - m).square() / (2 * d**2) + torch.as_tensor(d).log() for m, d in ((MEAN, STD), (a, b))
        )
        return fake - real + self.unused


def settled(weight, *, a=0.45, b=0.75, updates=100):
    """Where gradient descent on L_G against the ideal discriminator ends, (a, b)."""
    line, position = Line(a, b), torch.arange(8_000)
    players = {"generator": line, "discriminator": Ideal(line)}
    batch = Batch(MEAN + STD * Rng(1, position).normal((1, 1, 1), "x").double(), position)
    objective, rng = game(Jumps(1), pairing="ode", anchor="transport", penalty="none"), Rng(3, position)
    jump = objective.drawing(players, batch, 0, rng)(
        rng
    )  # the same noise every time: no need to draw it again
    for _ in range(updates):
        line.zero_grad()
        loss = objective._g_loss(*players.values(), batch.x, lambda _: jump, rng, weight, measure=False)
        loss.value.backward()
        with torch.no_grad():
            for p in line.parameters():
                p -= 0.3 * p.grad
    return line.a.item(), line.b.item()


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.01, (0.490, 0.703)), (0.05, (0.456, 0.713)), (0.2, (0.367, 0.742))]
)
def test_transport_biases_and_by_how_much(weight, expected):
    """Of N(.5, .7²), where a linear generator's optimum without transport is (.5, .7)."""
    assert settled(weight) == pytest.approx(expected, abs=0.003)


def test_the_mirrored_map_is_stable_too():
    """Transport does not rule out m − s z from where a run may start, so a warm start must."""
    _, slope = settled(0.01, b=-0.9)
    assert slope == pytest.approx(-STD, abs=0.05)


@pytest.mark.parametrize("schedule", [Flow(), Article(4), EDM()], ids=lambda s: type(s).__name__)
def test_along_the_ode_is_the_samplers_own_step(schedule):
    generator, batch = tiny_players(schedule=Article(4))["generator"], tiny_batch(5)
    generator.process = process = Process(schedule)
    path = knots(process, 4, batch.x)
    for t, s in pairwise(path):
        times, rng = (s.t, t.t), Rng(0, batch.position)
        jump = draw_jump(lambda *_, times=times: times, generator, batch, rng, caption_dropout=0)
        step = Tau(0.0).step(lambda x_t, _: 0.3 * x_t, jump.x_t, t, s, jump.rng, None)
        torch.testing.assert_close(carried(process, 0.3 * jump.x_t, jump), step.x_s, rtol=1e-6, atol=1e-6)


def test_transport_is_a_velocity_on_a_flow():
    """‖x̃_s − x_t‖²/(t − s) = (t − s) ‖û‖² with û = (x_t − x̂₀)/t."""
    generator, batch = tiny_players(schedule=Flow())["generator"], tiny_batch(6)
    jump = draw_jump(Jumps(4), generator, batch, Rng(0, batch.position), caption_dropout=0)
    x_0 = torch.sin(jump.x_t)
    velocity = ((jump.x_t - x_0) / jump.t[:, None, None, None]).square().flatten(1).mean(1)
    found = Anchor("transport").term(generator, jump, batch.x, x_0, None)
    torch.testing.assert_close(found, (jump.t - jump.s) * velocity, rtol=1e-6, atol=0)


def test_centering_moves_the_sum_to_0_and_leaves_the_difference():
    real, fake = (torch.tensor([[3.0], [5.0]], requires_grad=True) for _ in range(2))
    slope = torch.autograd.grad(center(real, fake).sum(), (real, fake))
    assert torch.equal(*slope)  # so r − f does not move
    bias, gap = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([bias, gap], lr=0.05)
    for _ in range(200):
        r, f = (bias + gap)[None, None], (bias - gap)[None, None]
        optimizer.zero_grad()
        (discriminator_loss("relativistic", r, f) + 0.5 * center(r, f)).sum().backward()
        optimizer.step()
    plain = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([plain], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        discriminator_loss("relativistic", plain[None, None], -plain[None, None]).sum().backward()
        optimizer.step()
    assert bias.item() == pytest.approx(0.0, abs=1e-3)
    assert gap.item() == pytest.approx(plain.item(), rel=1e-6)


def test_a_gradient_has_one_size_whatever_its_loss():
    x = torch.randn(64, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for factor in (1.0, 1000.0):
        balance = Balance(0.9)
        for update in range(3):
            here = x.clone().requires_grad_()
            loss = factor * here.square().flatten(1).sum(1)
            through = balance.through(loss, here)
            (slope,) = torch.autograd.grad(through.sum(), here)
            torch.testing.assert_close(through, loss)
            if update:
                mean = slope.flatten(1).square().sum(1).mean()
                assert mean.item() == pytest.approx(1 / 6, rel=1e-9)
                torch.testing.assert_close(slope / slope.norm(), here / here.norm())  # its direction stays
            balance.settle()


def test_its_average_is_remembered_and_ignores_what_is_not_finite():
    balance, other = Balance(0.5), Balance(0.5)
    for factor in (1.0, 3.0, math.inf):
        x = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
        balance.through((factor * x).sum(1), x)
        balance.settle()
        balance.settle()  # of another micro-batch: nothing is counted twice
    assert balance.square.item() == pytest.approx(0.5 * 1 + 0.5 * 9)
    other.load_state_dict(balance.state_dict())
    assert torch.equal(other.square, balance.square)


def test_four_micro_batches_are_one_batch_in_the_second_update_too():
    runs = []
    for parts in (1, 4):
        objective = game(Jumps(4), pairing="ode", penalty="none", caption_dropout=0.3)
        objective.anchor, players = Anchor("transport", normalize=0.9), tiny_players(marginal=True)
        for start in (0, 12):
            played = play(objective, players, split(tiny_batch(12, start=start), parts), TinyClock())
        runs.append((played, objective.state_dict()["balance"]["square"]))
    ((whole, square), (pieces, other)) = runs
    assert square.item() == pytest.approx(other.item(), rel=1e-12)
    for (_, ours, _), (_, theirs, _) in zip(whole, pieces, strict=True):
        largest = max(gradient.abs().max() for gradient in ours.values())
        for name, gradient in ours.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-10, atol=1e-11 * largest)


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="is the decay of an average"):
        Anchor("transport", normalize=1.5)
    with pytest.raises(UserError, match="kind=none is none"):
        Anchor(normalize=0.9)
    with pytest.raises(UserError, match="mse_kl or energy"):
        Anchored(Jumps(4), Anchor("transport"))
    with pytest.raises(UserError, match="center=-1"):
        game(Jumps(4), center=-1.0)
