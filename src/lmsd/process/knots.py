"""Knots: the times that a sampler visits, noise first, as the schedulers of other libraries choose them.

    chain of T steps, our step t = index + 1
    trailing    t_i = round(T (n − i)/n)                              (Lin et al. 2023, table 2)
    leading     t_i = 1 + offset + (n − 1 − i) ⌊T/n⌋
    linspace    t_i = 1 + (T − 1)(n − 1 − i)/(n − 1)

    flow        t_i = shift(u_i),  u_i from `high` to `low` in equal steps,  shift(u) = s u/(1 + (s − 1) u)

The last knot, n, is clean data (t = 0), or for a chain its first step (t = 1). A static shift is a number;
a dynamic one depends on how many tokens the net sees, s = e^μ with μ linear in them (`dynamic_shift`).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from lmsd.arguments import explained
from lmsd.errors import Amount, UserError, one_of

Rule = Literal["trailing", "leading", "linspace"]


@dataclass(frozen=True)
class Spaced:
    """Knots of a discrete chain.

    Raises UserError for an unknown rule or end.
    """

    rule: Rule = "trailing"
    """where they lie"""
    offset: Amount = 0
    """steps that all but the last knot lie above their place, for leading"""
    end: Literal["clean", "first"] = "clean"
    """last knot: the data themselves, or the first step of the chain"""
    spare: bool = False
    """for leading and linspace: as of one step more, whose last knot gives way to the end"""
    whole: bool = True
    """for linspace: rounded to steps; else sigma/alpha is interpolated in a straight line"""
    unit: bool = False
    """x_T has deviation 1, and not the sigma of its knot"""

    def __post_init__(self) -> None:
        one_of("spacing", "rule", self.rule, Rule)
        one_of("spacing", "end", self.end, Literal["clean", "first"])

    def __call__(self, chain: int, steps: int) -> list[float]:
        """The steps + 1 knots on a chain of `chain` steps; UserError where it has fewer."""
        found = [*self._inner(chain, steps), float(self.end == "first")]
        if found[0] > chain:
            raise UserError(
                f"spacing: {steps} steps lie at {found[0]:g} on a chain of {chain}: lower spacing.offset="
                f"{self.offset}, or take fewer steps"
            )
        return found

    def _inner(self, chain: int, steps: int) -> list[float]:
        if self.rule == "trailing":
            return [float(round(chain * (steps - i) / steps)) for i in range(steps)]
        points = steps + self.spare
        left = range(points - 1, self.spare - 1, -1)  # how many points lie below each
        if self.rule == "leading":
            return [float(1 + self.offset + k * (chain // points)) for k in left]
        step = (chain - 1) / max(points - 1, 1)  # first: what lies halfway is to be rounded as theirs is
        places = [min(k * step, chain - 1.0) for k in left]
        return [1.0 + (round(place) if self.whole else place) for place in places]


TRAILING = Spaced()
"""The knots of a chain, where nothing else is said."""


@dataclass(frozen=True)
class Shifted:
    """Knots of a flow, from t = 1 to 0."""

    shift: float = 1.0
    """s of s u/(1 + (s - 1) u); above 1: more of the steps near the noise"""
    high: float = 1.0
    """first u, before the shift"""
    low: float | None = None
    """last u above 0, before the shift; null: high / steps"""
    whole: bool = False
    """nets are told whole thousandths, rounded down"""

    @explained
    def __post_init__(self) -> None:
        low = self.high if self.low is None else self.low
        if not (self.shift > 0 and 0 < low <= self.high <= 1):
            raise UserError(
                f"spacing: shift={self.shift:g}, high={self.high:g}, low={self.low}: the shift must be above "
                "0, and 0 < low <= high <= 1"
            )

    def __call__(self, steps: int) -> list[float]:
        """The steps + 1 knots."""
        if self.low is None:
            places = [self.high * (steps - i) / steps for i in range(steps)]
        else:
            places = torch.linspace(self.high, self.low, steps, dtype=torch.float64).tolist()
        found = [shifted(place, self.shift) for place in places]
        return [*(_told_alike(t) if self.whole else t for t in found), 0.0]


def shifted(u: float, shift: float) -> float:
    """S u/(1 + (s − 1) u) (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def dynamic_shift(
    tokens: int, *, base: tuple[int, float], most: tuple[int, float], linear: bool = False
) -> float:
    """e^μ, or μ itself if linear, with μ on the straight line through (tokens, μ) = `base` and `most`."""
    (few, low), (many, high) = base, most
    slope = (high - low) / (many - few)
    mu = low + slope * (tokens - few)
    return mu if linear else math.exp(mu)


def _told_alike(t: float) -> float:
    """The float32 closest to t whose whole thousandths are those of t."""
    wanted, found = math.floor(1000 * t), torch.tensor(t, dtype=torch.float32)
    while (told := int((found * 1000).floor())) != wanted:
        found = found.nextafter(torch.tensor(2.0 if told < wanted else -1.0))
    return float(found)
