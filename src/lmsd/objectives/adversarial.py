"""The adversarial objective: G and D trained against each other on the jumps t → s of the chain.

    real    x_s ~ q(x_s | x_0),  x_t ~ q(x_t | x_s)                 a Markov pair
    fake    x̂_0 = G(x_t, t, c, z)
            x̃_s ~ q(x_s | x_t, x̂_0)       transition: D(x_s, x_t, s, t, c)       Xiao et al. 2022 (DDGAN)
            x̃_s ~ q(x_s | x̂_0)            marginal:   D(x_s, s, t, c)            Xu et al. 2024 (UFOGen)
    L_D = E ℓ_D(D(x_s), D(x̃_s)) + (γ/2)(R1 + R2)                   R1 on reals, R2 on fakes
    L_G = E ℓ_G(D(x_s), D(x̃_s)) + λ · anchor(x̂_0, x_0)

Real and fake share (x_t, t, c), so the free gauge of a relativistic D cancels. At s = 0, x̃_0 = x̂_0. The
adversary's gradient reaches x̂_0 through the posterior's factor α_s (1 − SNR_t/SNR_s), which vanishes with
the size of the jump: a few large jumps, not a thousand.

Anchors, at the same x_t:

    mse_kl    min(½(SNR_s − SNR_t), κ)/κ · ‖x_0 − x̂_0‖²/D    KL of the posteriors, clipped; optimum E[x_0|x_t]
    energy    the energy score of two draws of z              optimum q(x_0|x_t), as the adversary's

Mismatched captions: D also sees reals with another caption of `captions` as fakes. It is drawn for each
sample by its own counter, not by rolling the batch, so that it does not depend on how a batch is split.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Cast,
    Clock,
    Facts,
    JumpLaw,
    Method,
    Part,
    caption_drop,
    discriminator_of,
    generator_of,
    latent,
    mean_square,
    repeat,
    standard_normal,
    useless_discriminator,
)
from lmsd.objectives.denoising import Denoising
from lmsd.objectives.rules import check_options, check_players
from lmsd.objectives.terms import (
    Adversary,
    Annealed,
    difference_penalty,
    discriminator_loss,
    distance,
    energy_score,
    exact_penalty,
    generator_loss,
    sign_right,
)
from lmsd.rng import Rng
from lmsd.types import Batch, Cond, Loss, Players, Turn

Pairing: TypeAlias = Literal["transition", "marginal"]
Penalty: TypeAlias = Literal["fd", "exact", "none"]
Anchor: TypeAlias = Literal["mse_kl", "energy", "none"]
Critic: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Jump:
    """One jump t → s of every sample and what both players know of it.

    s, t: times [B]; x_s, x_t: the Markov pair [B,C,H,W]; drop: whose caption is dropped, bool [B];
    cond: the condition, with gradients in G's loss only; rng: the turn's numbers.
    """

    s: Tensor
    t: Tensor
    x_s: Tensor
    x_t: Tensor
    drop: Tensor
    cond: Cond
    rng: Rng


class Adversarial(Method):
    """Adversarial training on the jumps of the chain; see the module for the formulas.

    jumps: law (rng, process) → (s, t). gamma: weight γ of the penalties; sigma: σ of the finite difference,
    in units of x; r1, r2: on reals, on fakes; lazy: penalties on every lazy-th turn of D only, times lazy.
    anchor_weight: λ; kappa: κ. gamma and anchor_weight are numbers, or pairs (start, end) that go by a cosine
    over the adversarial part of the run. d_steps: D's turns before each of G's.
    mismatch: weight of the mismatched captions, drawn from `captions`. drop: share of captions dropped.
    warmup: share of the run, [0, 1], in which G learns alone, by `warm` or else by the anchor (mse_kl then
    counts every jump alike); 1: the adversary never joins. head_start: share of the run after it in which D
    learns alone. warm_rate, rate: factors on the learning rates in the warm start and after it, numbers or
    pairs (start, end) as above; after the warm start G goes on from its average, with a fresh optimizer.
    hold_text: G learns to read in the warm start only; D reads the same code, and a game over a moving code
    may collapse. clamp: bound on |x̂_0| as D sees it, the range of the data, its gradient passed straight
    through: else the players fight over values that sampling cuts off. diversity_every: updates between two
    measurements of the diversity over z, for anchors that draw no second z themselves; 0: never.

    Logs of D: adversary, logit_gap E[r − f], d_accuracy, r1, r2, mismatch_gap; of G: adversary, anchor,
    diversity E‖x̂(z) − x̂(z')‖/‖x̂(z)‖. Raises UserError for options that do not fit together.
    """

    def __init__(
        self,
        jumps: JumpLaw,
        *,
        pairing: Pairing = "transition",
        loss: Adversary = "relativistic",
        penalty: Penalty = "fd",
        gamma: float | Sequence[float] = 0.05,
        sigma: float = 0.05,
        r1: bool = True,
        r2: bool = True,
        lazy: int = 1,
        anchor: Anchor = "none",
        anchor_weight: float | Sequence[float] = 1.0,
        d_steps: int = 1,
        mismatch: float = 0.0,
        captions: Sequence[str] = (),
        warmup: float = 0.0,
        warm: Denoising | None = None,
        head_start: float = 0.0,
        warm_rate: float | Sequence[float] = 1.0,
        rate: float | Sequence[float] = 1.0,
        hold_text: bool = False,
        clamp: float | None = None,
        drop: float = 0.1,
        kappa: float = 5.0,
        diversity_every: int = 50,
    ) -> None:
        self.jumps, self.pairing, self.kind, self.penalty = jumps, pairing, loss, penalty
        self.gamma, self.sigma, self.r1, self.r2, self.lazy = Annealed(gamma), sigma, r1, r2, lazy
        self.anchor, self.anchor_weight, self.kappa = anchor, Annealed(anchor_weight), kappa
        self.d_steps, self.mismatch, self.drop = d_steps, mismatch, drop
        self.warmup, self.warm, self.diversity_every = warmup, warm, diversity_every
        self.head_start, self.warm_rate, self.rate = head_start, Annealed(warm_rate), Annealed(rate)
        self.hold_text, self.clamp = hold_text, clamp
        self.captions = captions
        check_options(self)

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions that mismatches are drawn from, sorted; set it to what the data hold."""
        return self._captions

    @captions.setter
    def captions(self, values: Sequence[str]) -> None:
        self._captions = tuple(sorted(set(values)))
        self._rank = {caption: index for index, caption in enumerate(self._captions)}

    @property
    def cast(self) -> Cast:
        """Both players; D is built for the pairing."""
        marginal = self.pairing == "marginal"
        judge = Part(given={"marginal": marginal}, stacked=1 if marginal else 2)
        return {"discriminator": judge, "generator": Part()}

    def prepare(self, facts: Facts) -> None:
        """Mismatched captions are drawn from those of the data."""
        self.captions = facts.captions

    # -- the script -----------------------------------------------------------------------------------------

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """d_steps turns of D and one of G; before them G alone (warmup), then D alone (head_start)."""
        generator, discriminator = generator_of(players), discriminator_of(players)
        check_players(self, generator, discriminator, batch)
        if clock.progress < self.warmup:
            rate = self.warm_rate(clock.progress / self.warmup)
            yield Turn("generator", partial(self._warm_loss, generator, batch, rng), rate)
            return
        progress = (clock.progress - self.warmup) / ((1.0 - self.warmup) or 1.0)
        rate = self.rate(progress)
        for turn in range(self.d_steps):
            due = (clock.updates * self.d_steps + turn) % self.lazy == 0
            weight = 0.5 * self.gamma(progress) * self.lazy if due and self.penalty != "none" else 0.0
            first = self.warmup > 0.0 and not clock.played.get("discriminator")
            loss = partial(self._d_turn, generator, discriminator, batch, rng.at(turn), weight)
            yield Turn("discriminator", loss, rate, restart=("generator",) if first else ())
        if clock.progress < self.warmup + self.head_start:
            return
        pair = self.diversity_every > 0 and clock.updates % self.diversity_every == 0
        at = rng.at(self.d_steps)
        weight = self.anchor_weight(progress)
        loss = partial(self._g_loss, generator, discriminator, batch, at, weight, pair)
        yield Turn("generator", loss, rate)

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Share of D's verdicts on `batch` that are right; held-out data show how D overfits."""
        generator, discriminator = generator_of(players), discriminator_of(players)
        jump = self._draw(generator, batch, rng)
        fake = self._fake(generator, jump)
        real, false = self._critic(discriminator, jump)(torch.cat([jump.x_s, fake])).chunk(2)
        return {"discriminator/accuracy": sign_right(self.kind, real, false).mean()}

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether the discriminator teaches nothing."""
        return useless_discriminator(metrics)

    # -- draws ---------------------------------------------------------------------------------------------

    def _draw(self, generator: Generator, batch: Batch, rng: Rng, *, hold_text: bool = True) -> Jump:
        s, t = self.jumps(rng, generator.process)
        x_s, x_t = generator.process.pair(batch.x, s, t, rng)
        drop = caption_drop(rng, self.drop)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not hold_text):
            cond = generator.condition(batch, drop)
        return Jump(s, t, x_s, x_t, drop, cond, rng)

    @torch.no_grad()
    def _fake(self, generator: Generator, jump: Jump) -> Tensor:
        z = latent(generator, jump.rng, jump.x_t)
        return self._renoise(generator, generator(jump.x_t, jump.t, jump.cond, z), jump)

    @torch.no_grad()
    def _wrong_cond(self, generator: Generator, batch: Batch, jump: Jump) -> Cond:
        """The condition of another caption: index own + u (mod n), u uniform in [1, n), so never its own."""
        size = len(self._captions)
        steps = jump.rng.integer(1, size, (), "mismatch").tolist()
        own = [self._rank.get(caption, 0) for caption in batch.text or ()]
        text = [self._captions[(index + step) % size] for index, step in zip(own, steps, strict=True)]
        return generator.condition(replace(batch, text=text), jump.drop)

    # -- what both players' losses are made of ------------------------------------------------------------

    def _renoise(self, generator: Generator, x_0: Tensor, jump: Jump) -> Tensor:
        """x̂_0 → x̃_s, differentiable in x̂_0."""
        if self.clamp is not None:  # the value clamped, the gradient as if it were not
            x_0 = x_0 + (x_0.clamp(-self.clamp, self.clamp) - x_0).detach()
        eps = standard_normal(jump.rng, x_0, "eps_fake")
        if self.pairing == "marginal":
            return generator.process.noise(x_0, jump.s, eps)
        return generator.process.posterior(x_0, jump.x_t, jump.s, jump.t).sample(eps)

    def _critic(self, discriminator: Discriminator, jump: Jump, cond: Cond | None = None) -> Critic:
        """D at this jump, [k·B,C,H,W] → [k·B,heads]: k candidates x_s of every sample at once.

        The condition is G's to learn: D gets it detached.
        """

        def logits(x: Tensor) -> Tensor:
            k = len(x) // len(jump.s)
            x_t = repeat(jump.x_t, k) if self.pairing == "transition" else None
            rows = (cond or jump.cond).map(lambda value: repeat(value.detach(), k))
            judged: Tensor = discriminator(x, x_t, repeat(jump.s, k), repeat(jump.t, k), rows)
            return judged

        return logits

    # -- D --------------------------------------------------------------------------------------------------

    def _d_turn(
        self, generator: Generator, discriminator: Discriminator, batch: Batch, rng: Rng, weight: float
    ) -> Loss:
        """Drawn when the turn is played: after a restart, from the weights that G goes on with."""
        with torch.no_grad():
            jump = self._draw(generator, batch, rng)
            fake = self._fake(generator, jump)
            wrong = self._wrong_cond(generator, batch, jump) if self.mismatch else None
        return self._d_loss(discriminator, jump, fake, wrong, weight)

    def _d_loss(
        self, discriminator: Discriminator, jump: Jump, fake: Tensor, wrong: Cond | None, weight: float
    ) -> Loss:
        """weight: γ/2 times lazy, or 0 for no penalty on this update."""
        real, false, penalties = self._judge(self._critic(discriminator, jump), jump, fake, weight > 0.0)
        loss = discriminator_loss(self.kind, real, false)
        right = sign_right(self.kind, real, false)
        logs = {"adversary": loss, "logit_gap": real - false, "d_accuracy": right}
        for penalty in penalties.values():
            loss = loss + weight * penalty
        if wrong is not None:
            against = self._critic(discriminator, jump, wrong)(jump.x_s)
            told = (~jump.drop).to(loss.dtype)  # without captions a mismatch is no mismatch
            loss = loss + self.mismatch * told * discriminator_loss(self.kind, real, against)
            logs["mismatch_gap"] = real - against
        return Loss(loss.mean(), _means({**logs, **penalties}))

    def _judge(
        self, critic: Critic, jump: Jump, fake: Tensor, penalize: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """D's logits of reals and fakes, and the penalties [B] by name; one forward of D in all."""
        pair = torch.cat([jump.x_s, fake])
        sides = {name: side for name, side, on in (("r1", 0, self.r1), ("r2", 1, self.r2)) if on and penalize}
        if not sides:
            real, false = critic(pair).chunk(2)
            return real, false, {}
        if self.penalty == "exact":
            norms, logits = exact_penalty(critic, pair)
            real, false = logits.chunk(2)
            return real, false, {name: norms.chunk(2)[side] for name, side in sides.items()}
        step = self.sigma * standard_normal(jump.rng, fake, "fd")  # one direction for both sides
        moved = [pair.chunk(2)[side] + step for side in sides.values()]
        real, false, *rest = critic(torch.cat([pair, *moved])).chunk(2 + len(moved))
        penalties = {
            name: difference_penalty(logits, (real, false)[side], self.sigma)
            for (name, side), logits in zip(sides.items(), rest, strict=True)
        }
        return real, false, penalties

    # -- G --------------------------------------------------------------------------------------------------

    def _g_loss(
        self,
        generator: Generator,
        discriminator: Discriminator,
        batch: Batch,
        rng: Rng,
        weight: float,
        pair: bool,
    ) -> Loss:
        """weight: λ; pair: measure the diversity over z even where the anchor draws no second sample."""
        jump = self._draw(generator, batch, rng, hold_text=self.hold_text)
        first, second = self._predict(generator, jump)
        critic = self._critic(discriminator, jump)
        false = critic(self._renoise(generator, first, jump))
        with torch.no_grad():  # reals are constants to G
            real = critic(jump.x_s) if self.kind == "relativistic" else torch.zeros_like(false)
        loss = adversary = generator_loss(self.kind, real, false)
        logs = {"adversary": adversary}
        if self.anchor != "none":
            logs["anchor"] = self._anchor(generator, batch.x, jump, first, second)
            loss = loss + weight * logs["anchor"]
        if second is None and pair and generator.z_dim:
            with torch.no_grad():
                second = generator(jump.x_t, jump.t, jump.cond, latent(generator, rng, first, tag="z_other"))
        if second is not None:
            logs["diversity"] = distance(first, second) / distance(first, torch.zeros_like(first))
        return Loss(loss.mean(), _means(logs))

    def _predict(self, generator: Generator, jump: Jump) -> tuple[Tensor, Tensor | None]:
        """x̂_0 of one z, or of two in one forward where the anchor is the energy score."""
        z = latent(generator, jump.rng, jump.x_t)
        if self.anchor != "energy" or z is None:
            return generator(jump.x_t, jump.t, jump.cond, z), None
        both = torch.cat([z, standard_normal(jump.rng, z, "z_other")])
        rows = jump.cond.map(lambda value: repeat(value, 2))
        first, second = generator(repeat(jump.x_t, 2), repeat(jump.t, 2), rows, both).chunk(2)
        return first, second

    def _anchor(
        self, generator: Generator, x_0: Tensor, jump: Jump, first: Tensor, second: Tensor | None
    ) -> Tensor:
        if second is not None:
            return energy_score(first, second, x_0)
        return generator.process.kl_weight(jump.s, jump.t, kappa=self.kappa) * mean_square(first - x_0)

    def _warm_loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        if self.warm is not None:
            return self.warm.loss(generator, batch, rng)
        jump = self._draw(generator, batch, rng, hold_text=False)
        first, second = self._predict(generator, jump)
        loss = mean_square(first - batch.x) if second is None else energy_score(first, second, batch.x)
        return Loss(loss.mean(), _means({"anchor": loss}))


def _means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().mean() for name, value in values.items()}
