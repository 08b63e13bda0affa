"""Where a few-step student's x_t comes from, and the images of its teacher.

    data    t a knot of the sampling grid,  x_t = α x₀ + σ ε                                noised images
    own     x_T ~ N(0, σ_T²),  k steps of the student itself, without gradients      backward simulation

A student that is trained on noised images meets, when it is sampled, its own x_t instead, with the errors of
the steps before. Backward simulation (Yin et al. 2024, DMD2, 4.5) trains it on what it will meet. How many
steps come first is decided by a count that all ranks share, never by the data: k = count mod K. So every rank
runs the same number of forward passes, and K successive updates train all K knots.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.models.generator import Generator
from lmsd.objectives.base import generator_of, standard_normal
from lmsd.objectives.rewarded import conditions, still
from lmsd.rng import Rng, fold
from lmsd.sampling import Sampler, Settings, Tau, begin, sample, walk
from lmsd.types import Batch, Cond, Players

Starts: TypeAlias = Literal["data", "own"]
"""data: noised images; own: the student's states, by backward simulation."""

_STREAM = 5  # the steps of a path draw from the turns 0, 1, ... of a stream of their own


@dataclass(frozen=True)
class Start:
    """Where the student is called: x_t [B,C,H,W] at the knot t [B]; s [B]: the next, cleaner knot."""

    x_t: Tensor
    t: Tensor
    s: Tensor


def aside(rng: Rng, number: int) -> Rng:
    """A stream of random numbers beside those of a turn, for the same samples; number: which one."""
    return Rng(int(fold(rng.seed, number, rng.turn).item()), rng.position)


@torch.no_grad()
def start(
    starts: Starts,
    generator: Generator,
    batch: Batch,
    cond: Cond,
    rng: Rng,
    *,
    sampler: Sampler,
    settings: Settings,
    count: int,
) -> Start:
    """Where this update calls the student, for the sampler and the grid (settings.steps) that it will use.

    cond: the condition of the batch, as the student will be given it; count: updates so far of the player
    whose turn it is (`clock.played`). Guidance of the settings is not applied: a student has it built in.
    Tags: "start" and "eps_start" (data); those of `sample` in a stream of the turn's own (own).
    """
    table = generator.process.schedule.knots(settings.steps, batch.x.device)
    if starts == "data":
        k = rng.integer(0, settings.steps, (), "start")
        t, s = table[k], table[k + 1]
        return Start(generator.process.noise(batch.x, t, standard_normal(rng, batch.x, "eps_start")), t, s)
    taken = count % settings.steps
    own = aside(rng, _STREAM)
    alone = Settings(settings.steps, bound=settings.bound)
    x = begin(generator, alone, own, batch.x.shape[1:], batch.x.dtype)
    with still(generator):
        path = walk(generator, cond, None, x, sampler=sampler, settings=alone, rng=own)
        for step in islice(path, taken):
            x = step.x_s
    t, s = (table[k].expand(len(batch)) for k in (taken, taken + 1))
    return Start(x, t, s)


def taught(players: Players, batch: Batch, settings: Settings, rng: Rng) -> Tensor:
    """The frozen teacher's samples for the batch's captions or labels, by DDIM, [B,C,H,W]."""
    teacher = generator_of(players, "teacher")
    cond, null = conditions(teacher, batch, guided=settings.guided)
    with still(teacher):
        return sample(
            teacher, cond, null, sampler=Tau(0.0), settings=settings, rng=rng, shape=batch.x.shape[1:],
            dtype=batch.x.dtype,
        )  # fmt: skip
