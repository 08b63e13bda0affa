"""Sampling as a policy: paths with their exact log-probabilities.

A step of the τ-family is a normal distribution in closed form, so the chain is a Markov decision process with
state (x_t, c, z), action x_s and a reward at the end:

    π_θ(x_s | x_t, c)  = N( keep · x_t + push · x̂₀_θ(x_t, t, c),  std² )
    log π_θ            = −‖x_s − mean_θ‖²/(2 std²) − D log std − ½ D log 2π                   nats
    KL(π_θ ‖ π_ref)    = ‖mean_θ − mean_ref‖²/(2 std²)                                        nats

The z of step k is part of the state, drawn by counter and so the same when learning. Paths that forget x_T
(τ = 1 from α_T = 0) keep the reference measure of a KL-regularized optimum p_ref · exp(r/β) (Domingo-Enrich
et al. 2024). Flow-GRPO's noise scale a is √2 τ. The last step has std = σ_s = 0 and is not an action, unless
it is given its own std, `last_std`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError, When
from lmsd.models.generator import Generator
from lmsd.process import Process
from lmsd.rng import Rng
from lmsd.sampling.guidance import begin, denoisers, walk
from lmsd.sampling.sampler import Knot, Level, Sampler, State, Step, knots, levels
from lmsd.sampling.samplers import Tau, Transition
from lmsd.sampling.settings import Settings
from lmsd.types import Cond, Denoise, Trajectory


@explained
def log_prob(x_s: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log N(x_s; mean, std²) summed over all but the first dimension, [B], in nats.

    Raises UserError for std ≤ 0.
    """
    _check_std(std)
    size = mean[0].numel()
    constant = size * (math.log(std) + 0.5 * math.log(2 * math.pi))
    return -((x_s - mean) / std).square().flatten(1).sum(1) / 2 - constant


@explained
def path_kl(mean: Tensor, reference: Tensor, std: float) -> Tensor:
    """KL of N(mean, std²) from N(reference, std²), summed over all but the first dimension, [B], nats.

    Raises UserError for std ≤ 0.
    """
    _check_std(std)
    return ((mean - reference) / std).square().flatten(1).sum(1) / 2


def _check_std(std: float) -> None:
    if not std > 0:
        raise UserError(
            f"std={std}: a step without noise has no log-probability; give the policy tau or last_std above 0"
        )


class Policy(Sampler):
    """How a path is drawn, in rollouts and in learning alike: the τ-family, with noise in its last step.

    tau: of the τ-family; last_std: std of the last step, 0: deterministic; ode: steps outside the window that
    is learned from are deterministic (τ = 0; Li et al. 2025, MixGRPO), else random. Raises UserError for a
    negative last_std.
    """

    @explained
    def __init__(
        self, tau: float = 1.0, *, last_std: Annotated[float, When("tau", unless=0)] = 0.0, ode: bool = False
    ) -> None:
        if last_std < 0:
            raise UserError(f"policy: last_std={last_std} must not be negative")
        self.tau, self.last_std, self.ode = tau, last_std, ode
        self._noisy, self._still = Tau(tau), Tau(0.0)

    def transition(self, start: Level, to: Level, *, learned: bool = True) -> Transition:
        """The coefficients of one step, inside or outside the window that is learned from."""
        inside = learned or not self.ode
        own = (self._noisy if inside else self._still).transition(start, to)
        last = inside and self.tau > 0 and own.std == 0
        return Transition(own.keep, own.push, self.last_std if last else own.std)

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """x_s from N(mean, std²), in the type of x_t; the state is not used."""
        return self.transition(t.level, s.level).draw(denoise, x_t, t, rng)

    def within(self, window: Sequence[int] | None) -> Sampler:
        """The same policy with a window; None: all steps."""
        return self if window is None else _Within(self, window)

    def transitions(
        self, process: Process, steps: int, window: Sequence[int] | None = None
    ) -> list[Transition]:
        """The coefficients of all steps in order."""
        pairs = enumerate(pairwise(levels(process.schedule, steps)))
        return [self.transition(*pair, learned=window is None or k in window) for k, pair in pairs]

    def actions(
        self, process: Process, settings: Settings, window: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """The random steps of `window` (None: all). Raises UserError if there are none."""
        table = self.transitions(process, settings.steps, window)
        wanted = range(settings.steps) if window is None else window
        steps = tuple(k for k in wanted if table[k].std > 0)
        if not steps:
            raise UserError(
                f"policy: none of the steps {list(wanted)} of {settings.steps} is random: set tau or last_std"
            )
        return steps

    @explained
    @torch.no_grad()
    def rollout(
        self,
        generator: Generator,
        cond: Cond,
        null: Cond | None = None,
        *,
        settings: Settings,
        rng: Rng,
        shape: Sequence[int],
        window: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Trajectory:
        """Paths for the B positions of rng, without gradients; with the same random numbers as `sample`.

        shape: of one image; window: steps to learn from, None: all; dtype: of what is stored, at least
        float32: rounded to half precision, a path would have other log-probabilities.
        """
        learned = self.actions(generator.process, settings, window)
        x = begin(generator, settings, rng, shape, dtype)
        walked = list(walk(generator, cond, null, x, sampler=self.within(window), settings=settings, rng=rng))
        steps = [walked[k] for k in learned]
        return Trajectory(
            x=torch.stack([x, *(step.x_s for step in walked)], 1),
            steps=learned,
            mean=torch.stack([step.mean for step in steps], 1),
            std=tuple(step.std for step in steps),
            log_prob=torch.stack([log_prob(step.x_s, step.mean, step.std) for step in steps], 1),
        )

    @explained
    def means(
        self,
        generator: Generator,
        cond: Cond,
        null: Cond | None,
        *,
        settings: Settings,
        path: Trajectory,
        rng: Rng,
    ) -> list[Tensor]:
        """The generator's means of a path's random steps, [B,...] each, differentiable.

        One call of the net per step, with the rollout's batch: in half precision a batch of another shape is
        rounded differently, and the ratio of new to old probability would not start at 1.
        """
        denoise_at = denoisers(generator, cond, null, settings)
        table = knots(generator.process, settings.steps, path.x[:, 0])
        found = []
        for k in path.steps:
            t, s = table[k], table[k + 1]
            x_t = path.x[:, k]
            found.append(
                self.transition(t.level, s.level).mean(x_t, denoise_at(t.level, rng.at(k))(x_t, t.t))
            )
        return found


class _Within(Sampler):
    """A policy whose steps outside a window are not learned from."""

    def __init__(self, policy: Policy, window: Sequence[int]) -> None:
        self.policy, self.window = policy, window

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        learned = t.k in self.window
        return self.policy.transition(t.level, s.level, learned=learned).draw(denoise, x_t, t, rng)
