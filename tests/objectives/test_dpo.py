"""Diffusion-DPO: the loss by hand, pairs of both kinds, preferences that are learned."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from tiny_methods import dpo
from tiny_players import TinyClock, tiny_batch, tiny_players
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.process.times import Grid
from lmsd.rewards import Function
from lmsd.rng import Rng
from lmsd.sampling import Tau

BRIGHT = Function(lambda images, captions: images.flatten(1).mean(1))


def cast():
    players = tiny_players()
    players["reference"] = copy.deepcopy(players["generator"]).requires_grad_(False)
    return players


def pairs(size=8, start=0):
    batch = tiny_batch(size, start=start)
    return replace(batch, x=batch.x + 0.5, extra={"rejected": batch.x - 0.5})


def first(objective, players, batch):
    with torch.no_grad():
        return next(objective.turns(players, batch, TinyClock(), Rng(3, batch.position)))


def test_the_loss_is_the_papers():
    """At θ = ref it is log 2 with gradient −β/4 ∇(e_l − e_w); elsewhere as written, from the same noise."""
    players, batch, beta = cast(), pairs(), 3.0
    objective = dpo(Grid(4), beta=beta, steps=4)
    loss = first(objective, players, batch).loss()
    assert float(loss.value) == pytest.approx(math.log(2))
    loss.value.backward()
    found = players["generator"].net.outside.bias.grad.clone()

    rng = Rng(3, batch.position, turn=4)
    generator, process = players["generator"], players["generator"].process
    t, eps = Grid(4)(rng, process), rng.normal((2, 3, 3), "eps").double()
    z, cond = rng.normal((2,), "z").double(), generator.condition(batch)

    def error(model, x):
        out = model(process.noise(x, t, eps), t, cond, z, output="native")
        return (out - process.target("v", x, eps, t)).square().flatten(1).mean(1)

    worse = batch.extra["rejected"]
    generator.zero_grad()
    (beta / 4 * (error(generator, batch.x) - error(generator, worse))).mean().backward()
    torch.testing.assert_close(found, generator.net.outside.bias.grad)
    with torch.no_grad():
        generator.net.outside.bias += 0.3
        won, lost = (error(generator, x) - error(players["reference"], x) for x in (batch.x, worse))
        want = F.softplus(beta / 2 * (won - lost)).mean()
    moved = first(objective, players, batch).loss()
    torch.testing.assert_close(moved.value.detach(), want)


@pytest.mark.parametrize("source", ["data", "reward"])
def test_a_preference_is_learned(source):
    """Pairs of bright and dark; the model's own four-step images become brighter."""
    players = {name: player.float() for name, player in cast().items()}
    reward = BRIGHT if source == "reward" else None
    objective = dpo(Grid(4), reward=reward, sampler=Tau(0), steps=4, group=4, beta=50.0)
    optimizer = torch.optim.Adam(players["generator"].parameters(), lr=5e-3)

    def brightness():
        batch = tiny_batch(64, start=10**6)
        with torch.no_grad():
            return float(dpo(Grid(4), reward=BRIGHT, sampler=Tau(0), steps=4).draw(
                players["generator"], replace(batch, x=batch.x.float()), Rng(0, batch.position)
            ).mean())  # fmt: skip

    before = brightness()
    for step in range(40):
        batch = pairs(32, 32 * step) if source == "data" else tiny_batch(32, start=32 * step)
        extra = {name: value.float() for name, value in batch.extra.items()}
        loss = first(objective, players, replace(batch, x=batch.x.float(), extra=extra)).loss()
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert brightness() > before + 0.05
    assert loss.logs["preference"] > 0.6


def test_pairs_are_the_best_and_the_worst_of_their_group():
    players, batch = cast(), tiny_batch(8)
    objective = dpo(Grid(4), reward=BRIGHT, sampler=Tau(0), steps=2, group=4)
    asked = objective.asked(batch)
    assert asked.text == [batch.text[0]] * 4 + [batch.text[4]] * 4
    better, worse, pair, weight, facts = objective._pairs(players, asked, Rng(3, batch.position))
    images = objective.draw(players["generator"], asked, Rng(3, batch.position)).clamp(-1, 1)
    score = images.flatten(1).mean(1).view(2, 4)
    torch.testing.assert_close(better.flatten(1).mean(1), score.amax(1))
    torch.testing.assert_close(worse.flatten(1).mean(1), score.amin(1))
    gap = (score.amax(1) - score.amin(1)).mean()
    torch.testing.assert_close(facts["reward_gap"], gap, check_dtype=False)
    torch.testing.assert_close(facts["reward"], score.mean(), check_dtype=False)
    assert pair.text == [batch.text[0], batch.text[4]]
    assert weight.tolist() == [1.0, 1.0]
    objective.reward = Function(lambda images, captions: torch.zeros(len(images)))
    assert objective._pairs(players, asked, Rng(3, batch.position))[3].tolist() == [0.0, 0.0]


def test_pairs_of_a_reward_log_what_the_guard_against_hacking_reads():
    """Means over whole groups; the reward too, without which a run could not be stopped by it."""
    players, batch = cast(), tiny_batch(8)

    def partly(images, captions):
        scores = images.flatten(1).mean(1)
        return torch.where(torch.arange(8) == 5, math.nan, scores)

    objective = dpo(Grid(4), reward=Function(partly), sampler=Tau(0), steps=2, group=4)
    with pytest.warns(UserWarning, match="partly returned 1 of 8"):
        logs = first(objective, players, batch).loss().logs
    images = objective.draw(players["generator"], objective.asked(batch), Rng(3, batch.position)).clamp(-1, 1)
    assert float(logs["reward"]) == pytest.approx(float(images[:4].mean()))
    assert float(logs["reward_failed"]) == 1 / 8
    groups = images.flatten(1).view(2, 4, -1)
    apart = torch.stack([torch.pdist(group).square().mean() / images[0].numel() for group in groups])
    assert float(logs["diversity"]) == pytest.approx(float(apart.mean().sqrt()))
    assert "reward" not in first(dpo(Grid(4)), players, pairs()).loss().logs


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="read without pairs"):
        first(dpo(Grid(4)), cast(), tiny_batch(8))
    with pytest.raises(UserError, match="need a sampler"):
        dpo(Grid(4), reward=BRIGHT)
    with pytest.raises(UserError, match="beta"):
        dpo(Grid(4), beta=0.0)
