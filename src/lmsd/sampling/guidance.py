"""Guidance in x̂₀ space, and the one way from noise to images.

    classifier-free    x̂₀ = x̂₀(null) + w (x̂₀(cond) − x̂₀(null))        (Ho and Salimans 2022, eq. 6)
    autoguidance       x̂₀ = x̂₀ʷ(cond) + w (x̂₀(cond) − x̂₀ʷ(cond))      (Karras et al. 2024, eq. 1), w: weaker

In x̂₀ instead of ε̂ it is the same for all prediction kinds and needs no schedule.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.sampling.sampler import DenoiseAt, Level, Sampler, Step, spread
from lmsd.sampling.settings import Settings, bound_of
from lmsd.types import Cond, Denoise


@dataclass(frozen=True)
class Weaker:
    """A generator that has learned less, and its own condition: what stands for null in autoguidance."""

    generator: Generator
    cond: Cond


@explained
def guided(
    generator: Generator,
    cond: Cond,
    null: Cond | Weaker | None = None,
    *,
    scale: float | Tensor = 1.0,
    image_scale: float = 1.0,
    z: Tensor | None = None,
) -> Denoise:
    """The guided denoiser (x_t, t) → x̂₀ of a generator, for one z [B, z_dim].

    scale: w, one number or one per sample [B]; the number 1 skips the unconditional pass; image_scale: w_i of
    a generator that sees an image, whose null condition sees it too; 1 skips a third pass. Raises UserError
    if there is no null condition and it is needed.
    """

    def latent(x_t: Tensor) -> Tensor | None:
        return None if z is None else z.to(x_t.dtype)

    if isinstance(scale, (int, float)) and scale == 1 and image_scale == 1:
        return lambda x_t, t: generator(x_t, t, cond, latent(x_t))
    if null is None:
        raise UserError("Guidance needs the null condition: train with caption dropout, or set guidance=1.")

    match null:
        case Weaker(generator=other, cond=away):
            pass
        case _:
            other, away = generator, null
    seen = away.image
    if image_scale != 1 and seen is None:
        raise UserError("image_guidance is for a generator that sees an image (objective=edit, inpaint)")

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        free = other(x_t, t, away, latent(x_t))
        weight = scale.view(-1, *[1] * (x_t.ndim - 1)) if isinstance(scale, Tensor) else scale
        guided: Tensor = free + weight * (generator(x_t, t, cond, latent(x_t)) - free)
        if image_scale == 1 or seen is None:
            return guided
        blind = other(x_t, t, replace(away, image=torch.zeros_like(seen)), latent(x_t))
        return guided + (image_scale - 1) * (free - blind)  # type: ignore[no-any-return]

    return denoise


@explained
def denoisers(
    generator: Generator,
    cond: Cond,
    null: Cond | Weaker | None,
    settings: Settings,
) -> DenoiseAt:
    """(start of a step, its random numbers) → the denoiser of that step, with its own z.

    Sampling and policy gradients get every x̂₀ through this.
    """
    interval, bound = settings.interval, bound_of(settings.bound, generator)

    def denoise_at(start: Level, here: Rng) -> Denoise:
        z = here.normal((generator.z_dim,), "z") if generator.z_dim else None
        inside = interval is None or interval[0] <= start.time <= interval[1]
        scales = (settings.guidance, settings.image_guidance) if inside else (1.0, 1.0)
        denoise = guided(generator, cond, null, scale=scales[0], image_scale=scales[1], z=z)
        return denoise if bound is None else lambda x_t, t: denoise(x_t, t).clamp(-bound, bound)

    return denoise_at


@explained
@torch.no_grad()
def sample(
    generator: Generator,
    cond: Cond,
    null: Cond | Weaker | None = None,
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


@explained
def begin(
    generator: Generator, settings: Settings, rng: Rng, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """The noise x_T [B, *shape] that a path begins with."""
    return spread(generator.process.schedule, settings.steps) * rng.normal(shape, "x_T").to(dtype)


@explained
def walk(
    generator: Generator,
    cond: Cond,
    null: Cond | Weaker | None,
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
