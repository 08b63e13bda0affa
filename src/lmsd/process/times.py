"""Laws of training times: at which t (or jump t → s) each sample of a batch is trained.

A law is a small frozen object, `law(rng, process) -> t` float32 [B]. Uniform and logit-normal draw a share
u ∈ (0, 1] of the way from data to noise and let the schedule place it (`Schedule.at`): ⌈uT⌉ on a chain, u
itself on a flow, the ρ-warped σ of EDM. Tags: "t", "jump", "last_jump", "grid".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import Count, UserError, When
from lmsd.process.gaussian import Process
from lmsd.process.schedules import EDM
from lmsd.rng import Rng


class Times(Protocol):
    """A law of training times."""

    @explained
    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t, float32 [B]."""
        ...


def finite(law: str, **numbers: float) -> None:
    """Refuse a mean that is not finite, and a spread below 0 too."""
    for name, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value) or (name == "std" and value < 0):
            raise UserError(f"{law}: {name}={value} must be finite{', and not negative' * (name == 'std')}")


def whole(law: str, steps: int) -> None:
    """Refuse a number of steps that is no whole number of at least 1."""
    if type(steps) is not int or steps < 1:
        raise UserError(f"{law}: steps={steps!r} must be a whole number, 1 or more")


@dataclass(frozen=True)
class Uniform:
    """u uniform in (0, 1] (on a chain, DDPM's law: every step 1..T equally often)."""

    @explained
    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t, float32 [B], never the clean end."""
        return process.schedule.at(1 - rng.uniform((), "t"))


@dataclass(frozen=True)
class LogitNormal:
    """logit u ~ N(mean, std²) (Esser et al. 2024, eq. 19): more of the middle."""

    mean: float = 0.0
    """of logit u"""
    std: float = 1.0
    """of logit u"""

    def __post_init__(self) -> None:
        finite("LogitNormal", mean=self.mean, std=self.std)

    @explained
    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t, float32 [B]."""
        x = self.mean + self.std * rng.normal((), "t")
        # torch.sigmoid rounds a vector's last few numbers differently: t would depend on the batch's split.
        return process.schedule.at(1 / (1 + (-x).exp()))


@dataclass(frozen=True)
class ShiftedUniform:
    """u uniform, then s u/(1 + (s − 1) u) of the way: more noise for s > 1 (Esser et al. 2024, eq. 23).

    Raises UserError for a shift that is not above 0.
    """

    shift: float = 3.0
    """s; 1: uniform"""

    @explained
    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"times: shift={self.shift} must be above 0")

    @explained
    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t, float32 [B], never the clean end."""
        u = 1 - rng.uniform((), "t")
        return process.schedule.at(self.shift * u / (1 + (self.shift - 1) * u))


@dataclass(frozen=True)
class LogNormal:
    """ln σ ~ N(mean, std²) (Karras et al. 2022, table 1), for EDM, whose time is σ."""

    mean: float = -1.2
    """of ln sigma"""
    std: float = 1.2
    """of ln sigma"""

    def __post_init__(self) -> None:
        finite("LogNormal", mean=self.mean, std=self.std)

    @explained
    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t = σ, float32 [B]. Raises UserError for a schedule whose time is not σ."""
        if not isinstance(process.schedule, EDM):
            name = type(process.schedule).__name__
            raise UserError(f"LogNormal draws sigma, the time of EDM but not of {name}: use LogitNormal.")
        return (self.mean + self.std * rng.normal((), "t")).exp()


@dataclass(frozen=True)
class Grid:
    """A knot of the `steps`-step sampling grid, all equally often; never the clean end."""

    steps: Count
    """of the sampling grid"""

    def __post_init__(self) -> None:
        whole("grid", self.steps)

    @explained
    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t, float32 [B]."""
        knots = process.schedule.knots(self.steps, rng.position.device)
        return knots[rng.integer(0, self.steps, (), "t")]


@dataclass(frozen=True)
class Levels:
    """One of a few times, all equally often; 0 is the clean end. Raises UserError for none."""

    levels: tuple[float, ...]

    @explained
    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        if not self.levels or min(self.levels) < 0:
            raise UserError(f"times: levels={list(self.levels)} must name times of the schedule, 0 or more")

    def __call__(self, rng: Rng, process: Process) -> Tensor:
        """Times t, float32 [B]."""
        table = torch.tensor(self.levels, device=rng.position.device)
        return table[rng.integer(0, len(self.levels), (), "t")]


@dataclass(frozen=True)
class Jumps:
    """A jump of the `steps`-step sampling grid, between two neighboring knots.

    steps: jumps of the grid; last: share of the last jump, the one to the data, in [0, 1]; the others share
    the rest equally. None: all jumps equally often. Raises UserError for a share out of range.
    """

    steps: Count
    last: Annotated[float | None, When("steps", unless=1)] = None

    def __post_init__(self) -> None:
        whole("jumps", self.steps)
        if self.last is not None and not (type(self.last) in (int, float) and 0.0 <= self.last <= 1.0):
            raise UserError(f"jumps: last={self.last} is a share of the jumps and must be in [0, 1]")

    @explained
    def __call__(self, rng: Rng, process: Process) -> tuple[Tensor, Tensor]:
        """(s, t), float32 [B] each, s the cleaner knot."""
        knots = process.schedule.knots(self.steps, rng.position.device)
        if self.last is None or self.steps == 1:
            start = rng.integer(0, self.steps, (), "jump")
        else:
            start = rng.integer(0, self.steps - 1, (), "jump")
            start = start.masked_fill(rng.uniform((), "last_jump") < self.last, self.steps - 1)
        return knots[start + 1], knots[start]


@dataclass(frozen=True)
class MixedJumps:
    """A jump of one of several sampling grids, each grid equally often.

    steps: jumps of each grid; last: as `Jumps` has it. Raises UserError for no grid at all.
    """

    steps: Sequence[Count]
    last: float | None = None

    @explained
    def __post_init__(self) -> None:
        if not self.steps:
            raise UserError("jumps: steps is empty; name the grids, e.g. [4, 16]")
        for steps in self.steps:
            Jumps(steps, self.last)

    @explained
    def __call__(self, rng: Rng, process: Process) -> tuple[Tensor, Tensor]:
        """(s, t), float32 [B] each, s the cleaner knot."""
        drawn = (Jumps(steps, self.last)(rng, process) for steps in self.steps)
        s, t = (torch.stack(times) for times in zip(*drawn, strict=True))
        grid = rng.integer(0, len(self.steps), (), "grid")[None]
        return s.gather(0, grid)[0], t.gather(0, grid)[0]
