"""The adversarial game on a trained generator, which becomes a few-step one: LADD, APT.

    x̂_0 = G(x_t, t, c),  x_t from `starts`                                 the student's step
    y ~ the data, or the law of a `teacher`, sampled                       what D takes for real
    real  α' y + σ' ε,    fake  α' x̂_0 + σ' ε',    at t' ~ judged         D(·, t', c), marginal pairing

Without `judged` D looks at the level s that the jump t → s ends at (Xu et al. 2024, UFOGen); with a law of
its own it looks from coarse to fine at any step of the student (Sauer et al. 2024, LADD). D's features are
those of the generator itself: `discriminator=trunk`, frozen in LADD, trained in APT (Lin et al. 2025), which
has one step and judges clean images. With starts=data, and without `judged` and `teacher`, it is
`Adversarial` of marginal pairs.

The text encoder rests: D and the teacher read the same code.
"""

from dataclasses import replace

import torch

from lmsd.errors import Count, UserError, one_of
from lmsd.objectives.adversarial import Adversarial, Draw
from lmsd.objectives.base import Cast, Part, generator_of
from lmsd.objectives.jumps import Jump, draw_jump
from lmsd.objectives.penalty import Penalty
from lmsd.objectives.rewarded import stream
from lmsd.objectives.starts import Starts, start, taught
from lmsd.objectives.terms import Adversary
from lmsd.process.times import Jumps, Times
from lmsd.rng import Rng
from lmsd.sampling import Sampler, Settings
from lmsd.types import Batch, Players

_TEACHER = 11  # a stream of random numbers beside the turns' own
_UNTRAINED = (
    "objective.teacher takes the samples of a teacher, and this one has learned nothing: give weights, "
    "init_from=RUN@ema, or init_from={generator: RUN@ema, teacher: RUN@ema} for another teacher"
)


class PostTraining(Adversarial):
    """Few-step training of a generator that has learned to denoise; see the module for the formulas.

    sampler, settings: of the student: its steps are those that are trained, its bound is on x̂_0 as D sees it;
    starts: data, x_t of noised images, or own, the student's own state after a number of steps that follows
    the clock; judged: law of the times at which D looks, None: where the jump ends; teacher: how a frozen
    teacher's samples are drawn that D takes for real, None: the data; loss: ℓ of `terms`; penalty: None for
    its defaults; d_steps: D's turns before one of G; caption_dropout: share of captions dropped.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        settings: Settings,
        starts: Starts = "data",
        judged: Times | None = None,
        teacher: Settings | None = None,
        loss: Adversary = "relativistic",
        penalty: Penalty | None = None,
        d_steps: Count = 1,
        caption_dropout: float = 0.1,
    ) -> None:
        one_of("post-training", "starts", starts, Starts)
        if settings.guided:
            raise UserError(
                f"post-training: settings.guidance={settings.guidance} is for sampling, and a student learns "
                "images that are guided already: take teacher.guidance"
            )
        super().__init__(
            Jumps(settings.steps),
            pairing="marginal",
            loss=loss,
            penalty=penalty,
            d_steps=d_steps,
            bound=settings.bound,
            caption_dropout=caption_dropout,
        )
        self.sampler, self.settings, self.starts = sampler, settings, starts
        self.judged, self.teacher = judged, teacher

    @property
    def cast(self) -> Cast:
        """Both players, and the frozen teacher whose samples are the reals."""
        teacher = Part(trained=False, like="generator", needs=_UNTRAINED)
        return {**super().cast, **({"teacher": teacher} if self.teacher else {})}

    def drawing(self, players: Players, batch: Batch, updates: int, rng: Rng) -> Draw:
        """As the game's, from `starts` and judged at `judged`; the teacher draws once for all turns."""
        generator = generator_of(players)
        reals = batch.x
        if self.teacher is not None:
            reals = taught(players, batch, self.teacher, stream(rng, _TEACHER))

        def draw(at: Rng) -> Jump:
            with torch.no_grad():
                jump = draw_jump(self.jumps, generator, batch, at, caption_dropout=self.caption_dropout)
                if self.starts == "own":
                    own = start(
                        "own", generator, batch, jump.cond, at, sampler=self.sampler, settings=self.settings,
                        count=updates,
                    )  # fmt: skip
                    jump = replace(jump, x_t=own.x_t, t=own.t, s=own.s)
                s = jump.s if self.judged is None else self.judged(at, generator.process)
                x_s = generator.process.noise(reals, s, at.normal(reals.shape[1:], "eps_s"))
                return replace(jump, s=s, x_s=x_s)

        return draw
