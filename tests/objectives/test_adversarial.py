import math

import pytest
import torch
from tiny_players import CAPTIONS, SHAPE, TinyClock, Words, game, play, split, tiny_batch, tiny_players
from torch import nn
from torch.distributions import Normal, kl_divergence

from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.objectives.adversarial import Adversarial
from lmsd.objectives.anchor import Anchor
from lmsd.objectives.denoising import Denoising
from lmsd.process.gaussian import Process
from lmsd.process.schedules import EDM, Article, Flow
from lmsd.process.times import Jumps, Uniform
from lmsd.rng import Rng
from lmsd.sampling import Settings

CONFIGS = {
    "lmsd": ({}, {}),
    "mse_kl": ({"anchor": "mse_kl", "weight": (1.0, 0.1), "gamma": (0.5, 0.05)}, {"z_dim": 0}),
    "hinge": ({"loss": "hinge", "anchor": "none", "d_steps": 2, "r2": False}, {"heads": 3}),
    "ddgan": (
        {"loss": "nonsaturating", "penalty": "exact", "r2": False, "lazy": 2, "anchor": "none"},
        {},
    ),
    "r3gan": (
        {"jumps": Jumps(1), "pairing": "marginal", "anchor": "none"},
        {"marginal": True, "schedule": Flow(), "prediction": "velocity"},
    ),
    "cgan": (
        {
            "jumps": Jumps(1),
            "pairing": "marginal",
            "loss": "nonsaturating",
            "penalty": "none",
            "anchor": "none",
            "mismatch": 0.5,
            "captions": CAPTIONS,
        },
        {"marginal": True},
    ),
    "mismatch": ({"mismatch": 0.25, "captions": CAPTIONS, "penalty": "exact"}, {}),
    "warm_anchor": ({"warmup": 0.5}, {}),
    "warm_denoising": ({"warmup": 0.5, "warm": Denoising(Uniform(), weighting="min_snr")}, {}),
}


def objective_of(name, **changes):
    options = {"jumps": Jumps(4), "caption_dropout": 0.3, "anchor": "energy", **CONFIGS[name][0], **changes}
    return game(options.pop("jumps"), **options)


def players_of(name):
    return tiny_players(**CONFIGS[name][1])


class Constant(nn.Module):
    """A net whose x̂₀ is one number."""

    channels, image_size, token_dim, pooled_dim, z_dim = 2, 3, 0, 0, 0

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x, time, cond, z=None):
        return self.value.expand_as(x)


class Recorder(nn.Module):
    """A discriminator whose logit is `sign` times the mean of x_s plus `shift`; remembers what it saw."""

    def __init__(self, sign=1.0, shift=0.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(sign, dtype=torch.float64))
        self.shift = shift
        self.seen = []

    def forward(self, x_s, x_t, s, t, cond):
        self.seen.append((x_s, x_t, s, t, cond))
        return self.gain * x_s.flatten(1).mean(1, keepdim=True) + self.shift


def constant_players(value=0.0, *, schedule=None, **recorder):
    generator = Generator(
        Constant(value), Process(schedule or Article(4)), prediction="x0", conditioner=Words()
    )
    return {"generator": generator.double(), "discriminator": Recorder(**recorder)}


@pytest.mark.parametrize("name", CONFIGS)
def test_four_micro_batches_are_one_batch(name):
    objective, runs = objective_of(name), []
    for parts in (1, 4):
        runs.append(play(objective, players_of(name), split(tiny_batch(12), parts), TinyClock(updates=2)))
    assert [turn[0] for turn in runs[0]] == [turn[0] for turn in runs[1]]
    for (_, whole, logs), (_, parts, logs_of_parts) in zip(*runs, strict=True):
        assert whole
        assert whole.keys() == parts.keys()
        largest = max(gradient.abs().max() for gradient in whole.values())
        assert largest > 1e-6
        for key, gradient in whole.items():
            torch.testing.assert_close(parts[key], gradient, rtol=1e-10, atol=1e-11 * largest)
        assert logs_of_parts == pytest.approx(logs, rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_exactly_the_player_of_the_turn(name):
    """`play` asserts that no other player holds a gradient; here, that all of the player's parameters do."""
    players = players_of(name)
    for player, gradients, _ in play(objective_of(name), players, [tiny_batch(8)], TinyClock(updates=2)):
        names = dict(players[player].named_parameters()).keys()
        # G's text table learns in its turns; the last bias cancels in a difference of logits
        assert names - gradients.keys() <= {"head.linear.bias"}


def test_script_follows_the_clock():
    objective = game(Jumps(4), anchor="energy", d_steps=3, warmup=0.2)
    script = {
        images: [
            turn[0] for turn in play(objective, tiny_players(), [tiny_batch(4)], TinyClock(images=images))
        ]
        for images in (0, 199, 200, 1000)
    }
    assert script[0] == script[199] == ["generator"]
    assert script[200] == script[1000] == [*["discriminator"] * 3, "generator"]


def test_turns_draw_different_numbers():
    """Each of D's turns and G's turn sees its own jumps and noise of the same images."""
    players = constant_players()
    play(
        game(Jumps(4), d_steps=2, anchor="none", penalty="none"),
        players,
        [tiny_batch(64)],
        TinyClock(),
    )
    first, second, fake, real = (seen[0] for seen in players["discriminator"].seen)
    assert not torch.equal(first[:64], second[:64])
    assert not torch.equal(second[:64], real)
    assert len(fake) == len(real) == 64


def test_at_the_clean_end_the_fake_is_the_prediction():
    players = constant_players(0.7)
    objective = game(Jumps(1), pairing="marginal", anchor="none", penalty="none")
    batch = tiny_batch(5)
    play(objective, players, [batch], TinyClock())
    x_s, x_t, s, t, _ = players["discriminator"].seen[0]
    torch.testing.assert_close(x_s[:5], batch.x)
    torch.testing.assert_close(x_s[5:], torch.full_like(batch.x, 0.7))
    assert x_t is None
    assert s.tolist() == [0.0] * 10
    assert t.tolist() == [4.0] * 10


@pytest.mark.parametrize("pairing", ["transition", "marginal"])
def test_fakes_of_a_perfect_generator_have_the_law_of_reals(pairing):
    """All data equal c and x̂₀ = c: given x_t (transition) or not (marginal), x̃_s has the law of x_s."""
    process, count = Process(Article(4)), 20_000
    position = torch.arange(count)
    batch = tiny_batch(1)
    batch = type(batch)(torch.full((count, 1, 1, 1), 0.8, dtype=torch.float64), position, ["a cat"] * count)
    players = constant_players(0.8)
    objective = game(
        lambda rng, _: (torch.full((count,), 2.0), torch.full((count,), 3.0)),
        pairing=pairing,
        anchor="none",
        penalty="none",
    )
    play(objective, players, [batch], TinyClock())
    x_s, x_t, *_ = players["discriminator"].seen[0]
    alpha, sigma = (value.item() for value in process.schedule(torch.tensor([2.0])))
    for half in x_s.flatten().chunk(2):
        assert half.mean().item() == pytest.approx(alpha * 0.8, abs=0.03)
        assert half.std().item() == pytest.approx(sigma, rel=0.03)
    if pairing == "transition":  # and the same covariance with the x_t that both share
        real, fake = (
            torch.cov(torch.stack([a, b]))[0, 1]
            for a, b in zip(x_s.flatten().chunk(2), x_t.flatten().chunk(2), strict=True)
        )
        assert real.item() == pytest.approx(fake.item(), rel=0.05)
        assert real.item() > 0.1


@pytest.mark.parametrize("given", [{"weight": 3.0}, {"kappa": 1.0}])
def test_what_no_anchor_reads_is_refused(given):
    with pytest.raises(UserError, match="with kind=none weight and kappa do nothing"):
        Anchor(**given)


def test_mse_anchor_is_the_kl_of_the_posteriors():
    """κ = 10⁴ clips nothing here: anchor · κ · D = KL(q(x_s|x_t,x₀) ‖ q(x_s|x_t,x̂₀))."""
    batch, kappa = tiny_batch(6), 1e4
    objective = game(
        lambda rng, process: tuple(
            k[1:] for k in (torch.tensor([0.0, 1, 2, 3, 1, 2, 1]), torch.tensor([0.0, 2, 3, 4, 3, 4, 4]))
        ),
        anchor="mse_kl",
        kappa=kappa,
        penalty="none",
    )
    players = constant_players(0.3)
    played = play(objective, players, [batch], TinyClock())
    process, rng = players["generator"].process, Rng(3, batch.position, turn=1)
    s, t = objective.jumps(rng, process)
    _, x_t = process.pair(batch.x, s, t, rng)
    true, guess = (process.posterior(x, x_t, s, t) for x in (batch.x, torch.full_like(batch.x, 0.3)))
    kl = kl_divergence(
        Normal(true.mean, true.std.double().expand_as(x_t)),
        Normal(guess.mean, guess.std.double().expand_as(x_t)),
    )
    assert played[-1][2]["anchor"] == pytest.approx(kl.flatten(1).mean(1).mean().item() / kappa, rel=1e-4)


def test_penalty_weight_follows_gamma_over_the_adversarial_part():
    objective = objective_of("lmsd", warmup=0.2, gamma=(0.8, 0.2), lazy=3)
    players, batch = tiny_players(), tiny_batch(8)

    def d_turn(images, updates):
        clock = TinyClock(images=images, played={"discriminator": updates})
        turn = next(objective.turns(players, batch, clock, Rng(0, batch.position)))
        loss = turn.loss()
        return loss.value.item() - loss.logs["adversary"].item(), loss.logs

    for images, gamma in ((200, 0.8), (600, 0.5), (1000, 0.2)):
        extra, logs = d_turn(images, 3)
        assert extra == pytest.approx(0.5 * gamma * 3 * (logs["r1"] + logs["r2"]).item(), rel=1e-6)
        assert extra > 0
    extra, logs = d_turn(600, 4)
    assert extra == 0
    assert "r1" not in logs


@pytest.mark.parametrize("penalty", ["fd", "exact"])
def test_penalties_of_a_linear_critic(penalty):
    """D = mean(x): ‖∇D‖² = 1/18 everywhere, on reals and fakes alike."""
    objective = game(Jumps(4), anchor="none", penalty=penalty, sigma=0.05)
    _, _, logs = play(objective, constant_players(), [tiny_batch(20_000)], TinyClock(), rate=0)[0]
    for name in ("r1", "r2"):
        assert logs[name] == pytest.approx(1 / 18, rel=0.03 if penalty == "fd" else 1e-9)
    assert objective_logs(penalty, r1=False).keys() & {"r1", "r2"} == {"r2"}
    assert objective_logs(penalty, r2=False).keys() & {"r1", "r2"} == {"r1"}


def objective_logs(penalty, **options):
    objective = game(Jumps(4), anchor="none", penalty=penalty, **options)
    return play(objective, constant_players(), [tiny_batch(4)], TinyClock())[0][2]


def test_sign_accuracy_counts_right_verdicts():
    batch = tiny_batch(400)
    rng = Rng(1, batch.position)

    def accuracy(sign, shift, loss):
        objective = game(Jumps(1), pairing="marginal", anchor="none", loss=loss)
        players = constant_players(5.0, sign=sign, shift=shift)
        return objective.probe(players, batch, rng)["discriminator/accuracy"].item()

    assert accuracy(-1.0, 0.0, "relativistic") == 1.0
    assert accuracy(1.0, 0.0, "relativistic") == 0.0
    assert accuracy(0.0, 1.0, "nonsaturating") == 0.5
    assert accuracy(-1.0, 2.5, "hinge") == 1.0


def test_mismatched_captions_are_never_the_own_one_and_follow_the_sample():
    players, asked = tiny_players(), []
    objective = objective_of("lmsd", mismatch=1.0, captions=[*CAPTIONS, *CAPTIONS])
    assert objective.mismatch.captions == tuple(sorted(CAPTIONS))
    words = players["generator"].conditioner
    for parts in (1, 4):
        words.asked.clear()
        play(objective, players, split(tiny_batch(400), parts), TinyClock(), rate=0)
        # condition() per micro-batch: the jump's, the mismatches', then G's twice
        wrong = [text for text, _ in words.asked[: 2 * parts]][1::2]
        asked.append([caption for text in wrong for caption in text])
    own = tiny_batch(400).text
    assert asked[0] == asked[1]
    assert all(a != b for a, b in zip(asked[0], own, strict=True))
    others = [caption for caption, mine in zip(asked[0], own, strict=True) if mine == "a cat"]
    assert {c: others.count(c) for c in set(others)} == {
        c: pytest.approx(100 / 3, abs=15) for c in CAPTIONS if c != "a cat"
    }


@pytest.mark.parametrize("loss", ["relativistic", "nonsaturating"])
def test_mismatches_teach_the_critic_to_read(loss):
    """G is perfect and its fakes tell D nothing; only mismatches ask for the caption, a cat being bright."""
    position = torch.arange(32)
    text = [CAPTIONS[index % 2] for index in range(32)]
    level = torch.tensor([0.8 if caption == "a cat" else -0.8 for caption in text], dtype=torch.float64)
    batch = type(tiny_batch(1))(level[:, None, None, None].expand(-1, *SHAPE).contiguous(), position, text)

    def gap(mismatch):
        players = tiny_players(marginal=True)
        objective = game(
            lambda rng, _: (torch.zeros(len(rng)), torch.full((len(rng),), 4.0)),
            pairing="marginal",
            loss=loss,
            penalty="none",
            anchor="none",
            mismatch=mismatch,
            captions=CAPTIONS[:2],
            caption_dropout=0.2,
        )
        generator = players["generator"]
        generator.forward = lambda x_t, t, cond, z=None: batch.x  # what it was asked for
        optimizer = torch.optim.Adam(players["discriminator"].parameters(), lr=1e-2)
        for step in range(50):
            rng = Rng(step, position)
            loss_of = next(objective.turns(players, batch, TinyClock(), rng)).loss()
            optimizer.zero_grad()
            loss_of.value.backward()
            optimizer.step()
        return loss_of.logs["mismatch_gap"].item()

    assert gap(1.0) > 1.0 + abs(gap(1e-9))


@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
def test_a_mismatch_counts_only_where_there_is_a_caption(dropout):
    """D that reads nothing gives a mismatch the logit of its real: ln 2 for each that has a caption."""
    players, batch = constant_players(), tiny_batch(40)
    objective = game(
        Jumps(4), penalty="none", mismatch=0.5, captions=CAPTIONS, caption_dropout=dropout, diversity_every=0
    )
    found = next(objective.turns(players, batch, TinyClock(), Rng(3, batch.position))).loss()
    _, dropped = players["generator"].conditioner.asked[0]
    told = 1.0 if dropped is None else float((~dropped).double().mean())
    assert told == (1.0 - dropout if dropout in (0.0, 1.0) else pytest.approx(0.6, abs=0.2))
    assert (found.value - found.logs["adversary"]).item() == pytest.approx(0.5 * math.log(2) * told, rel=1e-6)


def test_diversity_over_z():
    batch = tiny_batch(16)

    def diversity(every, updates, *, anchor="none", deaf=False):
        players = tiny_players()
        if deaf:
            players["generator"].net.inside.weight.data[:, -2:] = 0
        objective = game(Jumps(4), anchor=anchor, diversity_every=every)
        return play(objective, players, [batch], TinyClock(updates=updates), rate=0)[-1][2].get("diversity")

    assert diversity(10, 20) > 0.05
    assert diversity(10, 20, deaf=True) == pytest.approx(0, abs=1e-9)
    assert diversity(10, 21) is None
    assert diversity(0, 20) is None
    assert diversity(0, 21, anchor="energy") == pytest.approx(diversity(1, 21), rel=1e-6)


def test_jumps_of_a_variance_exploding_process():
    """On EDM's grid x_s = x₀ + s ε, and so are the fakes of a generator that is always right."""
    players = constant_players(0.1, schedule=EDM(sigma_max=5.0))
    batch = tiny_batch(400)
    batch = type(batch)(torch.full_like(batch.x, 0.1), batch.position, batch.text)
    play(game(Jumps(3), anchor="mse_kl", penalty="none"), players, [batch], TinyClock())
    x_s, _, s, _, _ = players["discriminator"].seen[0]
    noisy = s > 0
    for half in ((x_s - 0.1)[noisy] / s[noisy].double()[:, None, None, None]).chunk(2):
        assert half.std().item() == pytest.approx(1.0, rel=0.05)
    assert s.unique().tolist() == pytest.approx(sorted(players["generator"].process.schedule.grid(3)[1:]))


@pytest.mark.parametrize("make", [lambda b: Adversarial(Jumps(4), bound=b), lambda b: Settings(4, bound=b)])
@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, "pixels"])
def test_a_bound_that_is_none_is_refused_before_anything_is_drawn(make, bound):
    make("codec"), make(None), make(0.5)
    with pytest.raises(UserError, match="a number above 0; codec"):
        make(bound)
