"""The samplers: one step each, in x̂₀ and with h = λ_s − λ_t (sources with each class).

    Tau           x_s ~ N( (σ_s/σ_t) e^{−τ²h} x_t + α_s (1 − e^{−(1+τ²)h}) x̂₀,  σ_s² (1 − e^{−2τ²h}) )
    Heun          trapezoid rule on dx = x̂₀ dα + ε̂ dσ
    DPMSolverPP2M x_s = (σ_s/σ_t) x_t + α_s (1 − e^{−h}) [x̂₀ + (h/2h') (x̂₀ − x̂₀')]

At both ends h = ∞ and all exponentials above are 0: the code avoids 0·∞.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.rng import Rng
from lmsd.sampling.sampler import Knot, Level, Sampler, State, Step
from lmsd.types import Denoise


@dataclass(frozen=True)
class Transition:
    """N(keep · x_t + push · x̂₀, std²) in plain floats."""

    keep: float
    push: float
    std: float

    def mean(self, x_t: Tensor, x0: Tensor) -> Tensor:
        """The mean keep · x_t + push · x̂₀."""
        return self.keep * x_t + self.push * x0

    def draw(self, denoise: Denoise, x_t: Tensor, t: Knot, rng: Rng) -> Step:
        """The step from x_t at t, in the dtype of x_t; any noise is rng.normal(..., "step")."""
        mean = self.mean(x_t, denoise(x_t, t.t)).to(x_t.dtype)
        if self.std == 0:
            return Step(mean, 0.0, mean)
        return Step(mean, self.std, mean + self.std * rng.normal(x_t.shape[1:], "step").to(x_t.dtype))


class Tau(Sampler):
    """The exact solution of the τ-scaled reverse SDE with x̂₀ frozen during the step; first order.

    τ = 0: DDIM (Song et al. 2021, eq. 12 with σ = 0), Euler's rule for a flow. τ = 1: the posterior
    q(x_s|x_t,x̂₀), which is ancestral sampling (DDPM, alg. 2), and on the knots of Jumps(steps) the chain that
    an adversarial generator is trained on, whose last jump gives x̂₀ itself (DDGAN, Xiao et al. 2022). Other
    values scale the noise.

    tau: noise of a step, 0 for none, 1 for the posterior's. Raises UserError for values out of range.
    """

    @explained
    def __init__(self, tau: float = 1.0) -> None:
        if not 0 <= tau < math.inf:
            raise UserError(f"tau must be a finite number ≥ 0, not {tau}: 0 is DDIM, 1 the posterior.")
        self.tau = tau

    def transition(self, start: Level, to: Level) -> Transition:
        """The coefficients of the transition from the level `start` to the cleaner `to`."""
        h = to.lam - start.lam
        extra = self.tau**2 * h if self.tau else 0.0
        keep = to.sigma / start.sigma * math.exp(-extra)
        push = to.alpha * -math.expm1(-h - extra)
        return Transition(keep, push, to.sigma * math.sqrt(-math.expm1(-2 * extra)))

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """x_s from N(mean, std²); the state is not used."""
        return self.transition(t.level, s.level).draw(denoise, x_t, t, rng)


class Heun(Sampler):
    """Heun's second-order rule on the probability flow dx = x̂₀ dα + ε̂ dσ; two denoiser calls a step.

    For EDM (dα = 0) this is algorithm 1 of Karras et al. 2022, for a flow (dα = −dσ) Heun's rule on the
    velocity. The probability flow does not depend on the path between two knots in the (α, σ) plane, so a
    straight line works for every process. The last step, to σ = 0, is Euler's.
    """

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """x_s, deterministic; neither rng nor state is used."""
        to, start = s.level, t.level
        x0 = denoise(x_t, t.t)
        eps = (x_t - start.alpha * x0) / start.sigma
        euler = to.alpha * x0 + to.sigma * eps
        if to.sigma == 0:
            return Step(euler, 0.0, euler)
        x0_s = denoise(euler, s.t)
        eps_s = (euler - to.alpha * x0_s) / to.sigma
        d_alpha, d_sigma = (to.alpha - start.alpha) / 2, (to.sigma - start.sigma) / 2
        x_s = euler + d_alpha * (x0_s - x0) + d_sigma * (eps_s - eps)
        return Step(x_s, 0.0, x_s)


class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M): second order from one denoiser call a step (Lu et al. 2022, alg. 2).

    The first and the last step, where h is infinite for most schedules, are of first order.
    """

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """x_s, deterministic; the state is the x̂₀ of the step before."""
        to, start = s.level, t.level
        x0 = denoise(x_t, t.t)
        h = to.lam - start.lam
        slope = 0.0
        if state is not None and h < math.inf:
            slope = h / (2 * (start.lam - state.level.lam))  # 0 after a start at α = 0
        best = x0 if state is None or slope == 0 else (1 + slope) * x0 - slope * state.x0
        x_s = to.sigma / start.sigma * x_t + to.alpha * -math.expm1(-h) * best
        return Step(x_s, 0.0, x_s, State(x0, start))


class Direct(Sampler):
    """The net's output is the next state itself, x_s = f(x_t, t), on the chain that it was trained on.

    For generators of prediction "x0" whose output is x_{t-1} rather than x̂₀: `objectives.article`.
    """

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """x_s, deterministic; neither rng nor state is used."""
        x_s = denoise(x_t, t.t)
        return Step(x_s, 0.0, x_s)
