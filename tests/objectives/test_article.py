"""The article's objective: its terms in closed form, who is moved by what, and what both signs do."""

import pytest
import torch
from tiny_players import SHAPE, TinyClock, play, split, tiny_batch, tiny_players
from torch import nn
from torch.distributions import Normal, kl_divergence

from lmsd.errors import UserError
from lmsd.models.discriminator import AutoencoderDiscriminator
from lmsd.nets.autoencoder import MLPAutoencoder
from lmsd.objectives import Article, warm_start
from lmsd.objectives.base import Facts
from lmsd.process import Article as Chain
from lmsd.process.times import Jumps
from lmsd.rng import Rng


def players_of(*, prediction="v", code=4, seed=0):
    players = tiny_players(schedule=Chain(4), prediction=prediction)
    torch.manual_seed(seed)
    players["discriminator"] = AutoencoderDiscriminator(
        MLPAutoencoder(SHAPE, 16, depth=1, code=code).double()
    )
    return players


class Half(nn.Module):
    """D(x) = w x."""

    def __init__(self, w=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return self.w * x


def fixed(s, t):
    return lambda rng, process: (torch.full((len(rng),), float(s)), torch.full((len(rng),), float(t)))


def drawn(objective, players, batch, turn):
    """The jump and the fakes of a turn, from its own random numbers."""
    jump = objective._draw(players["generator"], batch, Rng(3, batch.position).at(turn))
    return jump, *objective._fake(players["generator"], jump, batch.x)


@pytest.mark.parametrize("distance", ["l1", "squared"])
@pytest.mark.parametrize("sign", ["written", "energy"])
def test_both_losses_are_the_articles(distance, sign):
    """Written out for D(x) = w x, where every reconstruction is known."""
    players, batch = players_of(), tiny_batch(16)
    players["discriminator"] = AutoencoderDiscriminator(Half())
    objective = Article(Jumps(4), distance=distance, sign=sign, kl=0.7)
    turns = list(objective.turns(players, batch, TinyClock(), Rng(3, batch.position)))
    assert [turn.player for turn in turns] == ["discriminator", "generator"]

    def apart(a, b):
        error = (a - b).flatten(1)
        return error.abs().mean(1) if distance == "l1" else error.square().mean(1)

    with torch.no_grad():
        jump, fake, _ = drawn(objective, players, batch, 0)
        loss = apart(jump.x_t, 0.5 * jump.x_t)
        second = apart(0.5 * fake, 0.5 * jump.x_s)
        loss = loss + second if sign == "written" else loss - second
        torch.testing.assert_close(turns[0].loss().value, loss.mean())
        jump, fake, kl = drawn(objective, players, batch, 1)
        loss = apart(0.5 * fake, 0.5 * jump.x_s) + 0.7 * kl
        torch.testing.assert_close(turns[1].loss().value, loss.mean())


@pytest.mark.parametrize("predict", ["image", "previous"])
@pytest.mark.parametrize(("s", "t"), [(1, 2), (2, 3), (3, 4)])
def test_l_kl_is_the_kl_to_the_posterior(predict, s, t):
    """Per pixel, against torch's own KL of two normal distributions; κ bounds nothing here."""
    players, batch = players_of(prediction="x0"), tiny_batch(6)
    objective = Article(fixed(s, t), predict=predict, kappa=1e6)
    with torch.no_grad():
        jump, _, kl = drawn(objective, players, batch, 1)
        z = jump.rng.normal((2,), "z").double()
        output = players["generator"](jump.x_t, jump.t, jump.cond, z)
    process = players["generator"].process
    real = process.posterior(batch.x, jump.x_t, jump.s, jump.t)
    mean = output if predict == "previous" else process.posterior(output, jump.x_t, jump.s, jump.t).mean
    std = real.std.expand_as(mean)
    want = kl_divergence(Normal(real.mean, std), Normal(mean, std)).flatten(1).mean(1)
    torch.testing.assert_close(kl, want, rtol=1e-4, atol=1e-8)


def test_the_last_step_has_a_bounded_weight():
    players, batch = players_of(prediction="x0"), tiny_batch(6)
    for predict in ("image", "previous"):
        objective = Article(fixed(0, 1), predict=predict, kappa=3.0)
        with torch.no_grad():
            _, fake, kl = drawn(objective, players, batch, 1)
        torch.testing.assert_close(kl, 3.0 * (batch.x - fake).square().flatten(1).mean(1))


def test_fakes_of_a_net_that_is_right_are_the_chains_own_step():
    """x̃ ~ q(·|x_t, x₀) where x̂₀ = x₀: mean and deviation of the posterior."""
    players, count = players_of(), 20_000
    batch = tiny_batch(1)
    batch = type(batch)(
        torch.full((count, *SHAPE), 0.4, dtype=torch.float64), torch.arange(count), ["a cat"] * count
    )
    players["generator"].forward = lambda x_t, t, cond, z=None: batch.x
    objective = Article(fixed(2, 3))
    jump, fake, kl = drawn(objective, players, batch, 1)
    real = players["generator"].process.posterior(batch.x, jump.x_t, jump.s, jump.t)
    noise = (fake - real.mean) / real.std
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert kl.abs().max() == 0


@pytest.mark.parametrize("sign", ["written", "energy"])
def test_each_turn_moves_its_player_alone_and_micro_batches_add_up(sign):
    objective, runs = Article(Jumps(4), sign=sign, caption_dropout=0.3), []
    for parts in (1, 4):
        runs.append(play(objective, players_of(), split(tiny_batch(12), parts), TinyClock()))
    for (player, whole, logs), (same, parts, parts_logs) in zip(*runs, strict=True):
        assert player == same
        assert max(gradient.abs().max() for gradient in whole.values()) > 1e-6
        for key, gradient in whole.items():
            torch.testing.assert_close(parts[key], gradient, rtol=1e-9, atol=1e-11)
        assert parts_logs == pytest.approx(logs, rel=1e-6)
    assert [turn[0] for turn in runs[0]] == ["discriminator", "generator"]


def matching(sign, steps=150):
    """E L_rec(D(x̃), D(x)) for a fixed generator after D alone has learned; D is an autoencoder."""
    players, batch = players_of(code=18), tiny_batch(64)
    objective = Article(Jumps(4), sign=sign)
    optimizer = torch.optim.Adam(players["discriminator"].parameters(), lr=5e-3)
    found = []
    for _ in range(steps):
        loss = next(objective.turns(players, batch, TinyClock(), Rng(0, batch.position))).loss()
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        found.append(float(loss.logs["matching"]))
    return found


def test_as_written_d_hides_the_difference_and_with_the_other_sign_shows_it():
    written, energy = matching("written"), matching("energy")
    assert energy[-1] > 4 * written[-1]


def test_a_constant_d_makes_the_matching_term_nothing():
    """As written there is no game: what D(x) is costs its reconstruction alone."""
    players, batch = players_of(), tiny_batch(8)
    players["discriminator"] = AutoencoderDiscriminator(Half(0.0))
    objective = Article(Jumps(4), kl=0.0)
    _, loss = [turn.loss() for turn in objective.turns(players, batch, TinyClock(), Rng(0, batch.position))]
    assert loss.value == 0


def test_it_plays_after_a_warm_start_only_with_one():
    with pytest.raises(UserError, match="warm="):
        warm_start(Article(Jumps(4)), warmup=0.5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="discriminator=autoencoder"):
        Article(Jumps(4)).prepare(Facts([], lambda: None, tiny_players()))
    with pytest.raises(UserError, match=r"generator\.prediction=x0.*sampler=direct"):
        warm_start(Article(Jumps(4), predict="previous")).prepare(Facts([], lambda: None, players_of()))
    with pytest.raises(UserError, match="objective=article"):
        AutoencoderDiscriminator(nn.Identity(), marginal=True)
    for options, said in (
        ({"distance": "huber"}, "l1, squared"),
        ({"predict": "noise"}, "image, previous"),
        ({"sign": "minus"}, "written, energy"),
        ({"kl": -1.0}, "kl=-1.0"),
        ({"caption_dropout": 2.0}, "caption_dropout=2.0"),
    ):
        with pytest.raises(UserError, match=said):
            Article(Jumps(4), **options)


def test_the_probe_tells_real_from_fake():
    players, batch = players_of(), tiny_batch(16)
    players["discriminator"] = AutoencoderDiscriminator(Half())
    found = Article(Jumps(4)).probe(players, batch, Rng(0, batch.position))
    assert found.keys() == {"discriminator/energy_real", "discriminator/energy_fake"}
    assert found["discriminator/energy_real"] != found["discriminator/energy_fake"]
