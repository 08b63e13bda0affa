"""Noise schedules: what α(t) and σ(t) are in x_t = α(t) x₀ + σ(t) ε.

A schedule is one function t → (α, σ). Beside it stands the half log-SNR λ = ln α − ln σ (SNR = e^{2λ}), from
which ratios of two noise levels are taken, because σ_t² − (α_t/α_s)² σ_s² loses all digits for small jumps.

    discrete, T steps    ᾱ_t = ∏_{k≤t} (1 − β_k),  α = √ᾱ,  σ = √(1 − ᾱ),  t ∈ {0..T},  ᾱ_0 = 1
    EDM                  α = 1,  σ = t,  t ∈ [0, σ_max]
    flow                 α = 1 − t,  σ = t,  t ∈ [0, 1]

t = t_clean is data, t = t_noise is (nearly) noise. All maths is float64, results are float32.
"""

import logging
import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import Count, UserError
from lmsd.process.knots import TRAILING, Shifted, Spaced

_log = logging.getLogger(__name__)

VANISHED_SNR = 1e-4
"""Below this signal-to-noise ratio a step of the article's schedule carries no signal."""


class Schedule(ABC):
    """One function t → (α, σ), with its two ends and its sampling knots.

    steps: T of a discrete schedule, None of a continuous one; t_clean, t_noise: the two ends of time; unit:
    paths begin with noise of deviation 1, not of σ at their first knot; straight: x_t moves from x₀ to ε at
    the constant velocity ε − x₀.
    """

    steps: int | None = None
    t_clean: float = 0.0
    t_noise: float = 1.0
    unit: bool = False
    straight: bool = False

    def __init__(self) -> None:
        self._knots: dict[tuple[int, torch.device], Tensor] = {}

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(α, σ, λ) at t in float64, each of t's shape; λ is ±inf at the ends where σ or α is 0."""

    @abstractmethod
    def at(self, u: Tensor) -> Tensor:
        """Time at the share u ∈ (0, 1] of the way from data to noise, float32; u = 1 is t_noise."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """What a net embeds for t: float32 of the order of 0 to 1000."""

    @abstractmethod
    def grid(self, steps: int) -> list[float]:
        """The steps + 1 knots of a sampler, from t_noise down to t_clean, as plain floats."""

    @explained
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) at t, float32, each of t's shape."""
        alpha, sigma, _ = self.coefficients(t)
        return alpha.float(), sigma.float()

    @explained
    def knots(self, steps: int, device: torch.device) -> Tensor:
        """`grid(steps)` as a float32 tensor on `device`, copied there only once."""
        key = (steps, device)
        if key not in self._knots:
            self._knots[key] = torch.tensor(self.grid(steps), dtype=torch.float32, device=device)
        return self._knots[key]


MOST_STEPS = 100_000
"""More are a slip of the finger, which would end in hours of sampling."""


def _check_steps(steps: int) -> None:
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise UserError(f"steps={steps} is not a number of steps: give 1 to {MOST_STEPS}")


class Discrete(Schedule):
    """A variance-preserving chain of T = len(betas) steps: ᾱ_t = ∏_{k≤t} (1 − β_k) (Ho et al. 2020, eq. 4).

    betas: float64 [T], each in (0, 1]; spacing: its knots, None: trailing. t is an integer in 0..T (of any
    dtype; the nearest one is taken, unless the knots are not whole). Our step t is index t − 1 in diffusers,
    and `model_time` is that index on a scale of 1000, so that nets trained there see the times they know.
    """

    def __init__(self, betas: Tensor, spacing: Spaced | None = None) -> None:
        super().__init__()
        if not bool(((betas > 0) & (betas <= 1)).all()):
            raise UserError(
                f"Every beta must lie in (0, 1]; these go from {betas.min():g} to {betas.max():g}."
            )
        self.steps: int = len(betas)
        self.spacing = spacing or TRAILING
        self.unit = self.spacing.unit
        self.t_noise = float(self.steps)
        log_abar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas.double()).cumsum(0)])
        variance = -torch.expm1(log_abar)
        table = torch.stack([(log_abar / 2).exp(), variance.sqrt(), (log_abar - variance.log()) / 2])
        self._tables = {table.device: table}

    @property
    def alpha_bar(self) -> Tensor:
        """ᾱ_0..ᾱ_T, float64 [T+1]."""
        return self._tables[torch.device("cpu")][0].square()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(α, σ, λ) from the table; t outside 0..T raises torch's index error."""
        if t.device not in self._tables:
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
        if not self.spacing.whole:
            return self._between(t.double(), self._tables[t.device])
        index = t.round().long() if t.is_floating_point() else t.long()
        rows = self._tables[t.device].index_select(1, index.reshape(-1)).view(3, *t.shape)
        return rows[0], rows[1], rows[2]

    def _between(self, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(α, σ, λ) with σ/α interpolated linearly between two steps."""
        below, ratio = t.floor().clamp(max=self.steps - 1).long(), table[1] / table[0]
        found = ratio[below].lerp(ratio[below + 1], t - below)
        alpha = (1 + found.square()).rsqrt()
        return alpha, found * alpha, -found.log()

    def at(self, u: Tensor) -> Tensor:
        """The step ⌈u T⌉, so that uniform u gives every step 1..T the same share."""
        return (u * self.steps).ceil().clamp(1, self.steps).float()

    def model_time(self, t: Tensor) -> Tensor:
        """(t − 1) · 1000 / T: diffusers' time index for T = 1000; negative for data itself."""
        return (t.float() - 1) * (1000.0 / self.steps)

    @explained
    def grid(self, steps: int) -> list[float]:
        """The knots of `spacing`."""
        _check_steps(steps)
        if steps > self.steps:
            raise UserError(
                f"steps={steps} on a chain of {self.steps}: ask for {self.steps} or less; its "
                "length is chosen in training (schedule=cosine: 1000)"
            )
        return self.spacing(self.steps, steps)


class Linear(Discrete):
    """β increases linearly from beta_start to beta_end (DDPM, Ho et al. 2020, section 4).

    steps: T of the chain; beta_start: first noise variance; beta_end: last one; spacing: its knots.
    """

    def __init__(
        self,
        steps: Count = 1000,
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        spacing: Spaced | None = None,
    ) -> None:
        _check_steps(steps)
        super().__init__(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64), spacing)


class ScaledLinear(Discrete):
    """√β increases linearly (latent diffusion, Rombach et al. 2022): ᾱ_T = .0047, not quite noise.

    steps: T of the chain; beta_start: first noise variance; beta_end: last one; spacing: its knots.
    """

    def __init__(
        self,
        steps: Count = 1000,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        spacing: Spaced | None = None,
    ) -> None:
        _check_steps(steps)
        super().__init__(
            torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2, spacing
        )


class Cosine(Discrete):
    """ᾱ_t ∝ cos²((t/T + .008)/1.008 · π/2), β ≤ .999 (Nichol and Dhariwal 2021, eq. 17).

    steps: T of the chain; spacing: its knots.
    """

    def __init__(self, steps: Count = 1000, *, spacing: Spaced | None = None) -> None:
        _check_steps(steps)
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        abar = torch.cos((u + 0.008) / 1.008 * (math.pi / 2)) ** 2
        super().__init__((1 - abar[1:] / abar[:-1]).clamp(max=0.999), spacing)


class Article(Discrete):
    """β_t = t / T: ᾱ_t = ∏_{k≤t} (1 − k/T), the product of the birthday problem.

    At T = 4 a good grid for an adversarial chain: ᾱ = .75, .375, .09375, 0, its end exactly noise. At
    T = 1000 the signal is gone (SNR < 1e-4) after 132 steps.

    steps: T of the chain; on_vanish: what happens where more steps than the last one carry no signal,
    truncate (keep those that do, `steps` is then their number, and warn) or error. Raises UserError for
    error.
    """

    def __init__(self, steps: Count = 4, *, on_vanish: Literal["truncate", "error"] = "truncate") -> None:
        _check_steps(steps)
        betas = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        abar = torch.cumprod(1 - betas, 0)
        kept = int((abar / (1 - abar) >= VANISHED_SNR).sum())
        if kept < steps - 1:
            said = f"{steps - kept} of the article schedule's {steps} steps carry no signal (SNR < 1e-4)"
            if on_vanish == "error":
                raise UserError(f'{said}: choose T ≤ 11, another schedule, or on_vanish="truncate".')
            _log.warning("%s: the chain ends at step %d.", said, kept)
            betas = betas[:kept]
        super().__init__(betas)


class EDM(Schedule):
    """α = 1, σ = t (Karras et al. 2022), with the knots of eq. 5 for the exponent rho, then 0.

    sigma_min: smallest noise level; sigma_max: largest one; rho: bend of the grid of levels.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, *, rho: float = 7.0) -> None:
        super().__init__()
        if not (0 < sigma_min < sigma_max and rho > 0):
            raise UserError(
                f"EDM needs 0 < sigma_min < sigma_max and rho > 0, not {sigma_min}, {sigma_max}, {rho}."
            )
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.t_noise, self._low, self._high = sigma_max, sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, t, −ln t)."""
        sigma = t.double()
        return torch.ones_like(sigma), sigma, -sigma.log()

    def at(self, u: Tensor) -> Tensor:
        """σ = (σ_min^{1/ρ} + u (σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ (Karras et al. 2022, eq. 5)."""
        # exp and log round alike at any place of a vector, which torch.pow does not.
        knot: Tensor = self._low + u.double() * (self._high - self._low)
        return (knot.log() * self.rho).exp().float()

    def model_time(self, t: Tensor) -> Tensor:
        """1000 · ¼ ln σ (their c_noise, times 1000); data itself counts as σ_min / 10."""
        return t.float().clamp(min=self.sigma_min / 10).log() * 250.0

    @explained
    def grid(self, steps: int) -> list[float]:
        """σ_max = knot 0 > … > knot n − 1 = σ_min > knot n = 0; one step goes from σ_max to 0."""
        _check_steps(steps)
        share = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1)
        inner = ((self._low + share.double() * (self._high - self._low)) ** self.rho).tolist()
        return [self.sigma_max, *inner[1:], 0.0]


class Flow(Schedule):
    """α = 1 − t, σ = t: the straight path of rectified flow (Liu et al. 2022, eq. 1, with noise at t = 1).

    spacing: its knots, None: equal steps from 1 to 0. Paths begin with noise of deviation 1.
    """

    straight = True

    def __init__(self, *, spacing: Shifted | None = None) -> None:
        super().__init__()
        self.spacing, self.unit = spacing or Shifted(), True

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1 − t, t, ln(1 − t) − ln t)."""
        sigma = t.double()
        return 1 - sigma, sigma, torch.log1p(-sigma) - sigma.log()

    def at(self, u: Tensor) -> Tensor:
        """Time itself."""
        return u.float()

    def model_time(self, t: Tensor) -> Tensor:
        """1000 t, as SD3 and diffusers' flow-matching schedulers have it."""
        return (t.float() * 1000.0).floor() if self.spacing.whole else t.float() * 1000.0

    @explained
    def grid(self, steps: int) -> list[float]:
        """The knots of `spacing`."""
        _check_steps(steps)
        return self.spacing(steps)
