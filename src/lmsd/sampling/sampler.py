"""From noise to data: the loop over the knots of a schedule, once, and what a step of it is.

A sampler only writes `step`: from x_t at the knot t to x_s at the cleaner knot s, given x̂₀ = denoise(x_t, t).
Knots carry their α, σ and λ = ln α − ln σ as plain floats, computed once for each schedule and number of
steps, so a step costs no more than its own arithmetic. λ is −inf where α = 0 and +inf where σ = 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.process import Process, Schedule
from lmsd.rng import Rng
from lmsd.types import Denoise


@dataclass(frozen=True)
class Level:
    """α, σ and λ of one knot, as plain floats."""

    time: float
    alpha: float
    sigma: float
    lam: float


@dataclass(frozen=True)
class Knot:
    """Knot k of a path: its level and the same time as a tensor [B], float32, for the denoiser."""

    level: Level
    t: Tensor
    k: int = 0


@dataclass(frozen=True)
class State:
    """What a multistep sampler remembers: the last x̂₀ and its knot, or the last ε̂, newest first."""

    x0: Tensor
    level: Level
    eps: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Step:
    """One transition x_t → x_s ~ N(mean, std²); std = 0.0 is a deterministic step, x_s = mean."""

    mean: Tensor
    std: float
    x_s: Tensor
    state: State | None = None


DenoiseAt: TypeAlias = Callable[[Level, Rng], Denoise]
"""(knot where a step starts, the step's random numbers) → the denoiser of that step."""


@explained
def levels(schedule: Schedule, steps: int) -> tuple[Level, ...]:
    """The steps + 1 knots of `schedule.grid(steps)`, noise first."""
    if type(steps) is not int:
        raise UserError(f"steps={steps!r} must be a whole number")
    return _levels(schedule, steps)


@lru_cache(maxsize=128)
def _levels(schedule: Schedule, steps: int) -> tuple[Level, ...]:
    times = schedule.grid(steps)
    rows = [row.tolist() for row in schedule.coefficients(torch.tensor(times, dtype=torch.float64))]
    return tuple(Level(*values) for values in zip(times, *rows, strict=True))


@explained
def spread(schedule: Schedule, steps: int) -> float:
    """Deviation of the noise x_T that a path of so many steps begins with."""
    return 1.0 if schedule.unit else levels(schedule, steps)[0].sigma


@explained
def knots(process: Process, steps: int, x: Tensor) -> list[Knot]:
    """The steps + 1 knots of a path of x [B, ...], noise first."""
    times = process.schedule.knots(steps, x.device)
    table = levels(process.schedule, steps)
    return [
        Knot(level, time.expand(len(x)), k) for k, (level, time) in enumerate(zip(table, times, strict=True))
    ]


class Sampler(ABC):
    """A rule for one step, and the loop over all of them.

    The loop is a generator of steps (`path`), so that callers can look between them; calling the sampler runs
    it to the end and returns x₀.
    """

    @abstractmethod
    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """One step from x_t [B, ...] at t to the cleaner s; any noise is rng.normal(..., "step")."""

    def path(
        self,
        denoise_at: DenoiseAt,
        x_T: Tensor,
        *,
        rng: Rng,
        process: Process,
        steps: int,
        start: int = 0,
    ) -> Iterator[Step]:
        """The steps from knot `start` on, in order; step k draws from rng.at(k).

        x_T: the state at that knot. Raises UserError for too many steps.
        """
        x, state = x_T, None
        for t, s in pairwise(knots(process, steps, x_T)[start:]):
            here = rng.at(t.k)
            step = self.step(denoise_at(t.level, here), x, t, s, here, state)
            x, state = step.x_s, step.state
            yield step

    def __call__(self, denoise: Denoise, x_T: Tensor, rng: Rng, *, process: Process, steps: int) -> Tensor:
        """x₀ from x_T ~ N(0, σ_T²) [B, ...], not clamped."""
        x = x_T
        for step in self.path(lambda level, here: denoise, x_T, rng=rng, process=process, steps=steps):
            x = step.x_s
        return x
