"""One jump t → s of the chain, as the players of a game see it, and where a generator lands on it.

x_s ~ q(x_s | x_0),    x_t ~ q(x_t | x_s)        a Markov pair: two draws of q(·|x_0) would not be one

from x̂_0 to x̃_s:
    transition    q(x_s | x_t, x̂_0)                               the posterior, with fresh noise
    marginal      α_s x̂_0 + σ_s ε'                                noised anew
    ode           (σ_s/σ_t) x_t + (α_s − α_t σ_s/σ_t) x̂_0         DDIM's step; x_t + (s − t) û on a flow
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.objectives.augmentation import View
from lmsd.objectives.base import JumpLaw, caption_drop, repeat, standard_normal
from lmsd.objectives.penalty import Critic
from lmsd.process.gaussian import Process
from lmsd.rng import Rng
from lmsd.sampling.settings import Bound, bound_of
from lmsd.types import Batch, Cond

Pairing: TypeAlias = Literal["transition", "marginal", "ode"]
"""How x̃_s is made of x̂_0; only in "transition" does D see x_t beside it."""


@dataclass(frozen=True)
class Jump:
    """One jump t → s of every sample, and what the players know about it.

    s, t: times [B]; x_s, x_t: the Markov pair [B,C,H,W]; drop: whose caption is dropped, bool [B]; cond: the
    condition, with gradients if they are on; rng: the turn's random numbers.
    """

    s: Tensor
    t: Tensor
    x_s: Tensor
    x_t: Tensor
    drop: Tensor
    cond: Cond
    rng: Rng


def draw_jump(law: JumpLaw, generator: Generator, batch: Batch, rng: Rng, *, caption_dropout: float) -> Jump:
    """A jump by `law` for every sample of the batch."""
    s, t = law(rng, generator.process)
    x_s, x_t = generator.process.pair(batch.x, s, t, rng)
    drop = caption_drop(rng, caption_dropout)
    return Jump(s, t, x_s, x_t, drop, generator.condition(batch, drop), rng)


def landing(pairing: Pairing, generator: Generator, x_0: Tensor, jump: Jump, *, bound: Bound) -> Tensor:
    """x̃_s [B,C,H,W] from x̂_0 (see the module), differentiable in x̂_0.

    bound: on |x̂_0|; its value is clamped, not its gradient. Tag: "eps_fake", but for ode.
    """
    process, most = generator.process, bound_of(bound, generator)
    if most is not None:
        x_0 = x_0 + (x_0.clamp(-most, most) - x_0).detach()
    if pairing == "ode":
        return carried(process, x_0, jump)
    eps = standard_normal(jump.rng, x_0, "eps_fake")
    if pairing == "marginal":
        return process.noise(x_0, jump.s, eps)
    return process.posterior(x_0, jump.x_t, jump.s, jump.t).sample(eps)


def carried(process: Process, x_0: Tensor, jump: Jump) -> Tensor:
    """x_s of the probability flow with x̂_0 frozen during the jump: no noise (Song et al. 2021, eq. 12)."""
    alpha_s, sigma_s = process.alpha_sigma(jump.s, x_0)
    alpha_t, sigma_t = process.alpha_sigma(jump.t, x_0)
    keep = sigma_s / sigma_t
    return keep * jump.x_t + (alpha_s - alpha_t * keep) * x_0


def critic(
    discriminator: Discriminator, jump: Jump, cond: Cond, *, pairing: Pairing, view: View | None = None
) -> Critic:
    """D at this jump: k candidates x_s of every sample at once; it does not train the condition.

    view: through which it sees them and x_t; None: as they are.
    """
    beside = jump.x_t if view is None else view.later(jump.x_t)

    def logits(x: Tensor) -> Tensor:
        k = len(x) // len(jump.s)
        x_t = repeat(beside, k) if pairing == "transition" else None
        x = x if view is None else view.earlier(x)
        rows = cond.map(lambda value: repeat(value.detach(), k))
        judged: Tensor = discriminator(x, x_t, repeat(jump.s, k), repeat(jump.t, k), rows)
        return judged

    return logits
