"""The adversarial objective: G and D trained against each other on the jumps t → s of the chain.

    real    x_s ~ q(x_s | x_0),  x_t ~ q(x_t | x_s)                 a Markov pair
    fake    x̂_0 = G(x_t, t, c, z)
            x̃_s ~ q(x_s | x_t, x̂_0)       transition: D(x_s, x_t, s, t, c)       Xiao et al. 2022 (DDGAN)
            x̃_s ~ q(x_s | x̂_0)            marginal:   D(x_s, s, t, c)            Xu et al. 2024 (UFOGen)
    L_D = E ℓ_D(D(x_s), D(x̃_s)) + (γ/2)(R1 + R2)                   `penalty`
    L_G = E ℓ_G(D(x_s), D(x̃_s)) + λ · anchor(x̂_0, x_0)             `anchor`

Real and fake share (x_t, t, c), so the free gauge of a relativistic D cancels. At s = 0, x̃_0 = x̂_0. The
adversary's gradient reaches x̂_0 through the posterior's factor α_s (1 − SNR_t/SNR_s), which vanishes with
the size of the jump: hence a few large jumps, not a thousand. Weights that change follow a cosine over the
objective's part of the run; for a warm start and the like see `phases`.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import Count, UserError, one_of
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.objectives.anchor import Anchor
from lmsd.objectives.base import (
    Cast,
    Clock,
    Facts,
    JumpLaw,
    Objective,
    Part,
    discriminator_of,
    generator_of,
    latent,
    means,
    repeat,
    standard_normal,
    useless_discriminator,
)
from lmsd.objectives.jumps import Jump, draw_jump
from lmsd.objectives.mismatch import Mismatch
from lmsd.objectives.penalty import Critic, Penalty
from lmsd.objectives.terms import Adversary, discriminator_loss, distance, generator_loss, sign_right
from lmsd.rng import Rng
from lmsd.sampling.settings import Bound, bound_of, check_bound
from lmsd.types import Batch, Cond, Loss, Players, Turn

Pairing: TypeAlias = Literal["transition", "marginal"]


class Adversarial(Objective):
    """Adversarial training on the jumps of the chain; see the module for the formulas.

    jumps: law (rng, process) → (s, t); pairing: whether D sees x̃_s given x_t, or alone; loss: ℓ of `terms`;
    penalty, anchor, mismatch: None for the defaults of each class; d_steps: D's turns before each turn of G;
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
        self.penalty, self.anchor = penalty or Penalty(), anchor or Anchor()
        self.mismatch = mismatch or Mismatch()
        self.d_steps, self.caption_dropout, self.diversity_every = d_steps, caption_dropout, diversity_every
        self._draw = partial(draw_jump, jumps, caption_dropout=caption_dropout)

    @property
    def cast(self) -> Cast:
        """Both players; D is built for the pairing."""
        marginal = self.pairing == "marginal"
        judge = Part(given={"marginal": marginal}, stacked=1 if marginal else 2)
        return {"discriminator": judge, "generator": Part()}

    def prepare(self, facts: Facts) -> None:
        """Draw mismatched captions from those of the data, for a generator that reads them."""
        self.mismatch.learn(facts.captions)
        reads = generator_of(facts.players).conditioner.reads
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
        for turn in range(self.d_steps):
            weight = self.penalty.weight(clock.progress, clock.played.get("discriminator", 0))
            at = rng.at(turn)
            yield Turn("discriminator", partial(self._d_loss, generator, discriminator, batch, at, weight))
        measure = self.diversity_every > 0 and clock.updates % self.diversity_every == 0
        at, weight = rng.at(self.d_steps), self.anchor.weight(clock.progress)
        yield Turn("generator", partial(self._g_loss, generator, discriminator, batch, at, weight, measure))

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Share of D's verdicts on `batch` that are right; held-out data show how far D overfits."""
        generator, discriminator = generator_of(players), discriminator_of(players)
        jump = self._draw(generator, batch, rng)
        pair = torch.cat([jump.x_s, self._fake(generator, jump)])
        real, false = self._critic(discriminator, jump)(pair).chunk(2)
        return {"discriminator/accuracy": sign_right(self.kind, real, false).mean()}

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether the discriminator teaches nothing."""
        return useless_discriminator(metrics)

    # -- what both players' losses are made of ------------------------------------------------------------

    @torch.no_grad()
    def _fake(self, generator: Generator, jump: Jump) -> Tensor:
        z = latent(generator, jump.rng, jump.x_t)
        return self._renoise(generator, generator(jump.x_t, jump.t, jump.cond, z), jump)

    def _renoise(self, generator: Generator, x_0: Tensor, jump: Jump) -> Tensor:
        """x̂_0 → x̃_s, differentiable in x̂_0."""
        bound = bound_of(self.bound, generator)
        if bound is not None:  # clamp the value, not the gradient
            x_0 = x_0 + (x_0.clamp(-bound, bound) - x_0).detach()
        eps = standard_normal(jump.rng, x_0, "eps_fake")
        if self.pairing == "marginal":
            return generator.process.noise(x_0, jump.s, eps)
        return generator.process.posterior(x_0, jump.x_t, jump.s, jump.t).sample(eps)

    def _critic(self, discriminator: Discriminator, jump: Jump, cond: Cond | None = None) -> Critic:
        """D at this jump: k candidates x_s of every sample at once; only G trains the condition."""

        def logits(x: Tensor) -> Tensor:
            k = len(x) // len(jump.s)
            x_t = repeat(jump.x_t, k) if self.pairing == "transition" else None
            rows = (cond or jump.cond).map(lambda value: repeat(value.detach(), k))
            judged: Tensor = discriminator(x, x_t, repeat(jump.s, k), repeat(jump.t, k), rows)
            return judged

        return logits

    # -- the losses -----------------------------------------------------------------------------------------

    def _d_loss(
        self, generator: Generator, discriminator: Discriminator, batch: Batch, rng: Rng, weight: float
    ) -> Loss:
        """weight: of the penalties, 0: none on this update.

        Samples are drawn when the turn is played: after a restart, from the weights that G continues with.
        """
        with torch.no_grad():
            jump = self._draw(generator, batch, rng)
            fake = self._fake(generator, jump)
            wrong = self.mismatch.cond(generator, batch, jump) if self.mismatch.weight else None
        critic = self._critic(discriminator, jump)
        real, false, penalties = self.penalty.judge(critic, jump.x_s, fake, rng, due=weight > 0)
        loss = discriminator_loss(self.kind, real, false)
        right = sign_right(self.kind, real, false)
        logs = {"adversary": loss, "logit_gap": real - false, "d_accuracy": right}
        for penalty in penalties.values():
            loss = loss + weight * penalty
        if wrong is not None:
            against = self._critic(discriminator, jump, wrong)(jump.x_s)
            told = (~jump.drop).to(loss.dtype)  # a sample without a caption has no mismatch
            loss = loss + self.mismatch.weight * told * discriminator_loss(self.kind, real, against)
            logs["mismatch_gap"] = real - against
        return Loss(loss.mean(), means({**logs, **penalties}))

    def _g_loss(
        self,
        generator: Generator,
        discriminator: Discriminator,
        batch: Batch,
        rng: Rng,
        weight: float,
        measure: bool,
    ) -> Loss:
        """weight: λ; measure: the diversity over z, even if the anchor draws no second sample."""
        jump = self._draw(generator, batch, rng)
        first, second = self.anchor.predict(generator, jump)
        critic = self._critic(discriminator, jump)
        false = critic(self._renoise(generator, first, jump))
        with torch.no_grad():  # reals are constants to G
            real = critic(jump.x_s) if self.kind == "relativistic" else torch.zeros_like(false)
        loss = adversary = generator_loss(self.kind, real, false)
        logs = {"adversary": adversary}
        if self.anchor.kind != "none":
            logs["anchor"] = self.anchor.term(generator, jump, batch.x, first, second)
            loss = loss + weight * logs["anchor"]
        if second is None and measure and generator.z_dim:
            with torch.no_grad():
                second = generator(jump.x_t, jump.t, jump.cond, latent(generator, rng, first, tag="z_other"))
        if second is not None:
            logs["diversity"] = distance(first, second) / distance(first, torch.zeros_like(first))
        return Loss(loss.mean(), means(logs))
