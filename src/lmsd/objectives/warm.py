"""The course of an adversarial run: the generator alone, the discriminator alone, then the game.

[0, warmup)                          G learns by `warm`, or by the game's anchor at the game's jumps
[warmup, warmup + head_start)        D learns alone
[warmup + head_start, 1]             both
"""

from collections.abc import Sequence
from typing import Annotated

from lmsd.errors import UserError, When
from lmsd.objectives.adversarial import Adversarial
from lmsd.objectives.anchor import Anchored
from lmsd.objectives.base import Objective
from lmsd.objectives.phases import Phase, Phases


def warm_start(
    game: Objective,
    *,
    warm: Annotated[Objective | None, When("warmup", unless=0)] = None,
    warmup: float = 0.0,
    head_start: float = 0.0,
    warm_rate: Annotated[float | Sequence[float], When("warmup", unless=0)] = 1.0,
    rate: float | Sequence[float] = 1.0,
    freeze_text: bool = False,
) -> Phases:
    """A game after a warm start.

    warmup: share of the run, [0, 1], in which G learns alone; 1: the adversary never joins; warm: the
    objective of the warm start, None: the anchor of an `Adversarial` game (mse_kl then weights all jumps
    equally); head_start: share of the run after it in which D learns alone; warm_rate, rate: factors on the
    learning rates in the warm start and after it, numbers, or pairs (start, end) joined by a cosine. After
    the warm start G continues from its average, with a fresh optimizer. freeze_text: G's text encoder learns
    in the warm start only; D reads the same code, and a game over a moving code may collapse.

    Raises UserError for shares that do not fit into the run, and for a warm start with nothing to learn.
    """
    if min(warmup, head_start) < 0 or warmup + head_start > 1:
        raise UserError(
            f"warmup={warmup} and head_start={head_start} are shares of the run: neither may be negative, "
            "nor both together above 1"
        )
    waits = {"generator": head_start} if head_start else {}
    if not warmup:
        return Phases([Phase(game, rate=rate, waits=waits, freeze_text=freeze_text)])
    if warm is None:
        if not isinstance(game, Adversarial):
            raise UserError(f"warmup={warmup} needs something to learn: set warm=")
        warm = Anchored(game.jumps, game.anchor, caption_dropout=game.caption_dropout)
    return Phases(
        [
            Phase(warm, warmup, warm_rate),
            Phase(game, rate=rate, waits=waits, restart=("generator",), freeze_text=freeze_text),
        ]
    )
