"""Denoising that is to be hard to disturb: by noise, by attacks, by captions, and by noise in its own data.

    L = E w(t) ‖f(x_t + δ, t, c') − y‖²/D

attack    δ = r √D σ_t g/‖g‖, g = ∇_{x_t} of the loss without δ: the worst direction to first order, in one
          step, for what the net sees alone: the target stays (arXiv 2502.17099: the chain's own drift)
perturb   x_t = α x_0 + σ (ε + γ n), the target is that of ε (Ning et al. 2023, DDPM-IP)
code      c' = c + γ ‖c‖/√d n; the null condition stays as it is (arXiv 2405.20494, CEP)
wrong     a share of captions is another one of the data
noisy     images are x_0 + σ_n n, and only t with σ_t/α_t > σ_n is used (Daras et al. 2024, ambient
          diffusion): with κ = (α σ_n/σ)² and y_n the noisy image,
          L = E ‖(1 − κ) x̂_0 + κ x_t/α − y_n‖²,  x_t = α y_n + √(σ² − α² σ_n²) ε,
          which is least at x̂_0 = E[x_0|x_t] (Tweedie's formula, twice): clean images are never seen
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from lmsd.errors import Measure, Share, UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import Facts, caption_drop, generator_of, latent, mean_square, standard_normal
from lmsd.objectives.denoising import Denoising, Weighting, native_weight
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.types import Batch, Cond, Loss

Error: TypeAlias = Callable[[Tensor], Tensor]
_HALVINGS = 40


@dataclass(frozen=True)
class Disturbances:
    """How strongly a generator is disturbed in training; see the module. 0: not at all.

    attack: r; perturb, code: γ; wrong: share of captions; noisy: σ_n of the training images.
    """

    attack: Measure = 0.0
    perturb: Measure = 0.0
    code: Measure = 0.0
    wrong: Share = 0.0
    noisy: Measure = 0.0


class RobustDenoising(Denoising):
    """Denoising under disturbances; without any it is `Denoising`, bit for bit.

    times, weighting, caption_dropout: as there. Raises UserError for noisy images with weights.
    """

    def __init__(
        self,
        times: Times,
        *,
        disturb: Disturbances,
        weighting: Weighting = "none",
        caption_dropout: float = 0.1,
    ) -> None:
        super().__init__(times, weighting=weighting, caption_dropout=caption_dropout)
        self.disturb, self.captions = disturb, tuple[str, ...]()
        if disturb.noisy and (weighting != "none" or disturb.perturb):
            raise UserError(
                "robust: with disturb.noisy the loss is that of the noisy image, for which weighting and "
                "perturb are not defined: weighting=none, perturb=0"
            )

    def prepare(self, facts: Facts) -> None:
        """Take the captions that wrong ones are drawn from."""
        self.captions = tuple(facts.captions)
        generator = generator_of(facts.players)
        reads = generator.conditioner.reads
        if self.disturb.noisy and generator.codec.told:
            raise UserError(
                "robust: disturb.noisy is the noise of pixels, and this run diffuses what a codec makes of "
                "them: take codec=identity, or disturb.noisy=0"
            )
        if self.disturb.wrong and (reads != "text" or len(self.captions) < 2):
            raise UserError("robust: disturb.wrong needs captions, and at least two distinct ones")
        if self.disturb.code and reads == "nothing":
            raise UserError("robust: disturb.code is noise on a condition, and this run has none")

    def loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        """The mean over the batch; logs "denoising", the same number."""
        if self.disturb.wrong:
            batch = self._mistaken(batch, rng)
        t = self.times(rng, generator.process)
        t = t if not self.disturb.noisy else restricted(generator, t, self.disturb.noisy)
        eps = standard_normal(rng, batch.x, "eps")
        x_t = self._noised(generator, batch.x, t, eps, rng)
        drop = caption_drop(rng, self.caption_dropout)
        cond = generator.condition(batch, drop)
        if self.disturb.code:
            cond = moved(cond, drop, rng, self.disturb.code)
        z = latent(generator, rng, batch.x)

        def error(x: Tensor) -> Tensor:
            if self.disturb.noisy:
                return self._ambient(generator, batch.x, x_t, t, generator(x, t, cond, z))
            native = generator(x, t, cond, z, output="native")
            return native_weight(self.weighting, generator, t) * mean_square(
                native - generator.target(batch.x, eps, t)
            )

        value = error(x_t + self._worst(generator, error, x_t, t) if self.disturb.attack else x_t).mean()
        return Loss(value, {"denoising": value.detach()})

    def _noised(self, generator: Generator, x: Tensor, t: Tensor, eps: Tensor, rng: Rng) -> Tensor:
        process = generator.process
        if self.disturb.noisy:
            alpha, sigma = process.alpha_sigma(t, x)
            left = (sigma.square() - (alpha * self.disturb.noisy).square()).clamp(min=0)
            return alpha * x + left.sqrt() * eps
        if self.disturb.perturb:
            eps = eps + self.disturb.perturb * standard_normal(rng, x, "perturb")
        return process.noise(x, t, eps)

    def _ambient(self, generator: Generator, y: Tensor, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """‖(1 − κ) x̂_0 + κ x_t/α − y_n‖²/D of each sample; κ/α = α (σ_n/σ)² stays finite at α = 0."""
        alpha, sigma = generator.process.alpha_sigma(t, y)
        ratio = (self.disturb.noisy / sigma).square()
        return mean_square((1 - alpha.square() * ratio) * x_0 + alpha * ratio * x_t - y)

    def _worst(self, generator: Generator, error: Error, x_t: Tensor, t: Tensor) -> Tensor:
        """δ of norm r √D σ_t along the gradient of each sample's loss."""
        x = x_t.detach().requires_grad_()
        (slope,) = torch.autograd.grad(error(x).sum(), x)
        _, sigma = generator.process.alpha_sigma(t, x_t)
        length = torch.linalg.vector_norm(slope.flatten(1), dim=1).view_as(sigma)
        unit = slope / length.clamp(min=torch.finfo(slope.dtype).tiny)
        delta: Tensor = self.disturb.attack * x_t[0].numel() ** 0.5 * sigma * unit
        return delta.detach()

    def _mistaken(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with a share of its captions drawn from all of them."""
        wrong = (rng.uniform((), "wrong") < self.disturb.wrong).tolist()
        others = rng.integer(0, len(self.captions), (), "wrong.caption").tolist()
        told = zip(batch.text or (), wrong, others, strict=True)
        return replace(batch, text=[self.captions[o] if w else own for own, w, o in told])


def restricted(generator: Generator, t: Tensor, noise: float) -> Tensor:
    """Times at which σ/α > σ_n: those that are not are spread over all that are, in their order."""
    schedule = generator.process.schedule
    low, high = float(schedule.t_clean), float(schedule.t_noise)
    start, end = low, high
    for _ in range(_HALVINGS):
        middle = (start + end) / 2
        alpha, sigma, _ = schedule.coefficients(torch.tensor([middle], dtype=torch.float64))
        start, end = (start, middle) if float(sigma) > noise * float(alpha) else (middle, end)
    share = (t - low) / (end - low)
    return torch.where(t <= end, end + share * (high - end), t)


def moved(cond: Cond, drop: Tensor, rng: Rng, strength: float) -> Cond:
    """The condition with noise of γ times its own length, but for the null condition (drop [B])."""

    def one(value: Tensor | None, tag: str) -> Tensor | None:
        if value is None:
            return None
        n = rng.normal(value.shape[1:], tag).to(value)
        size: Tensor = torch.linalg.vector_norm(value.detach(), dim=-1, keepdim=True)
        shift: Tensor = size * n * (strength / float(value.shape[-1]) ** 0.5)
        kept = drop.view(-1, *[1] * (value.ndim - 1))
        return torch.where(kept, value, value + shift)

    return replace(cond, tokens=one(cond.tokens, "code.tokens"), pooled=one(cond.pooled, "code.pooled"))
