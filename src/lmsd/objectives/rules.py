"""What the adversarial objective refuses, each with the way out.

    options    as soon as it is made                          players, data    at its first turn

Exact R1 differentiates the discriminator twice, which compiled code and fused attention cannot; a finite
difference of σ drowns in bfloat16's rounding of the logits, which is 2⁻⁸ of them, below `FINEST`.
"""

import warnings
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from lmsd.errors import UserError, one_of
from lmsd.models.discriminator import double_backward_obstacle
from lmsd.models.generator import Generator
from lmsd.types import Batch

if TYPE_CHECKING:
    from lmsd.objectives.adversarial import Adversarial

FINEST = 0.03
"""Finite difference σ below which bfloat16's rounding of the logits hides their difference."""


def check_options(game: "Adversarial") -> None:
    """Refuse values out of range and options that do not fit together."""
    for name, value, choices in (
        ("pairing", game.pairing, Literal["transition", "marginal"]),
        ("loss", game.kind, Literal["relativistic", "nonsaturating", "hinge"]),
        ("penalty", game.penalty, Literal["fd", "exact", "none"]),
        ("anchor", game.anchor, Literal["mse_kl", "energy", "none"]),
    ):
        one_of("adversarial", name, value, choices)
    for name, right, range_ in (
        ("sigma", game.sigma > 0.0, "above 0"),
        ("kappa", game.kappa > 0.0, "above 0"),
        ("gamma", game.gamma.least >= 0.0, "0 or more"),
        ("anchor_weight", game.anchor_weight.least >= 0.0, "0 or more"),
        ("warm_rate", game.warm_rate.least >= 0.0, "0 or more"),
        ("rate", game.rate.least >= 0.0, "0 or more"),
        ("mismatch", game.mismatch >= 0.0, "0 or more"),
        ("drop", 0.0 <= game.drop <= 1.0, "a share from 0 to 1"),
        ("clamp", game.clamp is None or game.clamp > 0.0, "above 0, or null"),
        ("diversity_every", game.diversity_every >= 0, "0 or more"),
    ):
        if not right:
            raise UserError(f"adversarial: {name} must be {range_}, not {getattr(game, name)}")
    if min(game.warmup, game.head_start) < 0.0 or game.warmup + game.head_start > 1.0:
        raise UserError(
            f"adversarial: warmup={game.warmup} and head_start={game.head_start} are shares of the run: "
            "neither may be negative, nor both together above 1"
        )
    if game.warmup and game.warm is None and game.anchor == "none":
        raise UserError("adversarial: warmup needs something to learn: set warm= or an anchor")
    if game.lazy > 1 and game.head_start:
        raise UserError("adversarial: lazy counts updates of G, which rests in a head_start: use one of them")
    if game.lazy < 1 or game.d_steps < 1:
        raise UserError(f"adversarial: lazy={game.lazy} and d_steps={game.d_steps} must be at least 1")


def check_players(game: "Adversarial", generator: Generator, discriminator: nn.Module, batch: Batch) -> None:
    """Refuse players and data that do not fit the options; warn of a σ too fine for half precision."""
    if game.anchor == "energy" and not generator.z_dim:
        raise UserError(
            "adversarial: anchor=energy compares two draws of z and this generator has z_dim=0: "
            "give it z_dim>0, or use anchor=mse_kl"
        )
    if game.mismatch and (batch.text is None or len(game._captions) < 2):
        raise UserError(
            "adversarial: mismatch>0 needs captions in the data, and at least two distinct ones in "
            "captions=: set them, or mismatch=0"
        )
    obstacle = double_backward_obstacle(discriminator) if game.penalty == "exact" else None
    if obstacle:
        raise UserError(
            f"adversarial: penalty=exact differentiates the discriminator twice, but {obstacle}; "
            "use penalty=fd, the finite difference, which does so once"
        )
    if game.penalty == "fd" and game.sigma < FINEST and torch.is_autocast_enabled(batch.x.device.type):
        warnings.warn(
            f"adversarial: sigma={game.sigma} is too fine for half precision, the penalties drown in its "
            f"rounding: sigma={FINEST} or more, or precision=32-true",
            stacklevel=2,
        )
