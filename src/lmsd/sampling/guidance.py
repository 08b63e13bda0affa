"""Classifier-free guidance in x̂₀ space, and the one way from noise to images.

    x̂₀ = x̂₀(null) + w (x̂₀(cond) − x̂₀(null))        (Ho and Salimans 2022, eq. 6, in x̂₀ instead of ε̂)

In x̂₀ it is the same for every prediction kind and needs no schedule.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.process import Process
from lmsd.rng import Rng
from lmsd.sampling.sampler import DenoiseAt, Level, Sampler, levels
from lmsd.types import Cond, Denoise


class PredictsX0(Protocol):
    """What sampling needs of a generator."""

    @property
    def process(self) -> Process:
        """The noising process that it was trained on."""
        ...

    @property
    def z_dim(self) -> int:
        """Width of its noise latent z; 0: none."""
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

    scale: w, one number or one for each sample [B]; the number 1 skips the pass without condition. Raises
    UserError if that pass is needed and there is no null condition.
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
    null: Cond | None = None,
    *,
    guidance: float | Tensor = 1.0,
    interval: tuple[float, float] | None = None,
    clamp: float | None = None,
) -> DenoiseAt:
    """(start of a step, its random numbers) → the denoiser of that step, with a z of its own.

    guidance, interval, clamp: as for `sample`. The one way to x̂₀ of sampling and of policy gradients.
    """

    def denoise_at(start: Level, here: Rng) -> Denoise:
        z = here.normal((generator.z_dim,), "z") if generator.z_dim else None
        inside = interval is None or interval[0] <= start.time <= interval[1]
        denoise = guided(generator, cond, null, scale=guidance if inside else 1.0, z=z)
        return denoise if clamp is None else lambda x_t, t: denoise(x_t, t).clamp(-clamp, clamp)

    return denoise_at


@torch.no_grad()
def sample(
    generator: PredictsX0,
    cond: Cond,
    null: Cond | None = None,
    *,
    sampler: Sampler,
    steps: int,
    rng: Rng,
    shape: Sequence[int],
    guidance: float | Tensor = 1.0,
    interval: tuple[float, float] | None = None,
    clamp: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x₀ [B, *shape] for the B positions of rng, float32 unless dtype says otherwise, not decoded.

    guidance: w, one number or one for each sample [B]. interval (low, high): guide only the steps that start
    at a time low ≤ t ≤ high of the schedule (σ for EDM; Kynkäänniemi et al. 2024). clamp: bound on every
    |x̂₀|, the range of the data (Ho et al. 2020); None: no bound. Random numbers: x_T from
    rng ("x_T"); z and the step's noise from rng.at(k) ("z", "step") at step k = 0, 1, ...
    """
    process = generator.process
    denoise_at = denoisers(generator, cond, null, guidance=guidance, interval=interval, clamp=clamp)
    x = levels(process.schedule, steps)[0].sigma * rng.normal(shape, "x_T").to(dtype)
    for step in sampler.path(denoise_at, x, rng=rng, process=process, steps=steps):
        x = step.x_s
    return x
