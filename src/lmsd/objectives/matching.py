"""How far a student's law is from its teacher's: the difference of their scores, at noised images.

    g = (f(x_τ, τ) − T(x_τ, τ)) / mean|x̂ − T(x_τ, τ)|,    x_τ = α x̂ + σ ε,    T = T_∅ + w (T_c − T_∅)

f is the denoiser of the student's images, T the teacher's x̂₀. Since any denoiser is (x_τ + σ² s)/α, g is
(σ²/α)(s_G − s_T), to scale: the gradient of KL(p_G ‖ p_T) at τ (Yin et al. 2024, DMD, eq. 7 and 8).

Decoupled (Liu et al. 2025): what guidance adds, the surplus, has times of its own, noisier than the level s
to which the student's image is noised next.

    g = (f − T_c)(x_τ) / mean|x̂ − T_c(x_τ)| + (w − 1) (T_∅ − T_c)(x_τ') / mean|x̂ − T_c(x_τ')|,    τ' > s
"""

import torch
from torch import Tensor

from lmsd.errors import UserError, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.base import latent, standard_normal
from lmsd.objectives.denoising import Weighting
from lmsd.objectives.ratio import WEIGHTS, Divergence, LastMean
from lmsd.objectives.rewarded import conditions
from lmsd.objectives.starts import aside
from lmsd.process.gaussian import Process
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.sampling import guided
from lmsd.types import Batch

_SURPLUS = 9  # a stream of random numbers beside the turn's own
_SMALLEST = 1e-5


class Matching:
    """How the student's law is drawn to the teacher's.

    divergence: see `ratio`; guidance: w of the teacher; surplus: law of the times τ' of what guidance adds,
    None: τ, as in DMD; weighting: w(τ) of the fake's denoising, see `denoising`. Raises UserError for an
    unknown divergence and for a surplus without guidance.
    """

    def __init__(
        self,
        divergence: Divergence = "rkl",
        *,
        guidance: float = 1.0,
        surplus: Times | None = None,
        weighting: Weighting = "min_snr",
    ) -> None:
        one_of("distill", "divergence", divergence, Divergence)
        one_of("distill", "weighting", weighting, Weighting)
        if surplus is not None and guidance == 1:
            raise UserError(
                "distill: matching.surplus is for what guidance adds, and guidance=1 adds nothing: set "
                "matching.guidance, or leave surplus out"
            )
        self.divergence, self.guidance = divergence, guidance
        self.surplus, self.weighting = surplus, weighting
        self.mean = LastMean(float(WEIGHTS[divergence](torch.zeros(()))))

    @torch.no_grad()
    def gap(
        self, teacher: Generator, batch: Batch, x: Tensor, noised_to: tuple[Tensor, Tensor], score: Tensor,
        s: Tensor, rng: Rng,
    ) -> Tensor:  # fmt: skip
        """The direction g [B,...], which the student's images x should move against.

        noised_to: (x_τ, τ); score: the fake's x̂₀ there; s [B]: the level to which the sampler takes x next.
        Tags: "z_score" and, in a stream of its own, those of the surplus and "eps_surplus".
        """
        x_t, t = noised_to
        cond, null = conditions(teacher, batch, guided=self.guidance != 1)
        z = latent(teacher, rng, x, tag="z_score")
        own = self.guidance if self.surplus is None else 1.0
        real = guided(teacher, cond, null, scale=own, z=z)(x_t, t)
        gap = (score - real) / size_of(x - real)
        if self.surplus is not None and null is not None:
            later = noisier(self.surplus(aside(rng, _SURPLUS), teacher.process), s, teacher.process)
            x_l = noised(teacher.process, x, later, rng, "eps_surplus")
            told, free = teacher(x_l, later, cond, z), teacher(x_l, later, null, z)
            gap = gap + (self.guidance - 1) * (free - told) / size_of(x - told)
        return gap  # type: ignore[no-any-return]


def noisier(t: Tensor, s: Tensor, process: Process) -> Tensor:
    """Times t from the whole of (0, T], squeezed into (s, T]: s + (T − s) t/T; whole steps on a chain."""
    last = process.schedule.t_noise
    found = s + (last - s) * (t / last)
    return found if process.schedule.steps is None else found.ceil()


def noised(process: Process, x: Tensor, t: Tensor, rng: Rng, tag: str) -> Tensor:
    """x_t = α x + σ ε, with the noise of this tag."""
    return process.noise(x, t, standard_normal(rng, x, tag))


def size_of(error: Tensor) -> Tensor:
    """The mean absolute value of each sample's error, [B,1,...], at least 10⁻⁵."""
    size = error.abs().flatten(1).mean(1).clamp(min=_SMALLEST)
    return size.view(-1, *[1] * (error.ndim - 1))
