"""Distribution matching: a few-step student whose images have the law of a teacher's.

    x̂ = G(x_t, t, c),  x_t from `starts`;      x_τ = α x̂ + σ ε,  τ by `times`

    fake        w(τ) ‖f(x_τ, τ, c) − x̂‖²/D + λ_f ℓ_D     the denoiser of G's own images; D: heads on its taps
    generator   ½ ‖x̂ − sg(x̂ − h g)‖²/D + λ_G ℓ_G,   g = (f(x_τ, τ) − T(x_τ, τ)) / mean|x̂ − T(x_τ, τ)|

T is the teacher's x̂₀ (`matching`), h = 1 or the weight of another divergence than KL(p_G ‖ p_T) (`ratio`).
Yin et al. 2024 (DMD, DMD2); Xu et al. 2025 (f-distill); Liu et al. 2025 (decoupled DMD). Two time scales, by
the clock: the fake learns from every batch, the student from every `every`-th.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lmsd.errors import Count, UserError, one_of
from lmsd.models.fake_score import FakeScore
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Cast,
    Facts,
    Objective,
    Part,
    generator_of,
    latent,
    mean_square,
    means,
    repeat,
    standard_normal,
    useless_discriminator,
)
from lmsd.objectives.denoising import native_weight
from lmsd.objectives.matching import Matching, noised
from lmsd.objectives.penalty import Critic, Penalty
from lmsd.objectives.ratio import Tilt, weight_of
from lmsd.objectives.rewarded import conditions, diversity, still
from lmsd.objectives.starts import Starts, aside, start, taught
from lmsd.objectives.terms import Adversary, discriminator_loss, generator_loss, sign_right
from lmsd.process.gaussian import Process
from lmsd.process.times import Times
from lmsd.rewards.discriminator import fit_temperature
from lmsd.rng import Rng
from lmsd.sampling import Sampler, Settings, sample
from lmsd.types import Batch, Clock, Loss, Players, Turn

_JUDGED, _HELD_OUT, _TEACHER = 6, 7, 8  # streams of random numbers beside the turn's own
_NEEDS = "a student is distilled from a teacher: init_from={generator: RUN@ema, teacher: RUN@ema}"


class Heads:
    """The game between the student and the heads on the fake score.

    student, fake: λ_G and λ_f, both 0: no heads play; loss: ℓ of `terms`; penalty: on the heads, None:
    none; calibrate: student updates between two fits of the temperature on held-out pairs. Raises UserError
    for negative weights.
    """

    def __init__(
        self,
        student: float = 3e-3,
        *,
        fake: float = 1e-2,
        loss: Adversary = "nonsaturating",
        penalty: Penalty | None = None,
        calibrate: Count = 100,
    ) -> None:
        one_of("distill", "loss", loss, Adversary)
        if min(student, fake) < 0 or (student > 0 and fake == 0):
            raise UserError(
                f"distill: heads.student={student} and heads.fake={fake} must be 0 or more, and heads that "
                "the student plays against must learn"
            )
        self.student, self.fake, self.kind = student, fake, loss
        self.penalty, self.calibrate = penalty or Penalty("none"), calibrate
        self.penalty.alone("distill")

    def game(
        self, critic: Critic, real: Tensor, false: Tensor, rng: Rng, penalty: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """λ_f times what the heads minimize [B], and its parts; penalty: γ/2, 0: none on this update."""
        of_real, of_false, penalties = self.penalty.judge(critic, real, false, rng, due=penalty > 0)
        loss = discriminator_loss(self.kind, of_real, of_false)
        right = sign_right(self.kind, of_real, of_false)
        logs = {"adversary": loss, "logit_gap": of_real - of_false, "d_accuracy": right, **penalties}
        for value in penalties.values():
            loss = loss + penalty * value
        return self.fake * loss, logs


class Distill(Objective):
    """Distribution matching distillation; see the module for the formulas.

    times: law of τ; sampler, settings: how the student will be sampled; starts: where its x_t comes from;
    matching, heads: None for their defaults; judged: law of the times at which the heads judge, None: τ, in
    the same forward pass; teacher: how the teacher's samples are drawn that they take for real, None: the
    data; tilt: D as a reward, None: none; every: turns of the fake for one of the student. Raises UserError
    for parts that contradict each other.

    Logs of the fake: denoising, adversary, logit_gap, d_accuracy, the penalties; of the generator: gap
    ‖g‖²/D, weight h, adversary, diversity.
    """

    def __init__(
        self,
        times: Times,
        *,
        sampler: Sampler,
        settings: Settings,
        starts: Starts = "own",
        matching: Matching | None = None,
        heads: Heads | None = None,
        judged: Times | None = None,
        teacher: Settings | None = None,
        tilt: Tilt | None = None,
        every: Count = 5,
    ) -> None:
        one_of("distill", "starts", starts, Starts)
        self.times, self.sampler, self.settings, self.starts = times, sampler, settings, starts
        self.matching, self.heads = matching or Matching(), heads or Heads()
        self.judged, self.teacher, self.tilt, self.every = judged, teacher, tilt, every
        self.temperature, self._fitted = 1.0, -1
        self._held_out: Batch | None = None
        self._check()

    def _check(self) -> None:
        weighted = self.matching.divergence != "rkl"
        if (weighted or self.tilt) and not self.heads.fake:
            raise UserError(
                "distill: a divergence other than rkl, and a tilt, read the heads, and heads.fake=0 never "
                "trains them"
            )
        if weighted and (self.judged is not None or self.heads.kind != "nonsaturating"):
            raise UserError(
                f"distill: divergence={self.matching.divergence} needs log p_data/p_G where the scores are "
                "compared: heads.loss=nonsaturating and judged=null"
            )
        if not (weighted or self.tilt) and self.heads.calibrate != Heads().calibrate:
            raise UserError(
                "distill: heads.calibrate is of logits that weigh, which takes a divergence other than rkl "
                "or a tilt: leave it out"
            )
        if self.settings.guided:
            raise UserError(
                f"distill: settings.guidance={self.settings.guidance:g} is for sampling, and a student "
                "learns without it: the teacher's is matching.guidance"
            )
        if self.every < 1:
            raise UserError(f"distill: every={self.every} must be at least 1")

    @property
    def cast(self) -> Cast:
        """The fake score, built from its own node beside the student; the student; the frozen teacher."""
        return {
            "fake": Part(),
            "generator": Part(),
            "teacher": Part(trained=False, like="generator", needs=_NEEDS),
        }

    def prepare(self, facts: Facts) -> None:
        """Logits that become weights are calibrated on held-out images."""
        if self._weighs:
            self._held_out = facts.held_out()

    @property
    def _weighs(self) -> bool:
        return self.tilt is not None or self.matching.divergence != "rkl"

    # -- the script ------------------------------------------------------------------------------------------

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of the fake; one of the student after every `every`-th of them."""
        played, updates = clock.played.get("fake", 0), clock.updates
        if self._weighs and updates != self._fitted and updates % self.heads.calibrate == 0:
            self._fitted = updates
            self._calibrate(players, batch, rng)
        penalty = self.heads.penalty.weight(clock.progress, played)
        yield Turn("fake", partial(self._fake_loss, players, batch, rng.at(0), played, penalty))
        if self.tilt is not None:
            self.tilt.mean.settle()
        if (played + 1) % self.every == 0:
            yield Turn("generator", partial(self._student_loss, players, batch, rng.at(1), updates))
            self.matching.mean.settle()

    @torch.no_grad()
    def _calibrate(self, players: Players, batch: Batch, rng: Rng) -> None:
        """Fit the temperature of the logits: held-out images against the student's of the same captions."""
        if self._held_out is None:
            return
        student, fake = generator_of(players), fake_of(players)
        real = student.encode(self._held_out.to(batch.x.device))
        here = aside(Rng(rng.seed, real.position), _HELD_OUT)
        with still(student, fake):
            false = self._sampled(student, real, here, self.settings.steps)
            t = (self.judged or self.times)(here, student.process)
            pair = torch.cat([noised(student.process, x, t, here, "eps") for x in (real.x, false)])
            first, second = _Seen(fake, real, here)(pair, t).mean(1).chunk(2)
        self.temperature = fit_temperature(first - second)

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Share of the heads' verdicts on `batch` that are right; held-out data show how far they overfit."""
        if not self.heads.fake:
            return {}
        fake, process = fake_of(players), generator_of(players).process
        with still(fake):
            x, _ = self._drawn(players, batch, rng, self.settings.steps - 1)
            t = (self.judged or self.times)(rng, process)
            pair = [noised(process, x, t, rng, "eps") for x in (batch.x, x)]
            real, false = _Seen(fake, batch, rng)(torch.cat(pair), t).chunk(2)
        return {"fake/accuracy": sign_right(self.heads.kind, real, false).mean()}

    # -- what both players' losses are made of ---------------------------------------------------------------

    def _drawn(self, players: Players, batch: Batch, rng: Rng, count: int) -> tuple[Tensor, Tensor]:
        """(x̂, s): what the student makes of its x_t, differentiable, and the level where it is used next."""
        student = generator_of(players)
        cond = student.condition(batch)
        begun = start(
            self.starts, student, batch, cond.detach(), rng,
            sampler=self.sampler, settings=self.settings, count=count,
        )  # fmt: skip
        with still(student):
            return student(begun.x_t, begun.t, cond, latent(student, rng, batch.x)), begun.s

    def _sampled(self, generator: Generator, batch: Batch, rng: Rng, steps: int) -> Tensor:
        """A generator's images of what a batch asks for, without guidance; not decoded."""
        cond, _ = conditions(generator, batch, guided=False)
        settings = Settings(steps, bound=self.settings.bound)
        return sample(
            generator, cond, sampler=self.sampler, settings=settings, rng=rng, shape=batch.x.shape[1:],
            dtype=batch.x.dtype,
        )  # fmt: skip

    def _level(self, rng: Rng, process: Process) -> Tensor | None:
        """The times at which the heads judge; None: τ."""
        return None if self.judged is None else self.judged(aside(rng, _JUDGED), process)

    def _real(self, players: Players, batch: Batch, rng: Rng) -> Tensor:
        if self.teacher is None:
            return batch.x
        return taught(players, batch, self.teacher, aside(rng, _TEACHER))

    # -- the fake --------------------------------------------------------------------------------------------

    def _fake_loss(self, players: Players, batch: Batch, rng: Rng, played: int, penalty: float) -> Loss:
        """penalty: weight of the heads' penalties, 0: none on this update."""
        fake, process = fake_of(players), generator_of(players).process
        with torch.no_grad():
            x, _ = self._drawn(players, batch, rng, played)
            weight = None if self.tilt is None else self.tilt(self._reward(fake, batch, x, rng))
        t, eps = self.times(rng, process), standard_normal(rng, x, "eps")
        seen = _Seen(fake, batch, rng)
        game, logs = torch.zeros_like(t), dict[str, Tensor]()
        if self.heads.fake:
            at = self._level(rng, process)
            real = self._real(players, batch, rng)
            where = t if at is None else at
            real = noised(process, real, where, rng, "eps_real")
            false = noised(process, x, where, rng, "eps" if at is None else "eps_judged")
            game, logs = self.heads.game(partial(seen, t=where), real, false, rng, penalty)
        if self.heads.fake and self.judged is None:
            native = seen.native.narrow(0, len(x), len(x))  # reals, then fakes, then what penalties ask
        else:
            seen(process.noise(x, t, eps), t)
            native = seen.native
        error = mean_square(native - fake.score.target(x, eps, t))
        logs["denoising"] = error = native_weight(self.matching.weighting, fake.score, t) * error
        return Loss(((error if weight is None else weight * error) + game).mean(), means(logs))

    def _reward(self, fake: FakeScore, batch: Batch, x: Tensor, rng: Rng) -> Tensor:
        """D of the student's images x̂ [B], in nats."""
        assert self.tilt is not None
        t = torch.full((len(x),), self.tilt.level, device=x.device)
        with still(fake):
            logits = _Seen(fake, batch, rng)(noised(fake.score.process, x, t, rng, "eps_tilt"), t)
        return self.temperature * logits.mean(1)

    # -- the student -----------------------------------------------------------------------------------------

    def _student_loss(self, players: Players, batch: Batch, rng: Rng, updates: int) -> Loss:
        fake, process, heads = fake_of(players), generator_of(players).process, self.heads
        x, s = self._drawn(players, batch, rng, updates)
        t, at = self.times(rng, process), self._level(rng, process)
        x_t, seen = noised(process, x, t, rng, "eps"), _Seen(fake, batch, rng)
        with still(fake):
            logits = seen(x_t if heads.student and at is None else x_t.detach(), t)
            score = fake.score.to_x0(seen.native.detach(), x_t.detach(), t)
            if heads.student and at is not None:
                played = seen(noised(process, x, at, rng, "eps_judged"), at)
            else:
                played = logits
            teacher = generator_of(players, "teacher")
            gap = self.matching.gap(teacher, batch, x.detach(), (x_t.detach(), t), score, s, rng)
            logs = {"gap": mean_square(gap)}
            if self.matching.divergence != "rkl":
                ratio = self.temperature * logits.detach().mean(1)
                logs["weight"] = weight = self.matching.mean(weight_of(self.matching.divergence, ratio))
                gap = weight.to(gap.dtype).view(-1, *[1] * (gap.ndim - 1)) * gap
            value = 0.5 * mean_square(x - (x - gap).detach())
            if heads.student:
                where = t if at is None else at
                logs["adversary"] = self._against(players, batch, seen, played, where, rng)
                value = value + heads.student * logs["adversary"]
        return Loss(value.mean(), {**means(logs), **diversity(x, 1)})

    def _against(
        self, players: Players, batch: Batch, seen: "_Seen", false: Tensor, t: Tensor, rng: Rng
    ) -> Tensor:
        """What the student minimizes against the heads, [B]."""
        real = false.detach()
        if self.heads.kind == "relativistic":
            with torch.no_grad():
                images = self._real(players, batch, rng)
                real = seen(noised(generator_of(players).process, images, t, rng, "eps_real"), t)
        return generator_loss(self.heads.kind, real, false)

    # -- states ----------------------------------------------------------------------------------------------

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether the student makes the same of every noise; heads that win are no collapse, g goes on."""
        return useless_discriminator(metrics)

    def state_dict(self) -> Mapping[str, Any]:
        """The temperature, and what weights are divided by."""
        tilt = {} if self.tilt is None else {"tilt": dict(self.tilt.mean.state_dict())}
        mean = dict(self.matching.mean.state_dict())
        return {"temperature": self.temperature, "fitted": self._fitted, "matching": mean, **tilt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.temperature, self._fitted = float(state["temperature"]), int(state["fitted"])
        self.matching.mean.load_state_dict(state["matching"])
        if self.tilt is not None and "tilt" in state:
            self.tilt.mean.load_state_dict(state["tilt"])


class _Seen:
    """The fake score at one batch: logits of k candidates of every sample, and what the net predicted."""

    def __init__(self, fake: FakeScore, batch: Batch, rng: Rng) -> None:
        self.fake, self.cond = fake, fake.condition(batch)
        self.z = latent(fake.score, rng, batch.x, tag="z_score")
        self.native = batch.x

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits [k·B,heads] of x [k·B,...] at the times t [B]."""
        k = len(x) // len(t)
        z = None if self.z is None else repeat(self.z, k)
        cond = self.cond.map(lambda value: repeat(value, k))
        self.native, logits = self.fake.forward(x, repeat(t, k), cond, z, output="native")
        return logits


def fake_of(players: Players) -> FakeScore:
    """The player "fake", typed."""
    return cast(FakeScore, players["fake"])
