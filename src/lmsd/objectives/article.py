"""The article's own objective, as written: an autoencoder D, and two losses on reconstructions.

    x_{t-1} ~ q(·|x_0),  x_t ~ q(·|x_{t-1})                a Markov pair, t uniform on the chain β_t = t/T
    G(x_t)  = x̃_{t-1} ~ q(· | x_t, x̂_0)                    predict = image: the net gives x̂_0
            = the net's own output                         predict = previous
    L_G = E[ L_rec(D(G(x_t)), D(x_{t-1})) + L_KL ]
    L_D = E[ L_rec(x_t, D(x_t)) ] + E[ L_rec(D(G(x_t)), D(x_{t-1})) ]

D maps an image to an image and sees nothing else, neither t nor text. L_rec is the mean distance of pixels,
|·| or its square. L_KL = KL(q(x_{t-1}|x_t, x_0) ‖ p_G(x_{t-1}|x_t)), per pixel, where p_G is the posterior at
x̂_0, or the normal distribution around the net's output with the posterior's standard deviation σ_q:

    image       ½ (SNR_{t-1} − SNR_t) ‖x_0 − x̂_0‖²/D           previous    ‖μ_q − G(x_t)‖²/(2 σ_q² D)

Both weights are infinite at t = 1, hence the bound κ on them.

As written, both players minimize the second term, so there is no game: a constant D makes it 0. sign = energy
flips the sign of D's second term, as in energy-based GANs (Zhao et al. 2017, without their margin; Berthelot
et al. 2017, without their equilibrium), so that D learns to tell the two apart.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.errors import UserError, one_of
from lmsd.models.discriminator import AutoencoderDiscriminator
from lmsd.models.generator import Generator
from lmsd.objectives.base import (
    Cast,
    Clock,
    Facts,
    JumpLaw,
    Objective,
    Part,
    generator_of,
    latent,
    mean_square,
    means,
    standard_normal,
)
from lmsd.objectives.jumps import Jump, draw_jump
from lmsd.objectives.terms import per_sample
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Players, Turn

Distance: TypeAlias = Literal["l1", "squared"]
Predict: TypeAlias = Literal["image", "previous"]
Sign: TypeAlias = Literal["written", "energy"]


class Article(Objective):
    """The two losses above: one turn of D, one of G.

    jumps: law (rng, process) → (s, t), neighbors on the chain; distance: L_rec; predict, sign: see the
    module; kl: weight of L_KL, 1 as written; kappa: κ; caption_dropout: share of captions dropped.

    Logs of D: reconstruction, matching; of G: matching, kl. Raises UserError for values out of range.
    """

    def __init__(
        self,
        jumps: JumpLaw,
        *,
        distance: Distance = "squared",
        predict: Predict = "image",
        sign: Sign = "written",
        kl: float = 1.0,
        kappa: float = 5.0,
        caption_dropout: float = 0.1,
    ) -> None:
        one_of("article", "distance", distance, Distance)
        one_of("article", "predict", predict, Predict)
        one_of("article", "sign", sign, Sign)
        if kl < 0 or kappa <= 0 or not 0 <= caption_dropout <= 1:
            raise UserError(
                f"article: kl={kl} must be 0 or more, kappa={kappa} above 0 and "
                f"caption_dropout={caption_dropout} a share from 0 to 1"
            )
        self.distance, self.predict, self.sign, self.kl, self.kappa = distance, predict, sign, kl, kappa
        self._draw = partial(draw_jump, jumps, caption_dropout=caption_dropout)

    @property
    def cast(self) -> Cast:
        """An autoencoder and the generator."""
        return {"discriminator": Part(), "generator": Part()}

    def prepare(self, facts: Facts) -> None:
        """Refuse a discriminator that returns no images, and an output that is not x_{t-1}."""
        generator, discriminator = generator_of(facts.players), facts.players["discriminator"]
        if not isinstance(discriminator, AutoencoderDiscriminator):
            raise UserError(
                f"article: the discriminator gives images back, and {type(discriminator).__name__} does "
                "not: take discriminator=autoencoder"
            )
        if self.predict == "previous" and generator.prediction != "x0":
            raise UserError(
                f"article: predict=previous takes the net's output as it is, and this one predicts "
                f"{generator.prediction}: set generator.prediction=x0, and sampler=direct to sample with it"
            )

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of D and one of G, each with its own jumps."""
        generator, discriminator = generator_of(players), players["discriminator"]
        yield Turn("discriminator", partial(self._d_loss, generator, discriminator, batch, rng.at(0)))
        yield Turn("generator", partial(self._g_loss, generator, discriminator, batch, rng.at(1)))

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Mean distance of D's reconstructions from real and from fake images x_{t-1}."""
        generator, discriminator = generator_of(players), players["discriminator"]
        jump = self._draw(generator, batch, rng)
        fake, _ = self._fake(generator, jump, batch.x)
        return {
            f"discriminator/energy_{name}": self._apart(discriminator(x), x).mean()
            for name, x in (("real", jump.x_s), ("fake", fake))
        }

    def _apart(self, a: Tensor, b: Tensor) -> Tensor:
        """L_rec of each sample, [B]."""
        return mean_square(a - b) if self.distance == "squared" else per_sample((a - b).abs())

    def _fake(self, generator: Generator, jump: Jump, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """G(x_t), and L_KL of each sample, [B]."""
        process, z = generator.process, latent(generator, jump.rng, jump.x_t)
        output = generator(jump.x_t, jump.t, jump.cond, z)
        real = process.posterior(x_0, jump.x_t, jump.s, jump.t)
        if self.predict == "previous":
            precision = (0.5 / real.std.flatten().square()).clamp(max=self.kappa)
            return output, precision * mean_square(real.mean - output)
        fake = process.posterior(output, jump.x_t, jump.s, jump.t)
        weight = self.kappa * process.kl_weight(jump.s, jump.t, kappa=self.kappa)
        return fake.sample(standard_normal(jump.rng, output, "eps_fake")), weight * mean_square(x_0 - output)

    def _d_loss(self, generator: Generator, discriminator: nn.Module, batch: Batch, rng: Rng) -> Loss:
        with torch.no_grad():
            jump = self._draw(generator, batch, rng)
            fake, _ = self._fake(generator, jump, batch.x)
        of_t, of_fake, of_real = discriminator(torch.cat([jump.x_t, fake, jump.x_s])).chunk(3)
        reconstruction, matching = self._apart(jump.x_t, of_t), self._apart(of_fake, of_real)
        loss = reconstruction + (matching if self.sign == "written" else -matching)
        return Loss(loss.mean(), means({"reconstruction": reconstruction, "matching": matching}))

    def _g_loss(self, generator: Generator, discriminator: nn.Module, batch: Batch, rng: Rng) -> Loss:
        jump = self._draw(generator, batch, rng)
        fake, kl = self._fake(generator, jump, batch.x)
        with torch.no_grad():  # reals are constants to G
            of_real = discriminator(jump.x_s)
        matching = self._apart(discriminator(fake), of_real)
        return Loss((matching + self.kl * kl).mean(), means({"matching": matching, "kl": kl}))
