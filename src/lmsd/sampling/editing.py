"""Editing: an image is changed by sampling from part of the way, and only where a mask allows it.

    x_k = α_k y + σ_k ε         the image y at the knot k where sampling begins (SDEdit, Meng et al. 2022)
    x̂₀ ← m x̂₀ + (1 − m) y      at every step: what is not masked is known

With the second line a posterior step leaves the known part at x_s ~ q(x_s | x_t, y), exactly as noisy as the
rest, so the two meet without a seam (the conditioning of Song et al. 2021 in terms of x̂₀); at the last knot
it is y itself.
"""

import math

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.sampling.guidance import Weaker, denoisers
from lmsd.sampling.sampler import Level, Sampler, levels, spread
from lmsd.sampling.settings import Settings
from lmsd.types import Cond, Denoise


@explained
def first_knot(strength: float, steps: int) -> int:
    """The knot at which an edit begins: the last ⌊strength · steps + ½⌋ of all steps are run, at least one.

    Raises UserError for a strength outside (0, 1].
    """
    if type(steps) is not int or steps < 1:
        raise UserError(f"steps={steps!r} of an edit must be a whole number, 1 or more")
    if type(strength) not in (int, float) or not 0.0 < strength <= 1.0:
        raise UserError(
            f"strength={strength}: give 1 for a new image, and less to stay closer to the old one"
        )
    return steps - max(1, math.floor(strength * steps + 0.5))


@explained
@torch.no_grad()
def edit(
    generator: Generator,
    image: Tensor,
    cond: Cond,
    null: Cond | Weaker | None = None,
    *,
    sampler: Sampler,
    settings: Settings,
    rng: Rng,
    strength: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Samples near `image` [B,C,H,W], encoded, that fit the condition; not decoded.

    strength: in (0, 1], how much of the way is resampled; 1 forgets all of the image but its known part.
    mask: [B,1,H,W] in [0, 1], 1 where the image may change; None: everywhere. Random numbers as in `sample`,
    whose x_T is ε here.
    """
    process, steps = generator.process, settings.steps
    start = first_knot(strength, steps)
    level = levels(process.schedule, steps)[start]
    noise = rng.normal(image.shape[1:], "x_T")
    x = spread(process.schedule, steps) * noise if start == 0 else level.alpha * image + level.sigma * noise

    denoise_at = denoisers(generator, cond, null, settings)

    def known_at(here: Level, numbers: Rng) -> Denoise:
        denoise = denoise_at(here, numbers)
        if mask is None:
            return denoise
        return lambda x_t, t: mask * denoise(x_t, t) + (1 - mask) * image

    for step in sampler.path(known_at, x, rng=rng, process=process, steps=steps, start=start):
        x = step.x_s
    return x
