"""How a generator is sampled, whatever the sampler: in training, evaluation and serving alike."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias

import torch

from lmsd.arguments import explained
from lmsd.errors import Count, UserError, When

Bound: TypeAlias = float | Literal["codec"] | None
"""Bound on every |x̂₀|: a number; "codec": that of what is diffused, if it has one; None: no bound."""


class Bounded(Protocol):
    """What knows the bound of what it diffuses."""

    @property
    def bound(self) -> float | None:
        """On every |x₀| of the data; None: unknown."""
        ...


@explained
def check_bound(bound: Bound) -> None:
    """Raise UserError for an invalid bound."""
    if bound not in ("codec", None) and (isinstance(bound, str) or not bound > 0):
        raise UserError(f"bound={bound} is none of: a number above 0; codec, the range of the data; null")


@explained
def bound_of(bound: Bound, generator: Bounded) -> float | None:
    """The number that `bound` stands for with this generator."""
    return generator.bound if bound == "codec" else bound


@dataclass(frozen=True)
class Settings:
    """Settings of sampling.

    steps: K of the chain; guidance: w of x̂₀ = x̂₀(null) + w (x̂₀(cond) − x̂₀(null)), 1: off; interval: low and
    high, guide only steps that start at a time low ≤ t ≤ high of the schedule (σ for EDM; Kynkäänniemi et al.
    2024), None: all; bound: on every |x̂₀| (Ho et al. 2020); image_guidance: w_i of a generator that sees an
    image, x̂₀(∅, ∅) + w_i (x̂₀(image, ∅) − x̂₀(∅, ∅)) + w (x̂₀(image, text) − x̂₀(image, ∅)), 1: off.

    Raises UserError for values out of range.
    """

    steps: Count
    guidance: float = 1.0
    interval: Annotated[tuple[float, float] | None, When("guidance", unless=1)] = None
    bound: Bound = "codec"
    image_guidance: float = 1.0

    @explained
    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise UserError(f"sampling: steps={self.steps!r} must be a whole number, 1 or more")
        if (
            type(self.guidance) not in (int, float, torch.Tensor)
            or not torch.as_tensor(self.guidance).isfinite().all()
        ):
            raise UserError(f"sampling: guidance={self.guidance!r} must be a finite number; 1 is off")
        if not math.isfinite(self.image_guidance):
            raise UserError(f"sampling: image_guidance={self.image_guidance!r} must be finite; 1 is off")
        check_bound(self.bound)
        if self.interval is not None:
            if len(self.interval) != 2 or self.interval[0] > self.interval[1]:
                raise UserError(
                    f"sampling: interval={list(self.interval)} is no [low, high]: give two times, the lower "
                    "one first"
                )
            low, high = self.interval
            object.__setattr__(self, "interval", (float(low), float(high)))

    @property
    def guided(self) -> bool:
        """Whether the null condition is needed."""
        return self.guidance != 1 or self.image_guidance != 1
