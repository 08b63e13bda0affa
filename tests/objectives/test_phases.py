"""The phases of an adversarial run: G alone, D alone, both; with rates of their own."""

import pytest
import torch
from test_adversarial import constant_players
from tiny_players import TinyClock, game, play, tiny_batch, tiny_players

from lmsd.errors import UserError
from lmsd.objectives import Denoising, Objective, Phase, Phases
from lmsd.process.times import Jumps, Uniform
from lmsd.rng import Rng


def script(objective, images, *, played=None):
    """The turns at `images` of 1,000."""
    batch, clock = tiny_batch(4), TinyClock(images=images)
    clock.played.update(played or {})
    return list(objective.turns(tiny_players(), batch, clock, Rng(0, batch.position)))


def test_warm_start_then_head_start_then_both():
    objective = game(Jumps(4), anchor="energy", warmup=0.3, head_start=0.2, d_steps=2)
    names = {
        images: [turn.player for turn in script(objective, images)] for images in (0, 299, 300, 499, 500, 999)
    }
    both = ["discriminator", "discriminator"]
    assert names[0] == names[299] == ["generator"]
    assert names[300] == names[499] == both
    assert names[500] == names[999] == [*both, "generator"]


def test_a_warm_start_may_be_the_whole_run():
    objective = game(Jumps(4), anchor="energy", warmup=1.0)
    assert {turn.player for images in (0, 500, 999) for turn in script(objective, images)} == {"generator"}


class Noting(Objective):
    """Plays nothing and notes the progress that it is shown."""

    def __init__(self):
        self.seen = []

    def turns(self, players, batch, clock, rng):
        self.seen.append((clock.progress, clock.updates))
        yield from ()


def test_phases_within_phases_go_by_their_own_progress():
    """Of the second half of the run the second half: at 875 images of 1,000 it is half done."""
    first, second = Noting(), Noting()
    objective = Phases([Phase(Denoising(Uniform()), 0.5), Phase(Phases([Phase(first, 0.5), Phase(second)]))])
    assert script(objective, 600) == script(objective, 875) == []
    assert first.seen == [(pytest.approx(0.4), 0)]
    assert second.seen == [(0.5, 0)]


def test_every_phase_has_its_rate():
    objective = game(Jumps(4), anchor="energy", warmup=0.4, warm_rate=(1.0, 0.2), rate=(0.5, 0.1))
    middles = {200: 0.6, 700: 0.3}  # of a half cosine: the mean of both ends
    for images, rate in {0: 1.0, 400: 0.5, **middles}.items():
        rates = [turn.rate for turn in script(objective, images)]
        assert rates == pytest.approx([rate] * len(rates))
        assert len(rates) == (1 if images < 400 else 2)


def test_the_generator_starts_anew_when_the_adversary_joins():
    objective = game(Jumps(4), anchor="energy", warmup=0.4)
    first, _ = script(objective, 400, played={"generator": 7})
    assert (first.player, first.restart) == ("discriminator", ("generator",))
    later = script(objective, 500, played={"generator": 8, "discriminator": 1})
    cold = script(game(Jumps(4)), 0)
    assert [turn.restart for turn in [*later, *cold]] == [()] * 4


def test_a_phase_restarts_once_and_not_at_each_of_its_first_turns():
    """Else G would lose its first updates in the phase: it plays after D in the same step."""
    objective = game(Jumps(4), anchor="energy", warmup=0.4, d_steps=2)
    turns = script(objective, 400, played={"generator": 7})
    assert [turn.player for turn in turns] == ["discriminator", "discriminator", "generator"]
    assert [turn.restart for turn in turns] == [("generator",), (), ()]


def test_clamped_images_reach_the_critic_and_whole_gradients_the_generator():
    def gradient(clamp):
        players = constant_players(1.7)
        objective = game(Jumps(1), loss="hinge", penalty="none", anchor="none", bound=clamp)
        turn = play(objective, players, [tiny_batch(5)], TinyClock(), rate=0)[-1]
        return turn[1]["net.value"], [seen[0] for seen in players["discriminator"].seen]

    (free, _), (clamped, seen) = gradient(None), gradient(1.0)
    assert torch.equal(clamped, free)
    assert free.item() == pytest.approx(-1.0)
    for fake in (seen[0][5:], seen[1]):
        torch.testing.assert_close(fake, torch.ones_like(fake))


@pytest.mark.parametrize("freeze_text", [False, True])
def test_held_text_learns_in_the_warm_start_only(freeze_text):
    objective = game(Jumps(4), anchor="energy", warmup=0.5, freeze_text=freeze_text)
    table = "conditioner.table.weight"
    for images, learns in ((0, True), (500, not freeze_text)):
        _, gradients, _ = play(objective, tiny_players(), [tiny_batch(8)], TinyClock(images=images))[-1]
        assert (table in gradients) == learns
        assert "net.inside.weight" in gradients


def test_shares_must_fit_into_the_run():
    for options, said in (
        ({"warmup": 0.8, "head_start": 0.3}, "shares of the run"),
        ({"warmup": -0.1}, "shares of the run"),
        ({"warmup": 0.1, "anchor": "none"}, "warm="),
    ):
        with pytest.raises(UserError, match=said):
            game(Jumps(4), **options)


def test_any_objectives_follow_each_other_and_each_has_its_own_progress():
    """Annealed weights of a phase go from its beginning to its end."""
    seen = []

    class Watching(Denoising):
        def turns(self, players, batch, clock, rng):
            seen.append(clock.progress)
            return super().turns(players, batch, clock, rng)

    first, second = Phase(Denoising(Uniform()), 0.2), Phase(Watching(Uniform()), 0.4)
    objective = Phases([first, second, Phase(game(Jumps(4)))])
    for images in (200, 400, 599):
        assert [turn.player for turn in script(objective, images)] == ["generator"]
    assert seen == pytest.approx([0.0, 0.5, 0.9975])
    assert [turn.player for turn in script(objective, 601)] == ["discriminator", "generator"]
    assert (objective.lead, set(objective.cast)) == ("generator", {"discriminator", "generator"})


def test_states_and_probes_are_those_of_the_phases():
    class Counting(Denoising):
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state.get("count", 0)

    first, second = (Phases([Phase(Denoising(Uniform()), 0.5), Phase(Counting(Uniform()))]) for _ in range(2))
    first.phases[1].objective.count = 3
    second.load_state_dict(first.state_dict())
    assert second.phases[1].objective.count == 3
    second.load_state_dict({})  # of a version without phases
    assert second.phases[1].objective.count == 0
    batch = tiny_batch(4)
    played = Phases([Phase(Denoising(Uniform()), 0.5), Phase(game(Jumps(4)))])
    found = played.probe(tiny_players(), batch, Rng(0, batch.position))
    assert found.keys() == {"discriminator/accuracy"}
    useless = {"generator/grad_norm": 1.0, "discriminator/d_accuracy": 1.0}
    assert "right on everything" in played.collapsed(useless)


def test_phases_that_do_not_fit_together_are_refused():
    denoising = Denoising(Uniform())
    for phases, said in (
        ([], "shares of the run"),
        ([Phase(denoising), Phase(denoising)], "one None"),
        ([Phase(denoising, 0.7), Phase(denoising, 0.7)], "at most 1"),
        ([Phase(denoising, -0.1), Phase(denoising)], "none negative"),
        ([Phase(denoising, 0.5, rate=-1.0), Phase(denoising)], "rate=-1"),
        ([Phase(denoising, 0.5, waits={"generator": 0.6}), Phase(denoising)], r"within one of 0\.5"),
        ([Phase(denoising, 0.5), Phase(denoising, restart=("generator",))], "a player that joins"),
    ):
        with pytest.raises(UserError, match=said):
            Phases(phases)
