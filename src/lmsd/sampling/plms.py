"""PLMS, the sampler of PNDM that needs no Runge-Kutta warm-up.

    ε' = ½ (ε₁ + ε(x_s, s))                                    first step, x_s by ε₁ alone
       = ½ (3 ε₂ − ε₁),  (23 ε₃ − 16 ε₂ + 5 ε₁)/12             second and third
       = (55 ε₄ − 59 ε₃ + 37 ε₂ − 9 ε₁)/24                     from the fourth on
    x_s = α_s (x_t − σ_t ε')/α_t + σ_s ε'

(Liu et al. 2022, eqs. 9 and 12.) The weights are those of equal steps, whatever the knots.
"""

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.rng import Rng
from lmsd.sampling.sampler import Knot, Level, Sampler, State, Step
from lmsd.types import Denoise

WEIGHTS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Of the newest ε first, by how many there are (Adams and Bashforth)."""


class PLMS(Sampler):
    """Pseudo linear multistep (Liu et al. 2022): fourth order, one denoiser call a step, two in the first.

    The default of Stable Diffusion 1.5. Raises UserError if a path begins at α = 0, where ε̂ does not
    determine x̂₀.
    """

    def step(self, denoise: Denoise, x_t: Tensor, t: Knot, s: Knot, rng: Rng, state: State | None) -> Step:
        """x_s, deterministic; the state holds the ε̂ of the steps before."""
        if t.level.alpha == 0:
            raise UserError("sampler=plms works on eps, and alpha is 0 where the path begins: take ddim")
        x0 = denoise(x_t, t.t)
        known = state.eps if state is not None else ()
        eps = (_eps(x_t, x0, t.level), *known)[:4]
        best = torch.stack([w * slope for w, slope in zip(WEIGHTS[len(eps) - 1], eps, strict=True)]).sum(0)
        if not known and s.level.sigma > 0:
            x_s = _moved(x_t, best, t.level, s.level)
            best = (best + _eps(x_s, denoise(x_s, s.t), s.level)) / 2
        x_s = _moved(x_t, best, t.level, s.level)
        return Step(x_s, 0.0, x_s, State(x0, t.level, eps))


def _eps(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    return (x - level.alpha * x0) / level.sigma


def _moved(x: Tensor, eps: Tensor, start: Level, to: Level) -> Tensor:
    return to.alpha / start.alpha * x + (to.sigma - to.alpha * start.sigma / start.alpha) * eps
