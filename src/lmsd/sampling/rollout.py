"""Sampling as a policy: paths with their exact log-probabilities.

The τ-family's step is a normal distribution in closed form, so the chain is a Markov decision process whose
state is (x_t, c, z), whose action is x_s and whose reward comes at the end:

    π_θ(x_s | x_t, c)  = N( keep · x_t + push · x̂₀_θ(x_t, t, c),  std² )
    log π_θ            = −‖x_s − mean_θ‖²/(2 std²) − D log std − ½ D log 2π                   nats
    KL(π_θ ‖ π_ref)    = ‖mean_θ − mean_ref‖²/(2 std²)                                        nats

z of step k is a number of the state, drawn by counter and the same in learning. The reference measure of a
KL-regularized optimum p_ref · exp(r/β) is kept by paths that forget x_T: τ = 1 from α_T = 0 (Domingo-Enrich
et al. 2024). Flow-GRPO's noise scale a is √2 τ. The last step has std = σ_s = 0 and is no action, unless it
is given a std of its own, `last_std`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import Process
from lmsd.rng import Rng
from lmsd.sampling.guidance import PredictsX0, denoisers
from lmsd.sampling.sampler import Level, levels
from lmsd.sampling.samplers import Kernel, Tau
from lmsd.types import Cond, Trajectory


def log_prob(x_s: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log N(x_s; mean, std²) summed over all but the first dimension, [B], in nats.

    Raises UserError for std ≤ 0.
    """
    _check_std(std)
    size = mean[0].numel()
    constant = size * (math.log(std) + 0.5 * math.log(2 * math.pi))
    return -((x_s - mean) / std).square().flatten(1).sum(1) / 2 - constant


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


class Policy:
    """How paths are drawn, the same in rollouts and in learning.

    steps: K of the chain; tau: of the τ-family; last_std: of the last step, which has none of its own; 0: it
    is deterministic; guidance, interval, clamp: as for `sample`; ode: outside the window of steps that
    are learned from, deterministic ones (τ = 0; Li et al. 2025, MixGRPO), else random ones, not learned from.
    """

    def __init__(
        self,
        steps: int,
        *,
        tau: float = 1.0,
        last_std: float = 0.0,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        clamp: float | None = None,
        ode: bool = False,
    ) -> None:
        if steps < 1 or last_std < 0:
            raise UserError(f"policy: steps={steps} must be 1 or more and last_std={last_std} not negative")
        self.steps, self.tau, self.last_std, self.guidance = steps, tau, last_std, guidance
        self.interval = None if interval is None else (float(interval[0]), float(interval[1]))
        self.clamp, self.ode = clamp, ode
        self._noisy, self._still = Tau(tau), Tau(0.0)

    def kernels(self, process: Process, window: Sequence[int] | None = None) -> list[Kernel]:
        """The K transitions in order; outside `window` deterministic ones where `ode` is set."""
        table = levels(process.schedule, self.steps)
        found = []
        for k in range(self.steps):
            inside = window is None or k in window or not self.ode
            kernel = (self._noisy if inside else self._still).kernel(table[k], table[k + 1])
            last = inside and self.tau > 0 and kernel.std == 0
            std = self.last_std if last else kernel.std
            found.append(Kernel(kernel.keep, kernel.push, std))
        return found

    def actions(self, process: Process, window: Sequence[int] | None = None) -> tuple[int, ...]:
        """The steps of `window` (None: all) that are random. Raises UserError where none is."""
        wanted = range(self.steps) if window is None else window
        kernels = self.kernels(process, window)
        steps = tuple(k for k in wanted if kernels[k].std > 0)
        if not steps:
            raise UserError(
                f"policy: none of the steps {list(wanted)} of {self.steps} is random: set tau or last_std"
            )
        return steps

    def mean(
        self,
        generator: PredictsX0,
        cond: Cond,
        null: Cond | None,
        *,
        x_t: Tensor,
        step: int,
        kernel: Kernel,
        rng: Rng,
    ) -> Tensor:
        """The mean of transition `step` from x_t [B,...], differentiable; z comes from rng.at(step)."""
        denoise_at = denoisers(
            generator, cond, null, guidance=self.guidance, interval=self.interval, clamp=self.clamp
        )
        start = self._level(generator.process, step)
        t = generator.process.schedule.knots(self.steps, x_t.device)[step].expand(len(x_t))
        return kernel.mean(x_t, denoise_at(start, rng.at(step))(x_t, t))

    def start(self, generator: PredictsX0, rng: Rng, shape: Sequence[int]) -> Tensor:
        """The noise x_T [B, *shape] that a path begins with."""
        return self._level(generator.process, 0).sigma * rng.normal(shape, "x_T")

    def _level(self, process: Process, step: int) -> Level:
        return levels(process.schedule, self.steps)[step]

    @torch.no_grad()
    def rollout(
        self,
        generator: PredictsX0,
        cond: Cond,
        null: Cond | None = None,
        *,
        rng: Rng,
        shape: Sequence[int],
        window: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Trajectory:
        """Paths for the B positions of rng, without gradients; the same numbers as `sample` draws.

        shape: of one image; window: steps to be learned from, None: all; dtype: of what is stored, float32
        at least: a path in half precision has other log-probabilities than its own.
        """
        kernels = self.kernels(generator.process, window)
        steps = self.actions(generator.process, window)
        x = self.start(generator, rng, shape).to(dtype)
        path, means, logs = [x], [], []
        for k, kernel in enumerate(kernels):
            mean = self.mean(generator, cond, null, x_t=x, step=k, kernel=kernel, rng=rng).to(dtype)
            x = mean
            if kernel.std > 0:
                x = mean + kernel.std * rng.at(k).normal(shape, "step").to(dtype)
            if k in steps:
                means.append(mean)
                logs.append(log_prob(x, mean, kernel.std))
            path.append(x)
        return Trajectory(
            x=torch.stack(path, 1),
            steps=steps,
            mean=torch.stack(means, 1),
            std=tuple(kernels[k].std for k in steps),
            log_prob=torch.stack(logs, 1),
        )

    def means(
        self, generator: PredictsX0, cond: Cond, null: Cond | None, *, path: Trajectory, rng: Rng
    ) -> list[Tensor]:
        """`generator`'s means of a path's random steps, [B,...] each, differentiable.

        One call of the net a step with the rollout's own batch: in half precision another shape of batch
        rounds otherwise, and the ratio of new to old probability would not begin at 1.
        """
        kernels = self.kernels(generator.process, path.steps)
        return [
            self.mean(generator, cond, null, x_t=path.x[:, k], step=k, kernel=kernels[k], rng=rng)
            for k in path.steps
        ]
