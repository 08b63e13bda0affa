"""Denoising: regression on what the net predicts.

    L = E_{t, ε} w(t) ‖f(x_t, t, c) − y‖²/D,      x_t = α x₀ + σ ε,      y the net's target

The weights are published for the error of x̂₀ and translated to that of f by ‖x₀ − x̂₀‖² = σ²/n² ‖y − f‖²:

    n = d of the prediction's row (`process.gaussian`),    n² = (σ² + α² σ_d²)/σ_d² for EDM's F

              on x̂₀                                                     on f
    none                                                                1
    min_snr   min(SNR, 5)                Hang et al. 2023, eq. 8        min(α², 5 σ²)/n²
    edm       (σ̄² + σ_d²)/(σ̄ σ_d)²       Karras et al. 2022, table 1    (σ² + α² σ_d²)/(σ_d² n²)

with σ̄ = σ/α; for EDM's F the last weight is 1. At the clean end of time no weight is defined.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import UserError, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Clock,
    Objective,
    caption_drop,
    generator_of,
    latent,
    mean_square,
    standard_normal,
)
from lmsd.process.gaussian import determinant
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Players, Turn

Weighting: TypeAlias = Literal["none", "min_snr", "edm"]
_MIN_SNR = 5.0


class Denoising(Objective):
    """Train the generator on its own target, L = E w(t) ‖f(x_t, t, c) − y‖²/D.

    times: law (rng, process) → t [B]; weighting: see the module; caption_dropout: share of captions dropped,
    [0, 1]. A generator with a latent z gets one, so that an adversary can continue training the same net.
    """

    def __init__(self, times: Times, *, weighting: Weighting = "none", caption_dropout: float = 0.1) -> None:
        one_of("denoising", "weighting", weighting, Weighting)
        if not 0.0 <= caption_dropout <= 1.0:
            raise UserError(f"denoising: caption_dropout must be a share from 0 to 1, not {caption_dropout}")
        self.times = times
        self.weighting: Weighting = weighting
        self.caption_dropout = caption_dropout

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of the generator."""
        yield Turn("generator", partial(self.loss, generator_of(players), batch, rng))

    def loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        """The mean over the batch; logs "denoising", the same number."""
        t = self.times(rng, generator.process)
        eps = standard_normal(rng, batch.x, "eps")
        x_t = generator.process.noise(batch.x, t, eps)
        cond = generator.condition(batch, caption_drop(rng, self.caption_dropout))
        z = latent(generator, rng, batch.x)
        error = mean_square(generator(x_t, t, cond, z, output="native") - generator.target(batch.x, eps, t))
        value = (native_weight(self.weighting, generator, t) * error).mean()
        return Loss(value, {"denoising": value.detach()})


def native_weight(weighting: Weighting, generator: Generator, t: Tensor) -> Tensor:
    """w(t) [B] for the error of what the generator's net predicts; see the table above."""
    alpha, sigma = generator.process.schedule(t)
    if weighting == "none":
        return torch.ones_like(alpha)
    data = generator.sigma_data**2
    whole = sigma.square() + data * alpha.square()
    norm = determinant(generator.prediction, alpha, sigma).square()
    if generator.precondition == "edm":
        norm = whole / data
    if weighting == "min_snr":
        return alpha.square().minimum(_MIN_SNR * sigma.square()) / norm
    return whole / (data * norm)
