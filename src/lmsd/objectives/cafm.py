"""Continuous adversarial flow models: an adversary on the velocity (Lin et al. 2026, CAFM).

    Ḋ_w(x, t) = ∇_x D · w + ∂_t D            D(x, t, c): one number, a potential;  w: a velocity at (x, t)
    v = d/dt x_t of the data,  u the net's;  both at x_t = α x₀ + σ ε
    L_D = (Ḋ_v − 1)² + (Ḋ_u + 1)² + ε_c D(x_t)²              L_G = (Ḋ_u − 1)²

No derivative of D is taken. A straight line (x₀, ε) of the flow has the velocity ε − x₀, so

    Ḋ ≈ [D(noise(x₀, t + h, ε), t + h) − D(noise(x₀, t − h, ε), t − h)]/2h + O(h²)

and the net's velocity is that of the line (x̂₀, ε̂), ε̂ = (x_t − α x̂₀)/σ, through the same x_t. It works with
every attention kernel, compiled and sharded; D must see time slowly (`smooth`), for the difference to be one.

At fixed (x_t, t), with Δ = E[v|x_t] − u, Σ = Cov[v|x_t], δ = Δᵀ Σ⁻¹ Δ, and Ḋ_w = a + g·w for any a, g:

    g = Σ⁻¹ Δ/(1 + δ/2),   Ḋ_u = −(δ/2)/(1 + δ/2),   L_D = 2/(1 + δ/2)
    ∂L_G/∂u = −2 (1 + δ) Σ⁻¹ Δ/(1 + δ/2)²

So it is flow matching in the metric of the conditional velocity, with the same optimum, and L_D = 2 says that
D sees no error. But a and g are those of one potential, which is not free: docs/adversarial.md says how far
from these values it stays.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from lmsd.errors import Amount, Count, UserError
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Cast,
    Facts,
    Objective,
    Part,
    caption_drop,
    discriminator_of,
    generator_of,
    latent,
    means,
    repeat,
    standard_normal,
)
from lmsd.objectives.terms import per_sample
from lmsd.process import Process
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Cond, Loss, Players, Turn

_WON = -0.98
"""The mean of Ḋ_u below which D has won, and G's gradient is gone."""


class CAFM(Objective):
    """Post-training of a flow by an adversary on its velocity; see the module for the formulas.

    times: law of t, kept h away from both ends; h: half the distance of the two ends of a difference, as a
    share of time; center: ε_c; alone: D's updates before G's first one; every: D's updates to one of G;
    caption_dropout: share of captions dropped.

    Logs of D: adversary (2: it sees no error), slope_real, slope_fake; of G: adversary, slope_fake. Raises
    UserError for values out of range, a schedule that is no flow, and a D whose time is too fast.
    """

    def __init__(
        self,
        times: Times,
        *,
        h: float = 0.01,
        center: float = 1e-3,
        alone: Amount = 1_000,
        every: Count = 16,
        caption_dropout: float = 0.1,
    ) -> None:
        if not (0 < h < 0.5 and center >= 0 and 0 <= caption_dropout <= 1 and alone >= 0 and every >= 1):
            raise UserError(
                f"cafm: h={h} is a share of time between 0 and 0.5, center={center} not negative, "
                f"caption_dropout={caption_dropout} a share from 0 to 1, alone={alone} 0 or more and "
                f"every={every} at least 1"
            )
        self.times, self.h, self.center, self.alone, self.every = times, h, center, alone, every
        self.caption_dropout = caption_dropout

    @property
    def cast(self) -> Cast:
        """A potential, and the generator."""
        return {"discriminator": Part(given={"marginal": True, "smooth": True}), "generator": Part()}

    def prepare(self, facts: Facts) -> None:
        """Refuse schedules whose lines bend, and a discriminator whose differences in t mean nothing."""
        if not generator_of(facts.players).process.schedule.straight:
            raise UserError("cafm follows straight lines x₀ → ε: take schedule=flow")
        discriminator = discriminator_of(facts.players)
        if not discriminator.smooth:
            raise UserError(
                f"cafm takes differences in t, and {type(discriminator).__name__} sees time in waves that "
                "are faster: take discriminator=mlp or conv"
            )

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of D; then one of G if it is due by D's count, on times and noise of its own."""
        generator, discriminator = generator_of(players), discriminator_of(players)
        played = clock.played.get("discriminator", 0)  # it moves during the turn
        yield Turn("discriminator", partial(self._d_loss, generator, discriminator, batch, rng))
        if played >= self.alone and (played + 1) % self.every == 0:
            yield Turn("generator", partial(self._g_loss, generator, discriminator, batch, rng.at(1)))

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """D's loss on images that it may not have learned from: 2 or more where it sees no error."""
        loss = self._d_loss(generator_of(players), discriminator_of(players), batch, rng)
        return {"discriminator/loss": loss.logs["adversary"]}

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether D has won, so that G's gradient is gone."""
        if metrics.get("generator/slope_fake", 0.0) > _WON:
            return None
        return "the discriminator tells every velocity of the generator's from the data's"

    # -- the losses -----------------------------------------------------------------------------------------

    def drawn(self, process: Process, x_0: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """(t [B], ε, x_t): both ends of a difference around t lie within the flow."""
        t = self.times(rng, process).clamp(self.h, 1 - self.h)
        eps = standard_normal(rng, x_0, "eps")
        return t, eps, process.noise(x_0, t, eps)

    def _condition(self, generator: Generator, batch: Batch, rng: Rng) -> Cond:
        return generator.condition(batch, caption_drop(rng, self.caption_dropout))

    def slopes(
        self, discriminator: Discriminator, lines: list[tuple[Tensor, Tensor]], t: Tensor, cond: Cond
    ) -> list[Tensor]:
        """Ḋ [B] along each line (x₀, ε) at t, all in one forward pass of D."""
        process, ends = discriminator.process, [t + self.h, t - self.h]
        x = torch.cat([process.noise(x_0, end, eps) for x_0, eps in lines for end in ends])
        time, copies = torch.cat(ends * len(lines)), 2 * len(lines)
        rows = cond.map(lambda value: repeat(value.detach(), copies))
        values = per_sample(discriminator(x, None, time, time, rows)).chunk(copies)
        return [(up - down) / (2 * self.h) for up, down in zip(values[::2], values[1::2], strict=True)]

    def _line(
        self, generator: Generator, x_t: Tensor, t: Tensor, cond: Cond, z: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(x̂₀, ε̂): the net's line through x_t."""
        x_0 = generator(x_t, t, cond, z)
        alpha, sigma = generator.process.alpha_sigma(t, x_t)
        return x_0, (x_t - alpha * x_0) / sigma

    def _d_loss(self, generator: Generator, discriminator: Discriminator, batch: Batch, rng: Rng) -> Loss:
        with torch.no_grad():
            t, eps, x_t = self.drawn(generator.process, batch.x, rng)
            cond = self._condition(generator, batch, rng)
            line = self._line(generator, x_t, t, cond, latent(generator, rng, x_t))
        real, fake = self.slopes(discriminator, [(batch.x, eps), line], t, cond)
        loss = adversary = (real - 1).square() + (fake + 1).square()
        if self.center:
            loss = loss + self.center * per_sample(discriminator(x_t, None, t, t, cond)).square()
        return Loss(loss.mean(), means({"adversary": adversary, "slope_real": real, "slope_fake": fake}))

    def _g_loss(self, generator: Generator, discriminator: Discriminator, batch: Batch, rng: Rng) -> Loss:
        t, _, x_t = self.drawn(generator.process, batch.x, rng)
        cond = self._condition(generator, batch, rng)
        line = self._line(generator, x_t, t, cond, latent(generator, rng, x_t))
        (fake,) = self.slopes(discriminator, [line], t, cond)
        loss = (fake - 1).square()
        return Loss(loss.mean(), means({"adversary": loss, "slope_fake": fake}))
