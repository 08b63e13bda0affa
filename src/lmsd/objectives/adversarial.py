"""The adversarial objective: G and D trained against each other on the jumps t → s of the chain.

    real    x_s ~ q(x_s | x_0),  x_t ~ q(x_t | x_s)                 a Markov pair
    fake    x̂_0 = G(x_t, t, c, z)
            x̃_s ~ q(x_s | x_t, x̂_0)       transition: D(x_s, x_t, s, t, c)       Xiao et al. 2022 (DDGAN)
            x̃_s ~ q(x_s | x̂_0)            marginal:   D(x_s, s, t, c)            Xu et al. 2024 (UFOGen)
            x̃_s = ODE step from x_t       ode:        D(x_s, s, t, c)            Lin et al. 2025 (AFM)
    L_D = E ℓ_D(D(x_s), D(x̃_s)) + (γ/2)(R1 + R2)                   `penalty`
    L_G = E ℓ_G(D(x_s), D(x̃_s)) + λ · anchor(x̂_0, x_0)             `anchor`

Real and fake share (x_t, t, c), so the free gauge of a relativistic D cancels. At s = 0, x̃_0 = x̂_0. The
adversary's gradient reaches x̂_0 through the posterior's factor α_s (1 − SNR_t/SNR_s), which vanishes with
the size of the jump: hence a few large jumps, not a thousand. Weights that change follow a cosine over the
objective's part of the run; for a warm start and the like see `phases`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import Count, UserError, one_of
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.objectives.anchor import Anchor
from lmsd.objectives.base import (
    Cast,
    Facts,
    JumpLaw,
    Objective,
    Part,
    discriminator_of,
    generator_of,
    latent,
    means,
    useless_discriminator,
)
from lmsd.objectives.jumps import Jump, Pairing, critic, draw_jump, landing
from lmsd.objectives.mismatch import Mismatch
from lmsd.objectives.penalty import Critic, Penalty
from lmsd.objectives.terms import Adversary, discriminator_loss, diversity, generator_loss, sign_right
from lmsd.rng import Rng
from lmsd.sampling.settings import Bound, check_bound
from lmsd.types import Batch, Clock, Cond, Loss, Players, Turn

Draw: TypeAlias = Callable[[Rng], Jump]
"""What one turn plays on: a jump of every sample of the batch, by the turn's random numbers."""


class Adversarial(Objective):
    """Adversarial training on the jumps of the chain; see the module for the formulas.

    jumps: law (rng, process) → (s, t); pairing: how x̃_s is made of x̂_0, and in transition D sees x_t too;
    loss: ℓ of `terms`; penalty, anchor, mismatch: None for the defaults; d_steps: D's turns before one of G;
    bound: on |x̂_0| as D sees it, with a straight-through gradient: else the players fight over values that
    sampling clamps; "codec": the range of the data; caption_dropout: share of captions dropped;
    diversity_every: updates between two measurements of the diversity over z, for anchors that draw no second
    z themselves; 0: never.

    Logs of D: adversary, logit_gap E[r − f], d_accuracy, r1, r2, mismatch_gap; of G: adversary, anchor,
    diversity E‖x̂(z) − x̂(z')‖/‖x̂(z)‖. Raises UserError for values out of range.
    """

    def __init__(
        self,
        jumps: JumpLaw,
        *,
        pairing: Pairing = "transition",
        loss: Adversary = "relativistic",
        penalty: Penalty | None = None,
        anchor: Anchor | None = None,
        mismatch: Mismatch | None = None,
        d_steps: Count = 1,
        bound: Bound = None,
        caption_dropout: float = 0.1,
        diversity_every: int = 50,
    ) -> None:
        one_of("adversarial", "pairing", pairing, Pairing)
        one_of("adversarial", "loss", loss, Adversary)
        check_bound(bound)
        if not 0 <= caption_dropout <= 1 or d_steps < 1 or diversity_every < 0:
            raise UserError(
                f"adversarial: caption_dropout={caption_dropout} must be a share from 0 to 1, "
                f"d_steps={d_steps} at least 1 and diversity_every={diversity_every} not negative"
            )
        self.jumps, self.pairing, self.kind, self.bound = jumps, pairing, loss, bound
        self.penalty, self.anchor, self.mismatch = (
            penalty or Penalty(), anchor or Anchor(), mismatch or Mismatch()
        )  # fmt: skip
        self.d_steps, self.caption_dropout, self.diversity_every = d_steps, caption_dropout, diversity_every

    @property
    def cast(self) -> Cast:
        """Both players; D is built for the pairing."""
        marginal = self.pairing != "transition"
        return {
            "discriminator": Part(given={"marginal": marginal}, stacked=1 if marginal else 2),
            "generator": Part(),
        }

    def prepare(self, facts: Facts) -> None:
        """Draw mismatched captions from those of the data, for a generator that reads them."""
        if not self.mismatch.captions:
            self.mismatch.learn(facts.captions)
        reads = generator_of(facts.players).conditioner.reads
        self.penalty.augment.prepare(
            facts.held_out,
            sees_x_t=self.pairing == "transition",
            pixels=not generator_of(facts.players).codec.told,
        )
        if self.mismatch.weight and (reads != "text" or len(self.mismatch.captions) < 2):
            raise UserError(
                f"mismatch.weight={self.mismatch.weight:g} shows the discriminator images with captions of "
                f"others, and this run's conditioner reads {reads if reads != 'text' else 'one alone'}: take "
                "weight=0 there"
            )

    # -- the script -----------------------------------------------------------------------------------------

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """d_steps turns of D, then one of G."""
        generator, discriminator = generator_of(players), discriminator_of(players)
        self.penalty.check(discriminator, batch.x.device)
        self.anchor.check(generator)
        self.mismatch.check(batch)
        draw = self.drawing(players, batch, clock.updates, rng)
        self.penalty.augment.watch(partial(self._verdicts, players, augmented=True), rng)
        for turn in range(self.d_steps):
            weight = self.penalty.weight(clock.progress, clock.played.get("discriminator", 0))
            yield Turn(
                "discriminator",
                partial(self._d_loss, generator, discriminator, batch, draw, rng.at(turn), weight),
            )
        game = partial(self._g_loss, generator, discriminator, batch.x, draw)
        yield Turn(
            "generator",
            partial(
                game,
                rng.at(self.d_steps),
                self.anchor.weight(clock.progress),
                self.diversity_every > 0 and clock.updates % self.diversity_every == 0,
            ),
        )
        self.anchor.settle()
        self.penalty.augment.settle()

    def drawing(self, players: Players, batch: Batch, updates: int, rng: Rng) -> Draw:
        """What the turns of this batch play on; updates: of G so far."""
        drop = self.caption_dropout
        return partial(draw_jump, self.jumps, generator_of(players), batch, caption_dropout=drop)

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Share of D's verdicts on `batch` that are right; held-out data show how far D overfits."""
        return {"discriminator/accuracy": sign_right(self.kind, *self._verdicts(players, batch, rng)).mean()}

    def _verdicts(
        self, players: Players, batch: Batch, rng: Rng, *, augmented: bool = False
    ) -> tuple[Tensor, ...]:
        generator, discriminator = generator_of(players), discriminator_of(players)
        jump = self.drawing(players, batch, 0, rng)(rng)
        judge = (
            self._critic(generator, discriminator, jump) if augmented
            else critic(discriminator, jump, jump.cond, pairing=self.pairing)
        )  # fmt: skip
        return judge(torch.cat([jump.x_s, self._fake(generator, jump)])).chunk(2)

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether the discriminator teaches nothing."""
        return useless_discriminator(metrics)

    def state_dict(self) -> Mapping[str, Any]:
        """The anchor's and the augmentation's: nothing unless they adapt."""
        return {**self.anchor.state_dict(), **self.penalty.augment.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.anchor.load_state_dict(state)
        self.penalty.augment.load_state_dict(state)

    # -- the losses -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _fake(self, generator: Generator, jump: Jump) -> Tensor:
        return landing(
            self.pairing, generator,
            generator(jump.x_t, jump.t, jump.cond, latent(generator, jump.rng, jump.x_t)),
            jump, bound=self.bound,
        )  # fmt: skip

    def _critic(
        self, generator: Generator, discriminator: Discriminator, jump: Jump, cond: Cond | None = None, *,
        surely: bool = False,
    ) -> Critic:  # fmt: skip
        view = self.penalty.augment.view(
            jump.x_s, jump.s, jump.t, jump.rng, process=generator.process, surely=surely
        )
        return critic(discriminator, jump, cond or jump.cond, pairing=self.pairing, view=view)

    def _d_loss(
        self, generator: Generator, discriminator: Discriminator, batch: Batch, draw: Draw, rng: Rng,
        gamma: float,
    ) -> Loss:  # fmt: skip
        """gamma: weight of the penalties, 0: none on this update.

        Samples are drawn when the turn is played: after a restart, from the weights that G continues with.
        """
        with torch.no_grad():
            jump = draw(rng)
            fake = self._fake(generator, jump)
            wrong = self.mismatch.cond(generator, batch, jump) if self.mismatch.weight else None
        judge = partial(self._critic, generator, discriminator, jump)
        real, false, penalties = self.penalty.judge(judge(), jump.x_s, fake, rng, due=gamma > 0)
        loss = discriminator_loss(self.kind, real, false)
        logs = {
            "adversary": loss, "logit_gap": real - false, "d_accuracy": sign_right(self.kind, real, false)
        }  # fmt: skip
        for penalty in penalties.values():
            loss = loss + gamma * penalty
        for name, (weight, term) in self.penalty.beside(
            real, false, lambda: judge(surely=True)(torch.cat([jump.x_s, fake])).chunk(2)
        ).items():
            logs[name] = term
            loss = loss + weight * term
        if wrong is not None:
            against = judge(wrong)(jump.x_s)
            loss = loss + self.mismatch.share(jump, loss) * discriminator_loss(self.kind, real, against)
            logs["mismatch_gap"] = real - against
        return Loss(loss.mean(), means({**logs, **penalties, **self.penalty.augment.logs(loss)}))

    def _g_loss(
        self, generator: Generator, discriminator: Discriminator, x_0: Tensor, draw: Draw, rng: Rng,
        weight: float, measure: bool,
    ) -> Loss:  # fmt: skip
        """weight: λ; measure: the diversity over z, even if the anchor draws no second sample."""
        jump = draw(rng)
        first, second = self.anchor.predict(generator, jump)
        judge = self._critic(generator, discriminator, jump)
        fake = landing(self.pairing, generator, first, jump, bound=self.bound)
        false = judge(fake)
        with torch.no_grad():  # reals are constants to G
            real = judge(jump.x_s) if self.kind == "relativistic" else false
        adversary = generator_loss(self.kind, real, false)
        loss, logs = self.anchor.balanced(adversary, fake), {"adversary": adversary}
        if self.anchor.kind != "none":
            logs["anchor"] = self.anchor.term(generator, jump, x_0, first, second)
            loss = loss + weight * logs["anchor"]
        if second is None and measure and generator.z_dim:
            with torch.no_grad():
                second = generator(jump.x_t, jump.t, jump.cond, latent(generator, rng, first, tag="z_other"))
        if second is not None:
            logs["diversity"] = diversity(first, second)
        return Loss(loss.mean(), means(logs))
