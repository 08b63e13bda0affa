"""Mismatched captions: D also counts reals with a wrong caption as fakes (Reed et al. 2016).

Each sample's wrong caption is drawn by its own counter, not by rolling the batch, so that it does not depend
on how a batch is split.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from lmsd.errors import UserError, When
from lmsd.models.generator import Generator
from lmsd.objectives.jumps import Jump
from lmsd.types import Batch, Cond


class Mismatch:
    """The weight of mismatched captions in D's loss, and the captions that they are drawn from.

    weight: of the mismatches' loss relative to that of the fakes; 0: none are drawn; captions: the distinct
    ones, by default those of the data. Raises UserError for a weight below 0.
    """

    def __init__(
        self, weight: float = 0.0, *, captions: Annotated[Sequence[str], When("weight", unless=0)] = ()
    ) -> None:
        if weight < 0:
            raise UserError(f"mismatch: weight={weight} must be 0 or more")
        self.weight = weight
        self.learn(captions)

    def learn(self, captions: Sequence[str]) -> None:
        """Draw from these captions, sorted, each once."""
        self.captions = tuple(sorted(set(captions)))
        self._rank = {caption: index for index, caption in enumerate(self.captions)}

    def check(self, batch: Batch) -> None:
        """Refuse data without captions, or with a single distinct one."""
        if self.weight and (batch.text is None or len(self.captions) < 2):
            raise UserError(
                "mismatch: a weight above 0 needs captions in the data, and at least two distinct ones in "
                "captions=: set them, or weight=0"
            )

    def share(self, jump: Jump, like: Tensor) -> Tensor:
        """The weight of each sample's mismatch [B] in the dtype of `like`: 0 where it has no caption."""
        return self.weight * (~jump.drop).to(like.dtype)

    @torch.no_grad()
    def cond(self, generator: Generator, batch: Batch, jump: Jump) -> Cond:
        """The condition of a wrong caption: own index + u (mod n), u uniform in [1, n), so never the own."""
        size = len(self.captions)
        steps = jump.rng.integer(1, size, (), "mismatch").tolist()
        own = [self._rank.get(caption, 0) for caption in batch.text or ()]
        text = [self.captions[(index + step) % size] for index, step in zip(own, steps, strict=True)]
        return generator.condition(replace(batch, text=text), jump.drop)
