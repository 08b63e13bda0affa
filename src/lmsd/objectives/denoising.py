"""Denoising: regression on what the net predicts.

    L = E_{t, ε} w(t) ‖f(x_t, t, c) − y‖²/D,      x_t = α x₀ + σ ε,      y the target: ε, x₀, v or the velocity

The weight is named by what it does to the error of x̂₀ and carried over to the net's own target by the Jacobian
‖x₀ − x̂₀‖² = J² ‖y − ŷ‖²:      J = 1 (x₀),   σ/α (ε),   σ/(α² + σ²) (v),   σ/(α + σ) (velocity).

    none      w = 1 on the net's own target
    min_snr   min(SNR, 5) on x̂₀                         Hang et al. 2023, eq. 8
    edm       (σ̄² + σ_d²)/(σ̄ σ_d)² on x̂₀, σ̄ = σ/α      Karras et al. 2022, table 1

A net preconditioned as in EDM has its own mix of x₀ and ε as target; its error is taken on x̂₀, where the edm
weight times c_out² is 1.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from lmsd.errors import UserError
from lmsd.objectives.base import (
    Clock,
    TimeLaw,
    caption_drop,
    generator_of,
    latent,
    mean_square,
    standard_normal,
)
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Players, Prediction, Turn

if TYPE_CHECKING:
    from lmsd.models.generator import Generator

Weighting: TypeAlias = Literal["none", "min_snr", "edm"]
_MIN_SNR = 5.0


class Denoising:
    """Train the generator on its own target, L = E w(t) ‖f(x_t, t, c) − y‖²/D.

    times: law (rng, process) → t [B]; weighting: see the module; drop: share of captions dropped, [0, 1].
    A generator with a latent z gets one, so that the same net may be trained on by an adversary.
    """

    players: tuple[str, ...] = ("generator",)

    def __init__(self, times: TimeLaw, *, weighting: Weighting = "none", drop: float = 0.1) -> None:
        if weighting not in ("none", "min_snr", "edm"):
            raise UserError(f"denoising: weighting={weighting!r} is none of none, min_snr, edm")
        self.times = times
        self.weighting: Weighting = weighting
        self.drop = drop

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of the generator."""
        yield Turn("generator", partial(self.loss, generator_of(players), batch, rng))

    def loss(self, generator: "Generator", batch: Batch, rng: Rng) -> Loss:
        """The mean over the batch; logs "denoising", the same number."""
        process, x_0 = generator.process, batch.x
        t = self.times(rng, process)
        eps = standard_normal(rng, x_0, "eps")
        x_t = process.noise(x_0, t, eps)
        cond = generator.condition(batch, caption_drop(rng, self.drop))
        z = latent(generator, rng, x_0)
        alpha, sigma = process.schedule(t)
        if self.weighting == "edm" or generator.precondition == "edm":
            error = mean_square(generator(x_t, t, cond, z) - x_0)
            weight = self._weight("x0", alpha, sigma, generator.sigma_data)
        else:
            target = process.target(generator.prediction, x_0, eps, t)
            error = mean_square(generator(x_t, t, cond, z, output="native") - target)
            weight = self._weight(generator.prediction, alpha, sigma, generator.sigma_data)
        value = (weight * error).mean() if weight is not None else error.mean()
        return Loss(value, {"denoising": value.detach()})

    def _weight(self, kind: Prediction, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor | None:
        if self.weighting == "none":
            return None
        if self.weighting == "min_snr":
            return min_snr_weight(kind, alpha, sigma)
        return edm_weight(alpha, sigma, sigma_data)

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing: the method has no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


def min_snr_weight(kind: Prediction, alpha: Tensor, sigma: Tensor, *, limit: float = _MIN_SNR) -> Tensor:
    """min(SNR, limit)·J² for a net that predicts `kind` (Hang et al. 2023), [B], finite at α = 0 and σ = 0."""
    signal, noise = alpha.square(), sigma.square()
    match kind:
        case "x0":
            return (signal / noise).clamp(max=limit)
        case "eps":
            return (limit * noise / signal).clamp(max=1.0)
        case "v":
            return (limit * noise).minimum(signal) / (signal + noise).square()
        case "velocity":
            return (limit * noise).minimum(signal) / (alpha + sigma).square()


def edm_weight(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """(σ̄² + σ_d²)/(σ̄ σ_d)² with σ̄ = σ/α, for the error of x̂₀, [B]; finite at α = 0, infinite at σ = 0."""
    noise, data = sigma.square(), sigma_data**2
    return (noise + data * alpha.square()) / (noise * data)
