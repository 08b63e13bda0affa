"""What the adversarial objective refuses, and the way out that it names."""

import warnings

import pytest
import torch
from tiny_players import TinyClock, game, tiny_batch, tiny_players
from torch import nn

from lmsd.errors import UserError
from lmsd.process import Jumps
from lmsd.rng import Rng


def compiled(discriminator):
    return torch.compile(discriminator, backend="eager")


def attentive(discriminator):
    discriminator.attention = nn.MultiheadAttention(4, 1)
    return discriminator


@pytest.mark.parametrize("change", [compiled, attentive])
def test_exact_penalty_is_refused_where_there_is_no_double_backward(change):
    players, batch = tiny_players(), tiny_batch(4)
    players["discriminator"] = change(players["discriminator"])
    rng = Rng(0, batch.position)
    with pytest.raises(UserError, match="kind=fd"):
        next(game(Jumps(4), penalty="exact").turns(players, batch, TinyClock(), rng))
    next(game(Jumps(4), penalty="fd").turns(players, batch, TinyClock(), rng))


def test_a_difference_too_fine_for_half_precision_is_told():
    players, batch = tiny_players(), tiny_batch(4)
    coarse, fine = (game(Jumps(4), sigma=sigma) for sigma in (0.03, 0.02))
    rng = Rng(0, batch.position)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(fine.turns(players, batch, TinyClock(), rng))
        with torch.autocast("cpu", torch.bfloat16):
            next(coarse.turns(players, batch, TinyClock(), rng))
            with pytest.raises(UserWarning, match="too fine for half"):
                next(fine.turns(players, batch, TinyClock(), rng))


def test_bad_options_are_refused():
    for options, said in (
        ({"pairing": "joint"}, "transition, marginal"),
        ({"loss": "wgan"}, "hinge"),
        ({"anchor": "none", "warmup": 0.1}, "warm="),
        ({"warmup": 1.5}, "warmup"),
        ({"lazy": 0}, "lazy"),
        ({"gamma": (1.0, 2.0, 3.0)}, "pair"),
    ):
        with pytest.raises(UserError, match=said):
            game(Jumps(4), **options)
    batch = tiny_batch(4)
    rng = Rng(0, batch.position)
    with pytest.raises(UserError, match="mse_kl"):
        next(game(Jumps(4), anchor="energy").turns(tiny_players(z_dim=0), batch, TinyClock(), rng))
    with pytest.raises(UserError, match="captions"):
        next(game(Jumps(4), mismatch=0.5).turns(tiny_players(), batch, TinyClock(), rng))
