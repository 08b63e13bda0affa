"""LADD and APT: what the students start from, what D sees, and what teaches it."""

import pytest
import torch
from test_adversarial import Recorder
from tiny_players import SHAPE, TinyClock, Words, game, play, split, tiny_batch, tiny_players

from lmsd.errors import UserError
from lmsd.models.backbones import MLPBackbone
from lmsd.models.discriminator import TrunkDiscriminator
from lmsd.models.generator import Generator
from lmsd.objectives import Penalty, PostTraining
from lmsd.process import Flow, Jumps, LogitNormal, Process
from lmsd.rng import Rng
from lmsd.sampling import Settings, Tau, sample
from lmsd.types import Sizes

FOUR, TWO = Settings(4, bound=None), Settings(2, bound=None)


def post(*, settings=FOUR, **options):
    return PostTraining(Tau(1.0), settings=settings, caption_dropout=0.3, **options)


def cast_of(*, seed=0, **options):
    players = tiny_players(marginal=True, schedule=Flow(), seed=seed)
    return {**players, "teacher": tiny_players(schedule=Flow(), seed=7)["generator"], **options}


def trunk_players(*, frozen):
    torch.manual_seed(0)
    net = MLPBackbone(Sizes(2, 3, pooled_dim=3, z_dim=2), width=12, depth=2, time_dim=8)
    generator = Generator(net, Process(Flow()), prediction="x0", conditioner=Words(), z_dim=2)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    judge = TrunkDiscriminator(generator, cond_dim=3, width=8, frozen=frozen)
    return {"generator": generator.double(), "discriminator": judge.double()}


def test_without_its_options_it_is_the_marginal_game_bit_for_bit():
    """But for the text encoder, which rests."""
    same = game(Jumps(4), pairing="marginal", caption_dropout=0.3)
    runs = [play(each, cast_of(), [tiny_batch(12)], TinyClock()) for each in (post(), same)]
    for (_, ours, logs), (_, theirs, others) in zip(*runs, strict=True):
        assert logs == others
        assert set(theirs) - set(ours) <= {"conditioner.table.weight"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "conditioner.table.weight" not in runs[0][1][1]


def test_a_discriminator_that_tells_nothing_moves_nothing():
    players = cast_of(discriminator=Recorder(sign=0.0))
    _, (_, gradients, _) = play(post(judged=LogitNormal()), players, [tiny_batch(8)], TinyClock(), rate=0.0)
    assert gradients
    assert all(not gradient.any() for gradient in gradients.values())


def test_a_frozen_trunk_is_still_and_a_trained_one_learns():
    for frozen in (True, False):
        players = trunk_players(frozen=frozen)
        before = {name: v.clone() for name, v in players["discriminator"].state_dict().items()}
        (_, learned, _), (_, student, _) = play(post(), players, [tiny_batch(8)], TinyClock())
        after = players["discriminator"].state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert any(name.startswith("taps.") for name in moved)
        assert any(name.startswith("net.") for name in moved) is (not frozen)
        assert any(name.startswith("net.") for name in learned) is (not frozen)
        assert student


def test_both_sides_are_judged_at_a_time_of_their_own():
    """Reals of one image and a student that makes it: at t' real and fake have one law, of mean α' x."""
    players, batch = cast_of(discriminator=Recorder()), tiny_batch(4000)
    batch = type(batch)(torch.full_like(batch.x, 0.5), batch.position, batch.text)
    play(post(judged=LogitNormal(), penalty=Penalty("none")), players, [batch], TinyClock())
    x, x_t, s, t, _ = players["discriminator"].seen[0]
    assert x_t is None
    real, fake = x.chunk(2)
    level = s[:4000]
    assert torch.equal(level, LogitNormal()(Rng(3, batch.position), players["generator"].process))
    assert set(t.tolist()) == {0.25, 0.5, 0.75, 1.0}
    slope = torch.linalg.lstsq((1 - level).double()[:, None], real.flatten(1).mean(1)[:, None]).solution
    assert slope.item() == pytest.approx(0.5, abs=0.02)
    assert real.var(0).mean().item() == pytest.approx(level.square().mean().item(), rel=0.1)
    assert not torch.equal(real, fake)


def test_the_teacher_draws_the_reals_once_and_is_not_touched():
    players, batch = cast_of(discriminator=Recorder()), tiny_batch(6)
    teacher = {name: value.clone() for name, value in players["teacher"].state_dict().items()}
    still = LogitNormal(-40.0, 0.0)  # at the clean end
    taught = post(judged=still, teacher=TWO, penalty=Penalty("none"), d_steps=2)
    play(taught, players, [batch], TinyClock())
    seen = [x.chunk(2)[0] if len(x) == 12 else x for x, *_ in players["discriminator"].seen]
    first, second, _, last = seen  # D twice, G's own, and the reals in G's turn
    torch.testing.assert_close(first, second, rtol=0, atol=1e-8)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-8)
    from lmsd.objectives.rewarded import stream

    net = players["teacher"]
    own = sample(
        net, net.condition(batch), sampler=Tau(0.0), settings=TWO, rng=stream(Rng(3, batch.position), 11),
        shape=SHAPE, dtype=torch.float64,
    )  # fmt: skip
    torch.testing.assert_close(first, own, rtol=0, atol=1e-8)
    assert all(torch.equal(teacher[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("updates", range(5))
def test_its_own_states_follow_the_clock(updates):
    players = cast_of(discriminator=Recorder())
    clock = TinyClock(updates=updates)
    play(post(starts="own", penalty=Penalty("none")), players, [tiny_batch(3)], clock)
    _, _, s, t, _ = players["discriminator"].seen[0]
    assert t.tolist() == [1 - updates % 4 / 4] * 6
    assert s.tolist() == [0.75 - updates % 4 / 4] * 6


def test_four_micro_batches_are_one_batch():
    options = {"starts": "own", "judged": LogitNormal(), "teacher": TWO}
    runs = [
        play(post(**options), cast_of(), split(tiny_batch(12), parts), TinyClock(updates=2))
        for parts in (1, 4)
    ]
    for (_, whole, _), (_, parts, _) in zip(*runs, strict=True):
        largest = max(gradient.abs().max() for gradient in whole.values())
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-10, atol=1e-11 * largest)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"starts": "noise"}, "data, own"),
        ({"settings": Settings(4, guidance=2.0)}, "take teacher.guidance"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        post(**options)
