"""Classifier-free guidance in x̂₀ space, and the one way from noise to images.

    x̂₀ = x̂₀(null) + w (x̂₀(cond) − x̂₀(null))        (Ho and Salimans 2022, eq. 6, in x̂₀ instead of ε̂)

In x̂₀ it is the same for all prediction kinds and needs no schedule.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import Process
from lmsd.rng import Rng
from lmsd.sampling.sampler import DenoiseAt, Level, Sampler, Step, spread
from lmsd.sampling.settings import Settings, bound_of
from lmsd.types import Cond, Denoise


class PredictsX0(Protocol):
    """What sampling needs from a generator."""

    @property
    def process(self) -> Process:
        """The noising process that it was trained on."""
        ...

    @property
    def z_dim(self) -> int:
        """Width of its noise latent z; 0: none."""
        ...

    @property
    def bound(self) -> float | None:
        """Bound on every |x₀| of what is diffused; None: unknown."""
        ...

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Cond, z: Tensor | None = None, *, output: Literal["x0"] = "x0"
    ) -> Tensor:
        """x̂₀ [B,C,H,W], float32."""
        ...


def guided(
    generator: PredictsX0,
    cond: Cond,
    null: Cond | None = None,
    *,
    scale: float | Tensor = 1.0,
    z: Tensor | None = None,
) -> Denoise:
    """The guided denoiser (x_t, t) → x̂₀ of a generator, for one z [B, z_dim].

    scale: w, one number or one per sample [B]; the number 1 skips the unconditional pass. Raises UserError if
    that pass is needed and there is no null condition.
    """

    def latent(x_t: Tensor) -> Tensor | None:
        return None if z is None else z.to(x_t.dtype)

    if isinstance(scale, (int, float)) and scale == 1:
        return lambda x_t, t: generator(x_t, t, cond, latent(x_t))
    if null is None:
        raise UserError("Guidance needs the null condition: train with caption dropout, or set guidance=1.")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        free = generator(x_t, t, null, latent(x_t))
        weight = scale.view(-1, *[1] * (x_t.ndim - 1)) if isinstance(scale, Tensor) else scale
        return free + weight * (generator(x_t, t, cond, latent(x_t)) - free)

    return denoise


def denoisers(
    generator: PredictsX0,
    cond: Cond,
    null: Cond | None,
    settings: Settings,
) -> DenoiseAt:
    """(start of a step, its random numbers) → the denoiser of that step, with its own z.

    Sampling and policy gradients get every x̂₀ through this.
    """
    interval, bound = settings.interval, bound_of(settings.bound, generator)

    def denoise_at(start: Level, here: Rng) -> Denoise:
        z = here.normal((generator.z_dim,), "z") if generator.z_dim else None
        inside = interval is None or interval[0] <= start.time <= interval[1]
        denoise = guided(generator, cond, null, scale=settings.guidance if inside else 1.0, z=z)
        return denoise if bound is None else lambda x_t, t: denoise(x_t, t).clamp(-bound, bound)

    return denoise_at


@torch.no_grad()
def sample(
    generator: PredictsX0,
    cond: Cond,
    null: Cond | None = None,
    *,
    sampler: Sampler,
    settings: Settings,
    rng: Rng,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x₀ [B, *shape] for the B positions of rng, not decoded.

    Random numbers: x_T from rng ("x_T"); z and the noise of step k = 0, 1, ... from rng.at(k) ("z", "step").
    """
    x = begin(generator, settings, rng, shape, dtype)
    for step in walk(generator, cond, null, x, sampler=sampler, settings=settings, rng=rng):
        x = step.x_s
    return x


def begin(
    generator: PredictsX0, settings: Settings, rng: Rng, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """The noise x_T [B, *shape] that a path begins with."""
    return spread(generator.process.schedule, settings.steps) * rng.normal(shape, "x_T").to(dtype)


def walk(
    generator: PredictsX0,
    cond: Cond,
    null: Cond | None,
    x: Tensor,
    *,
    sampler: Sampler,
    settings: Settings,
    rng: Rng,
    start: int = 0,
) -> Iterator[Step]:
    """The steps of a path from x at knot `start`, with gradients if they are on."""
    denoise_at = denoisers(generator, cond, null, settings)
    return sampler.path(denoise_at, x, rng=rng, process=generator.process, steps=settings.steps, start=start)
