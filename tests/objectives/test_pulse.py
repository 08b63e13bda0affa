"""A reward that teaches nothing is told of, whatever decay, KL or a pull do to the weights meanwhile."""

import warnings

import pytest
import torch
from tiny_methods import ddpo, dpo, draft, drawn, grpo, nft
from tiny_players import TinyClock, tiny_batch, tiny_players

from lmsd.process.times import Uniform
from lmsd.rewards import Function
from lmsd.rng import Rng
from lmsd.sampling import Tau


def flat(images, captions):
    return torch.full((len(images),), 0.3)


def bright(images, captions):
    return images.flatten(1).mean(1)


def detached(images, captions):
    return images.detach().flatten(1).mean(1) + 0.0 * images.flatten(1).sum(1)


def reward(function, *, slope=False):
    return Function(function, differentiable=slope)


POLICY = {"steps": 3, "last_std": 0.1}
METHODS = {
    "ddpo": lambda r: ddpo(drawn(**POLICY), reward(r), kl=1.0),
    "ddpo, global": lambda r: ddpo(drawn(**POLICY), reward(r), normalize="global", kl=1.0),
    "ddpo, group": lambda r: ddpo(drawn(**POLICY), reward(r), normalize="group", kl=1.0, form="step"),
    "ddpo, center": lambda r: ddpo(drawn(**POLICY), reward(r), normalize="center", kl=1.0),
    "grpo": lambda r: grpo(drawn(**POLICY), reward(r), group=4, kl=1.0),
    "nft": lambda r: nft(Tau(1), reward(r), times=Uniform(), steps=3, group=4, reference_weight=1.0),
    "dpo": lambda r: dpo(Uniform(), reward=reward(r), sampler=Tau(1), steps=3, group=4),
    "draft": lambda r: draft(drawn(**POLICY), reward(r, slope=True), reference_weight=1.0),
}


def trained(objective, *, updates, parts=1, clock=None, players=None):
    """Play updates with AdamW; what was said, the players, how far the weights are from where they began."""
    players = players or tiny_players()
    copies = {name: tiny_players()["generator"].requires_grad_(False) for name in ("reference", "old")}
    players = players | copies
    generator = players["generator"]
    before = torch.cat([p.detach().clone().flatten() for p in generator.parameters()])
    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3, weight_decay=0.01)
    clock = clock or TinyClock()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(updates):
            batches = tiny_batch(8, start=clock.images).split(parts)
            scripts = [objective.turns(players, batch, clock, Rng(3, batch.position)) for batch in batches]
            while True:
                with torch.no_grad():
                    turns = [next(script, None) for script in scripts]
                if turns[0] is None:
                    break
                optimizer.zero_grad()
                for turn in turns:
                    (turn.loss().value / parts).backward()
                optimizer.step()
                clock.updates += 1
            clock.images += 8
    after = torch.cat([p.detach().flatten() for p in generator.parameters()])
    words = [str(each.message) for each in said if "nothing was learned" in str(each.message)]
    return words, players, float((after - before).norm())


@pytest.mark.parametrize("name", METHODS)
def test_a_flat_reward_is_told_of_after_fifty_updates_though_the_weights_move(name):
    objective = METHODS[name](flat if name != "draft" else detached)
    said, _, moved = trained(objective, updates=50)
    assert said == []
    assert moved > 0, "decay moves the weights, and that is not learning"
    said, _, _ = trained(objective, updates=3, clock=TinyClock(images=400, updates=50))
    assert len(said) == 1
    assert "in the first 50 updates" in said[0]
    assert said[0] == objective.pulse.sentence


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("parts", [1, 2])
def test_a_reward_that_differs_teaches(name, parts):
    objective = METHODS[name](bright)
    said, _, _ = trained(objective, updates=52, parts=parts)
    assert said == []
    assert objective.pulse.sentence is None


@pytest.mark.parametrize("normalize", ["global", "group"])
def test_groups_of_one_stand_against_the_batch(normalize):
    """A_i = (r_i − mean)/(std + δ) over the batch: an update that goes up, where all was 0 before."""
    objective = ddpo(drawn(**POLICY), reward(bright), normalize=normalize, bound=None)
    players, batch = tiny_players(), tiny_batch(8)
    with torch.no_grad():
        turn = next(objective.turns(players, batch, TinyClock(), Rng(3, batch.position)))
    turn.loss().value.backward()
    table, advantages = objective._round.settle(objective.advantages)
    want = (table.reward - table.reward.mean()) / (table.reward.std(correction=0) + 1e-4)
    torch.testing.assert_close(advantages[:, 0], want)
    assert sum(float(p.grad.norm()) for p in players["generator"].parameters() if p.grad is not None) > 0


def test_what_was_noted_survives_a_restart():
    objective = METHODS["ddpo"](flat)
    trained(objective, updates=20)
    state = objective.state_dict()
    again = METHODS["ddpo"](flat)
    again.load_state_dict(state)
    assert again.state_dict() == state
    said, _, _ = trained(again, updates=31, clock=TinyClock(images=160, updates=20))
    assert len(said) == 1


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_the_same_to_the_last_bit_with_and_without_the_notes(name):
    """Summed in the same order, too: of three slopes the other order would differ in the last bit."""
    found = []
    for noting in (True, False):
        objective, players, batch = METHODS[name](bright), tiny_players(), tiny_batch(64)
        objective.pulse._decided = not noting
        players |= {
            role: tiny_players(seed=seed)["generator"].requires_grad_(False)
            for role, seed in (("reference", 1), ("old", 2))
        }
        with torch.no_grad():
            turn = next(objective.turns(players, batch, TinyClock(), Rng(3, batch.position)))
        turn.loss().value.backward()
        found.append([p.grad for p in players["generator"].parameters() if p.grad is not None])
        assert any(grad.abs().max() > 0 for grad in found[-1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
