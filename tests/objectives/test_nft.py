"""DiffusionNFT against its closed form."""

import copy

import pytest
import torch
from tiny_methods import nft
from tiny_players import TinyClock, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.objectives import OldPolicy
from lmsd.process.times import Grid
from lmsd.rewards import Function
from lmsd.rng import Rng
from lmsd.sampling import Tau

BRIGHT = Function(lambda images, captions: images.flatten(1).mean(1))


class Table(nn.Module):
    """f(x_t, t) = one free number for each of a few noisy points: the minimizer of any regression on them."""

    def __init__(self, points, process, values):
        super().__init__()
        self.points, self.process, self.z_dim = points, process, 0
        self.values = nn.Parameter(values.clone())

    def condition(self, batch, drop=None):
        from lmsd.types import Cond

        return Cond()

    def target(self, x_0, eps, t):
        return eps - x_0

    def forward(self, x_t, t, cond, z=None, *, output="native"):
        place = (x_t - self.points).abs().argmin(1, keepdim=True)
        return self.values[place]


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_optimum_is_the_old_policy_plus_two_over_beta_covariances(beta):
    """Data on a grid of x₀ and ε that meets in a few x_t: expectations are sums, the optimum a solve."""
    from lmsd.process import Flow, Process
    from lmsd.types import Batch

    process = Process(Flow())
    x_0 = torch.tensor([-0.5, 0.0, 0.5]).double()
    eps = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).double()
    pairs = torch.cartesian_prod(x_0, eps)
    x, noise = pairs[:, :1], pairs[:, 1:]
    half = torch.full((len(pairs),), 0.5)
    x_t = process.noise(x, half, noise)
    points, place = x_t[:, 0].unique(return_inverse=True)
    good = torch.linspace(0.1, 0.9, len(pairs)).double() ** 2
    velocity = (noise - x)[:, 0]

    def mean(value):
        return torch.stack([value[place == j].mean() for j in range(len(points))])

    old = mean(velocity)
    want = old + 2 / beta * (mean(good * velocity) - mean(good) * old)
    model = Table(points, process, old)
    players = {"generator": model, "old": copy.deepcopy(model)}
    objective = nft(
        Tau(0), BRIGHT, times=lambda rng, process: half, steps=1, group=1, normalize="center",
        beta=beta, weighting="none", reference_weight=0.0,
    )  # fmt: skip

    class Fixed(Rng):
        def normal(self, shape, tag):
            return noise.clone()

    batch = Batch(x, torch.arange(len(pairs)))
    rng = Fixed(0, batch.position)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=50, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        value, _ = objective.terms(players, x, batch, rng, good)
        loss = value.mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (want - old).abs().max() > 0.05
    torch.testing.assert_close(model.values.detach(), want, rtol=1e-5, atol=1e-6)


def student(**options):
    settings = {"times": Grid(4), "steps": 4, "group": 4, "reference_weight": 0.0, **options}
    return nft(Tau(0), BRIGHT, **settings)


def cast():
    players = tiny_players()
    for name in ("old", "reference"):
        players[name] = copy.deepcopy(players["generator"]).requires_grad_(False)
    return players


def test_the_old_policy_follows_as_told():
    players, batch = cast(), tiny_batch(8)
    clock = TinyClock(updates=500)
    start = [p.clone() for p in players["old"].parameters()]
    with torch.no_grad():
        for p in players["generator"].parameters():
            p += 1.0
        list(student(decay=0.5, ramp=0.001).turns(players, batch, clock, Rng(3, batch.position)))
    for before, now in zip(start, players["old"].parameters(), strict=True):
        torch.testing.assert_close(now, before + 0.5)  # η = min(0.001 · 500, 0.5)
    OldPolicy(1.0, ramp=1.0).follow(players["old"], players["generator"], 1)
    torch.testing.assert_close(next(players["old"].parameters()), start[0] + 0.5)
    with torch.no_grad():
        list(student(decay=0.5, ramp=0.0001).turns(players, batch, clock, Rng(3, batch.position)))
    torch.testing.assert_close(next(players["old"].parameters()), start[0] + 0.5 + 0.95 * 0.5)


def test_nft_brightens_a_four_step_student():
    """Images asked to be bright become so, with no log-probability and deterministic sampling."""
    players = {name: player.float() for name, player in cast().items()}
    objective = student(updates=2, decay=0.0, weighting="none")
    optimizer = torch.optim.Adam(players["generator"].parameters(), lr=5e-3)
    rewards, clock = [], TinyClock()
    for step in range(40):
        batch = tiny_batch(32, start=32 * step)
        batch = batch.__class__(batch.x.float(), batch.position, text=batch.text)
        script = objective.turns(players, batch, clock, Rng(1, batch.position))
        while True:
            with torch.no_grad():
                turn = next(script, None)
            if turn is None:
                break
            loss = turn.loss()
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
            clock.updates += 1
        rewards.append(float(loss.logs["reward"]))
        clock.images += 32
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_the_pull_is_the_distance_from_the_reference():
    players, batch = cast(), tiny_batch(8)
    with torch.no_grad():
        for p in players["generator"].parameters():
            p += 0.1
    asked, rng = student().asked(batch), Rng(0, batch.position)
    good = torch.full((8,), 0.5).double()
    free, _ = student(weighting="none").terms(players, batch.x, asked, rng, good)
    pulled, logs = student(weighting="none", reference_weight=2.0).terms(players, batch.x, asked, rng, good)
    torch.testing.assert_close(pulled - free, 2.0 * logs["drift"])  # old and reference are the same here


def test_samples_are_guided_where_sampling_is():
    """Within the interval alone: the article's four steps start at 4, 3, 2 and 1."""
    players, batch = cast(), tiny_batch(8)

    def drawn(**options):
        objective = student(**options)
        return objective.draw(players["old"], objective.asked(batch), Rng(0, batch.position))

    everywhere, nowhere = drawn(guidance=3.0), drawn()
    assert torch.equal(drawn(guidance=3.0, interval=(1, 4)), everywhere)
    assert torch.equal(drawn(guidance=3.0, interval=(0, 0.5)), nowhere)
    assert not torch.equal(everywhere, nowhere)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="weighting='uniform'"):
        student(weighting="uniform")
    with pytest.raises(UserError, match=r"beta=0\.0"):
        student(beta=0.0)
    assert list(student().cast) == ["generator", "old"]
    assert list(student(reference_weight=1.0).cast) == ["generator", "old", "reference"]
