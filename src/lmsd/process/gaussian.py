"""The Gaussian process x_t = α_t x₀ + σ_t ε and all that follows from it in closed form.

For a jump from t to the cleaner s (s ≤ t), which adds the share κ = 1 − SNR_t / SNR_s of noise:

    q(x_t | x_s)     = N( α_ts x_s,  σ_t² κ ),           α_ts = α_t / α_s
    q(x_s | x_t, x₀) = N( α_ts (σ_s/σ_t)² x_t + α_s κ x₀,  σ_s² κ )
    KL( q(·|x_t,x₀) ‖ q(·|x_t,x̂₀) ) = ½ (SNR_s − SNR_t) ‖x₀ − x̂₀‖²

What a net predicts is a combination of x₀ and ε, one row per kind; given x_t it can be solved for either:

    pred = a x₀ + b ε         x0: (1, 0)    eps: (0, 1)    v: (−σ, α) (Salimans, Ho 2022)    velocity: (−1, 1)
    x̂₀   = (b x_t − σ pred)/d,    ‖x₀ − x̂₀‖ = (σ/|d|) ‖pred − pred*‖,    d = αb − σa

κ = −expm1(2 (λ_t − λ_s)) keeps digits that σ_t² − α_ts² σ_s² would lose. Nothing here divides by what may be
0: at α_t = 0 the posterior is q(x_s | x₀), at σ_s = 0 it is x₀ itself.

Coefficients are float64 [B] up to the last step; results are float32 (float64 for float64 images).
Shapes: x [B, ...], t and s [B].
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError, one_of
from lmsd.process.schedules import Schedule
from lmsd.rng import Rng
from lmsd.types import Prediction, at_least_float32


@dataclass(frozen=True)
class Normal:
    """A diagonal normal distribution: mean [B, ...], std broadcastable to it."""

    mean: Tensor
    std: Tensor

    def sample(self, eps: Tensor) -> Tensor:
        """The reparametrized sample mean + std · eps, for eps ~ N(0, 1) of the mean's shape."""
        return self.mean + self.std * eps


def row(kind: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(a, b) of pred = a x₀ + b ε, for α and σ of any shape."""
    match kind:
        case "x0":
            return 1.0, 0.0
        case "eps":
            return 0.0, 1.0
        case "v":
            return -sigma, alpha
        case "velocity":
            return -1.0, 1.0


def determinant(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """αb − σa, the determinant of (α, σ) and (a, b): −σ (x0), α (eps), α² + σ² (v), α + σ (velocity)."""
    a, b = row(kind, alpha, sigma)
    return alpha * b - sigma * a


def _like(value: Tensor, x: Tensor) -> Tensor:
    """A coefficient [B] as [B, 1, ...] that broadcasts to x [B, ...]: float64 if x is, else float32."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return value.to(dtype).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class Process:
    """x_t = α_t x₀ + σ_t ε for one schedule: marginals, Markov pairs, posteriors and conversions."""

    schedule: Schedule

    @cached_property
    def ends_in_noise(self) -> bool:
        """Whether α(t_noise) = 0: nothing of x₀ is left in x_T."""
        alpha, _, _ = self.schedule.coefficients(torch.tensor([self.schedule.t_noise], dtype=torch.float64))
        return bool(alpha == 0)

    def check(self, kind: str) -> None:
        """Raise UserError for an unknown prediction kind, and for "eps" if α reaches 0, where x̂₀ is lost.

        Called when a generator is built.
        """
        one_of("generator", "prediction", kind, Prediction)
        if kind == "eps" and self.ends_in_noise:
            raise UserError(
                f'prediction="eps" says nothing about the image where alpha is 0, the noise end of '
                f"{type(self.schedule).__name__}: choose v, velocity or x0."
            )

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) at t [B], each [B, 1, ...], to broadcast to `like` [B, ...]; float32, or float64 like it."""
        alpha, sigma, _ = self.schedule.coefficients(t)
        return _like(alpha, like), _like(sigma, like)

    @explained
    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = α_t x₀ + σ_t ε."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * eps

    @explained
    def pair(self, x0: Tensor, s: Tensor, t: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """(x_s, x_t) of one path: x_s ~ q(x_s|x₀), then x_t ~ q(x_t|x_s), which adds noise to x_s.

        Two independent draws of q(·|x₀) would not be a transition of the chain. s ≤ t; tags eps_s, eps_ts.
        """
        x_s = self.noise(x0, s, rng.normal(x0.shape[1:], "eps_s"))
        alpha_ts, share, (_, _, sigma_t) = self._jump(s, t)
        std = _like(sigma_t * share.sqrt(), x0)
        return x_s, _like(alpha_ts, x0) * x_s + std * rng.normal(x0.shape[1:], "eps_ts")

    @explained
    def posterior(self, x0: Tensor, x_t: Tensor, s: Tensor, t: Tensor) -> Normal:
        """q(x_s | x_t, x₀) for any jump s ≤ t, std [B, 1, ...] (DDPM eq. 7 is the case s = t − 1).

        With x̂₀ in place of x₀ it is the generator's transition; differentiable in x0 and x_t.
        """
        alpha_ts, share, (alpha_s, sigma_s, sigma_t) = self._jump(s, t)
        keep = torch.where(share == 0, 1.0, alpha_ts * (sigma_s / sigma_t) ** 2)
        mean = _like(keep, x_t) * x_t + _like(alpha_s * share, x_t) * x0
        return Normal(mean, _like(sigma_s * share.sqrt(), x_t))

    def _jump(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """(α_ts, κ, (α_s, σ_s, σ_t)), float64 [B]; α_ts = 1, κ = 0 for an empty jump s = t, at any end."""
        alpha_s, sigma_s, lambda_s = self.schedule.coefficients(s)
        alpha_t, sigma_t, lambda_t = self.schedule.coefficients(t)
        still = lambda_s == lambda_t  # if both are infinite, their difference is not a number
        share = torch.where(still, 0.0, -torch.expm1(2 * (lambda_t - lambda_s)))
        return torch.where(still, 1.0, alpha_t / alpha_s), share, (alpha_s, sigma_s, sigma_t)

    @explained
    def to_x0(self, pred: Tensor, kind: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₀ = (b x_t − σ pred)/(αb − σa) from what a net predicts, at least float32.

        Raises UserError for eps at α = 0 (checked only on the CPU, where checking is free; see `check`).
        """
        if kind == "x0":
            return at_least_float32(pred)
        alpha, sigma, _ = self.schedule.coefficients(t)
        if kind == "eps" and self.ends_in_noise and t.device.type == "cpu" and bool((alpha == 0).any()):
            self.check(kind)
        _, b = row(kind, alpha, sigma)
        det = determinant(kind, alpha, sigma)
        x_t, pred = at_least_float32(x_t), at_least_float32(pred)
        return _like(b / det, x_t) * x_t + _like(-sigma / det, pred) * pred

    @explained
    def target(self, kind: Prediction, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect net of this kind predicts: a x₀ + b ε."""
        a, b = row(kind, *self.alpha_sigma(t, x0))
        return b * eps + a * x0

    @explained
    def kl_weight(self, s: Tensor, t: Tensor, *, kappa: float = 5.0) -> Tensor:
        """min(½ (SNR_s − SNR_t), κ) / κ, float32 [B] in [0, 1]: the weight of ‖x₀ − x̂₀‖² in the posterior KL.

        The last jump's is infinite (σ_s = 0), hence the bound κ (min-SNR, Hang et al. 2023).
        """
        lambda_s = self.schedule.coefficients(s)[2]
        _, share, _ = self._jump(s, t)
        gain = torch.where(share == 0, 0.0, 0.5 * (2 * lambda_s).exp() * share)  # an empty jump: not ∞·0
        return (gain.clamp(max=kappa) / kappa).float()
