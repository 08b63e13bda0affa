"""What ties the generator to its data while an adversary pulls, at the same x_t:

mse_kl       min(½(SNR_s − SNR_t), κ)/κ · ‖x_0 − x̂_0‖²/D    KL of the posteriors, clipped; optimum E[x_0|x_t]
energy       the energy score of two draws of z              optimum q(x_0|x_t), as the adversary's
transport    ‖x̃_s − x_t‖²/(w D),  w = max(t − s, .001)       of the maps that an adversary allows, the nearest

with t − s as a share of all time (Lin et al. 2025, AFM). Transport biases: the optimum is the data's law only
as λ → 0, so anneal λ to .005 or less.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import UserError, When, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.balance import Balance
from lmsd.objectives.base import (
    JumpLaw,
    Objective,
    generator_of,
    latent,
    mean_square,
    repeat,
    standard_normal,
)
from lmsd.objectives.jumps import Jump, carried, draw_jump
from lmsd.objectives.terms import Annealed, energy_score
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Loss, Players, Turn

AnchorKind: TypeAlias = Literal["mse_kl", "energy", "transport", "none"]
_SHORTEST = 1e-3


class Anchor:
    """λ times one of the terms above, in the generator's loss.

    kind: mse_kl, energy, transport or none; weight: λ, a number, or a pair (start, end) joined by a cosine
    over its phase of the run; kappa: κ, the largest ½ ΔSNR that counts; normalize: decay of an average by
    which the adversary's gradient at x̃_s is divided, so that λ means the same at every size of it, null: it
    is taken as it is. Raises UserError for values out of range, and for those that none would not read.
    """

    def __init__(
        self,
        kind: AnchorKind = "none",
        *,
        weight: Annotated[float | Sequence[float], When("kind", ("mse_kl", "energy", "transport"))] = 1.0,
        kappa: Annotated[float, When("kind", ("mse_kl",))] = 5.0,
        normalize: Annotated[float | None, When("kind", ("mse_kl", "energy", "transport"))] = None,
    ) -> None:
        one_of("anchor", "kind", kind, AnchorKind)
        self.kind, self.weight, self.kappa = kind, Annealed(weight), kappa
        self.balance = None if normalize is None else Balance(normalize)
        if self.weight.least < 0 or kappa <= 0:
            raise UserError(f"anchor: weight={self.weight} must be 0 or more and kappa={kappa} above 0")
        if kind == "none" and (weight, kappa) != (1.0, 5.0):
            raise UserError("anchor: with kind=none weight and kappa do nothing: give a kind, or neither")
        if kind == "none" and normalize is not None:
            raise UserError(
                "anchor: normalize sets the adversary against an anchor, and kind=none is none: give a kind, "
                "or normalize=null"
            )

    def check(self, generator: Generator) -> None:
        """Refuse a generator without z for the energy score."""
        if self.kind == "energy" and not generator.z_dim:
            raise UserError(
                "anchor: kind=energy compares two draws of z and this generator has z_dim=0: "
                "give it z_dim>0, or take kind=mse_kl"
            )

    def predict(self, generator: Generator, jump: Jump) -> tuple[Tensor, Tensor | None]:
        """x̂_0 for one z, or for two in one forward pass for the energy score."""
        z = latent(generator, jump.rng, jump.x_t)
        if self.kind != "energy" or z is None:
            return generator(jump.x_t, jump.t, jump.cond, z), None
        both = torch.cat([z, standard_normal(jump.rng, z, "z_other")])
        rows = jump.cond.map(lambda value: repeat(value, 2))
        first, second = generator(repeat(jump.x_t, 2), repeat(jump.t, 2), rows, both).chunk(2)
        return first, second

    def term(
        self, generator: Generator, jump: Jump, x_0: Tensor, first: Tensor, second: Tensor | None
    ) -> Tensor:
        """The term of each sample, [B], from what `predict` returned; without λ."""
        if second is not None:
            return energy_score(first, second, x_0)
        process = generator.process
        if self.kind == "transport":
            whole = process.schedule.t_noise - process.schedule.t_clean
            share = ((jump.t - jump.s) / whole).clamp(min=_SHORTEST)
            return mean_square(carried(process, first, jump) - jump.x_t) / share
        return process.kl_weight(jump.s, jump.t, kappa=self.kappa) * mean_square(first - x_0)

    def balanced(self, adversary: Tensor, fake: Tensor) -> Tensor:
        """The adversary's loss [B], its gradient at x̃_s normalized if that is asked for."""
        return adversary if self.balance is None else self.balance.through(adversary, fake)

    def settle(self) -> None:
        """Take the gradients of the update that has been played into the average; every rank calls it."""
        if self.balance is not None:
            self.balance.settle()

    def state_dict(self) -> Mapping[str, Any]:
        """The average of gradients, if it keeps one."""
        return {} if self.balance is None else {"balance": dict(self.balance.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if self.balance is not None and "balance" in state:
            self.balance.load_state_dict(state["balance"])


class Anchored(Objective):
    """The generator alone, by an anchor at the jumps of a game: a warm start without another objective.

    mse_kl weights all jumps equally here, ‖x_0 − x̂_0‖²/D. Raises UserError for an anchor that knows no data.
    """

    def __init__(self, jumps: JumpLaw, anchor: Anchor, *, caption_dropout: float = 0.1) -> None:
        if anchor.kind in ("none", "transport"):
            raise UserError(
                "a warm start needs something to learn: set warm=, or an anchor of kind mse_kl or energy"
            )
        self.anchor, self._draw = anchor, partial(draw_jump, jumps, caption_dropout=caption_dropout)

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of the generator."""
        generator = generator_of(players)
        self.anchor.check(generator)
        yield Turn("generator", partial(self.loss, generator, batch, rng))

    def loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        """The mean over the batch; logs "anchor", the same number."""
        jump = self._draw(generator, batch, rng)
        first, second = self.anchor.predict(generator, jump)
        error = mean_square(first - batch.x) if second is None else energy_score(first, second, batch.x)
        return Loss(error.mean(), {"anchor": error.detach().mean()})
