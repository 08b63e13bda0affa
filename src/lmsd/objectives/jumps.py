"""One jump t → s of the chain, as the players of a game see it.

x_s ~ q(x_s | x_0),    x_t ~ q(x_t | x_s)        a Markov pair: two draws of q(·|x_0) would not be one
"""

from dataclasses import dataclass

from torch import Tensor

from lmsd.models.generator import Generator
from lmsd.objectives.base import JumpLaw, caption_drop
from lmsd.rng import Rng
from lmsd.types import Batch, Cond


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
