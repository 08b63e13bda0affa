"""How a model is sampled, as a table of numbers: no schedule and no sampler are needed to follow it.

    u_k = Σ_j w_kj s_j        input of call k: a sum over x_T, the x̂₀ of earlier calls, and noise of steps
    s_k = x̂₀(u_k, t_k)        clamped to the bound, guided where the table says so
    x_0 = Σ_j w_j s_j

Every sampler here is linear in these, whatever its order; so one run of it on unit vectors gives all weights.
One whose step is not linear in them would be told wrongly, and the gate, which follows the table, sees it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lmsd.rng import Rng
from lmsd.sampling.generation import Generation
from lmsd.sampling.sampler import Level, levels, spread
from lmsd.sampling.settings import bound_of
from lmsd.types import Denoise


@dataclass
class _Traced:
    """The calls of a sampler that was run on unit vectors: names of these, and the inputs of the calls."""

    size: int
    spread: float
    names: list[str] = field(default_factory=lambda: ["x_T"])
    calls: list[dict[str, Any]] = field(default_factory=list)

    def unit(self, name: str) -> Tensor:
        """The vector that stands for `name`, which is new or known."""
        if name not in self.names:
            self.names.append(name)
        found = torch.zeros(1, self.size, dtype=torch.float64)
        found[0, self.names.index(name)] = 1.0
        return found

    def weights(self, x: Tensor) -> list[list[Any]]:
        """[[name, weight], ...] of a vector, zeros left out; x_T counts as noise of deviation 1."""
        given = zip(self.names, x[0].tolist(), strict=False)
        scaled = [(name, weight * self.spread if name == "x_T" else weight) for name, weight in given]
        return [[name, weight] for name, weight in scaled if weight]


class _Units(Rng):
    """Random numbers that are unit vectors, by the step that draws them."""

    def __init__(self, traced: _Traced, turn: int = 0) -> None:
        super().__init__(0, torch.zeros(1, dtype=torch.int64), turn=turn)
        self.traced = traced

    def at(self, turn: int) -> "_Units":
        """Those of another step."""
        return _Units(self.traced, turn)

    def normal(self, shape: Any, tag: str) -> Tensor:
        """The noise of this step."""
        return self.traced.unit(f"noise.{self.turn}")


def plan(generate: Generation) -> dict[str, Any]:
    """The table of a way of sampling.

    calls: t, step, guided, x (the weights of its input); noise: name, turn and tag of what is drawn at the
    model's shape; result: weights of x_0; bounds: that every x̂₀ is clamped to.
    """
    settings, generator = generate.settings, generate.generator
    traced = _Traced(4 * settings.steps + 8, spread(generator.process.schedule, settings.steps))
    interval, bound = settings.interval, bound_of(settings.bound, generator)

    def denoise_at(start: Level, here: Rng) -> Denoise:
        inside = interval is None or interval[0] <= start.time <= interval[1]

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            call = {"t": float(t[0]), "step": here.turn, "guided": settings.guided and inside}
            traced.calls.append({**call, "x": traced.weights(x_t)})
            return traced.unit(f"x0.{len(traced.calls) - 1}")

        return denoise

    x = traced.unit("x_T")
    for step in generate.sampler.path(
        denoise_at, x, rng=_Units(traced), process=generator.process, steps=settings.steps
    ):
        x = step.x_s
    result = traced.weights(x)
    drawn = [
        ["x_T", 0, "x_T"],
        *([name, int(name[6:]), "step"] for name in traced.names if name[:6] == "noise."),
    ]
    return {
        "bounds": [None, None] if bound is None else [-bound, bound],
        "guidance": settings.guidance,
        "steps": settings.steps,
        "shape": list(generator.shape),
        "z_dim": generator.z_dim,
        "calls": traced.calls,
        "noise": drawn,
        "result": result,
    }


def knots(generate: Generation) -> list[float]:
    """The times of the path, noise first."""
    schedule = generate.generator.process.schedule
    return [level.time for level in levels(schedule, generate.settings.steps)]


def noisy(table: Mapping[str, Any]) -> list[int]:
    """The steps that draw noise, in order."""
    return [step for _, step, tag in table["noise"] if tag == "step"]
