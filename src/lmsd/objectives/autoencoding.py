"""Training an autoencoder (E, D_φ) as the codec of later runs: reconstruction, perception, an adversary.

    L = |x − x̂| + λ_p P(x, x̂) + λ_a ℓ_G(A(x), A(x̂)) + λ_k KL,   x̂ = D_φ(z), z = μ (+ σ ε)
    L_A = ℓ_D(A(x), A(x̂)) + (γ/2)(R1 + R2)                          `penalty`, by finite differences
    P  = Σ_l mean ‖f_l(x) − f_l(x̂)‖²                              f_l: stages of a classifier, unit norm
    KL = ½ mean(μ² + σ² − 1 − log σ²)

A judges patches: one logit for each. The classifier is trained on the train split with another seed and width
than the extractor that scores are made with, and its digest is kept: what is trained on its features is never
scored in them.

On a share of the batches the latent is scaled and turned, and its image compared with the image so treated
(Kouzelis et al. 2025, EQ-VAE):  x → τ x,  x̂ = D_φ(τ z).  Latents in which τ means what it means in pixels are
smoother, and easier to diffuse. A scaled latent keeps `SIDE` cells a side at least.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lmsd.errors import Count, Measure, Seed, Share, UserError
from lmsd.features.cnn import LMSDCNN
from lmsd.models.own import OwnAutoencoder
from lmsd.objectives.base import Cast, Facts, Objective, Part, means, useless_discriminator
from lmsd.objectives.penalty import Penalty
from lmsd.objectives.terms import discriminator_loss, generator_loss, per_sample, sign_right
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Loss, Players, Turn

SIDE = 4
"""The fewest cells a side that a scaled latent keeps."""


class Autoencoding(Objective):
    """One turn of the adversary A, from `start` on, and one of the codec.

    perceptual: λ_p, 0 for none; width, seed: of the classifier behind it; adversary: λ_a, 0 for none; start:
    share of the run before the adversary plays; penalty: of A, None for the defaults; kl: λ_k, 0 for a
    deterministic codec; equivariance: share of the batches that are scaled and turned.

    Logs of the codec: reconstruction, perceptual, adversary, kl; of A: adversary, d_accuracy, r1, r2. Raises
    UserError for values out of range.
    """

    def __init__(
        self,
        *,
        perceptual: Measure = 1.0,
        width: Count = 24,
        seed: Seed = 101,
        adversary: Measure = 0.05,
        start: Share = 0.3,
        penalty: Penalty | None = None,
        kl: Measure = 0.0,
        equivariance: Share = 0.5,
    ) -> None:
        if min(perceptual, adversary, kl) < 0 or not 0 <= start <= 1 or not 0 <= equivariance <= 1:
            raise UserError(
                f"autoencoding: perceptual={perceptual}, adversary={adversary} and kl={kl} must be 0 or "
                f"more, start={start} and equivariance={equivariance} shares from 0 to 1"
            )
        self.perceptual, self.width, self.seed = perceptual, width, seed
        self.adversary, self.start, self.kl, self.equivariance = adversary, start, kl, equivariance
        self.penalty = penalty or Penalty()
        self.penalty.alone("autoencoding")
        self._judge: LMSDCNN | None = None
        self.features = ""

    @property
    def cast(self) -> Cast:
        """The adversary and the codec."""
        return {"discriminator": Part(), "codec": Part()}

    @property
    def lead(self) -> str:
        """The codec."""
        return "codec"

    def prepare(self, facts: Facts) -> None:
        """Train the classifier behind the perceptual term, or find it."""
        codec = facts.players["codec"]
        if type(codec) is not OwnAutoencoder:
            raise UserError(
                f"autoencoding trains codec=own, and this run has {type(codec).__name__}: leave codec= out"
            )
        if self.perceptual and facts.classifier is None:
            raise UserError("autoencoding: perceptual needs a classifier of the data, and none is given")
        if self.perceptual and facts.classifier is not None:
            found = facts.classifier(self.width, self.seed)
            self._judge, self.features = found.net, found.sha256

    # -- the script -----------------------------------------------------------------------------------------

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The adversary's turn, then the codec's."""
        codec, critic = codec_of(players), players["discriminator"]
        change = self._change(rng.seed, clock.images, batch.x, codec)
        playing = self.adversary > 0 and clock.progress >= self.start
        if playing:
            due = self.penalty.weight(clock.progress, clock.played.get("discriminator", 0))
            yield Turn("discriminator", partial(self._d_loss, codec, critic, batch.x, rng.at(0), change, due))
        yield Turn(
            "codec", partial(self._c_loss, codec, critic if playing else None, batch.x, rng.at(1), change)
        )

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """PSNR in dB and SSIM of reconstructions, and the share of A's verdicts that are right."""
        codec, critic = codec_of(players), players["discriminator"]
        made = torch.cat([codec.decode(codec.encode(part)).clamp(-1, 1) for part in batch.x.split(64)])
        found = {
            "codec/psnr": peak_signal_noise_ratio(
                made, batch.x, data_range=(-1.0, 1.0), reduction="elementwise_mean", dim=(1, 2, 3)
            ),
            "codec/ssim": structural_similarity_index_measure(made, batch.x, data_range=(-1.0, 1.0)),
        }
        if self.adversary:
            right = sign_right("relativistic", critic(batch.x).flatten(1), critic(made).flatten(1))
            found["discriminator/accuracy"] = right.mean()
        return {name: torch.as_tensor(value) for name, value in found.items()}

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether the adversary teaches nothing."""
        return useless_discriminator(metrics)

    def state_dict(self) -> Mapping[str, Any]:
        """The digest of the features that it is trained on."""
        return {"features": self.features} if self.features else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on with another classifier."""
        if state.get("features", "") != self.features:
            raise UserError(
                f"autoencoding: this run was trained on the features {state.get('features', 'of none')[:8]}, "
                f"and has {self.features[:8] or 'none'}: give the same data, perceptual, width and seed"
            )

    # -- what the losses are made of ------------------------------------------------------------------------

    def _change(
        self, seed: int | Tensor, images: int, x: Tensor, codec: OwnAutoencoder
    ) -> tuple[int, int] | None:
        """(cells a side, quarter turns) of this batch, the same on every rank; None: as it is."""
        side = codec.smaller(*x.shape[2:])[0]
        u, size, turn = Rng(seed, torch.tensor([images])).uniform((3,), "equivariance")[0].tolist()
        if u >= self.equivariance or x.shape[2] != x.shape[3]:
            return None
        least = min(side, max(SIDE, side // 4))
        return least + int(size * (side + 1 - least)), int(4 * turn)

    def _made(
        self, codec: OwnAutoencoder, x: Tensor, rng: Rng, change: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, or what it has become; x̂; KL of each sample."""
        mean, logvar = codec.spread(x)
        kl, z = mean.new_zeros(len(x)), mean
        if self.kl:
            kl = 0.5 * per_sample(mean.square() + logvar.exp() - 1 - logvar)
            z = mean + (0.5 * logvar).exp() * rng.normal(mean.shape[1:], "posterior").to(mean.dtype)
        if change is not None:
            side, turn = change
            x, z = treated(x, side * codec.factor, turn), treated(z, side, turn)
        return x, codec.decode(z), kl

    def _d_loss(
        self,
        codec: OwnAutoencoder,
        critic: nn.Module,
        x: Tensor,
        rng: Rng,
        change: tuple[int, int] | None,
        due: float,
    ) -> Loss:
        with torch.no_grad():
            real, fake, _ = self._made(codec, x, rng, change)

        def logits(images: Tensor) -> Tensor:
            return critic(images).flatten(1)  # type: ignore[no-any-return]

        of_real, of_fake, penalties = self.penalty.judge(logits, real, fake, rng, due=due > 0)
        loss = discriminator_loss("relativistic", of_real, of_fake)
        logs = {"adversary": loss, "d_accuracy": sign_right("relativistic", of_real, of_fake), **penalties}
        for value in penalties.values():
            loss = loss + due * value
        return Loss(loss.mean(), means(logs))

    def _c_loss(
        self,
        codec: OwnAutoencoder,
        critic: nn.Module | None,
        x: Tensor,
        rng: Rng,
        change: tuple[int, int] | None,
    ) -> Loss:
        real, made, kl = self._made(codec, x, rng, change)
        terms = {"reconstruction": per_sample((real - made).abs())}
        loss = terms["reconstruction"]
        if self._judge is not None:
            terms["perceptual"] = perceived(self._judge.to(x.device), x.shape[2:], real, made)
            loss = loss + self.perceptual * terms["perceptual"]
        if self.kl:
            terms["kl"] = kl
            loss = loss + self.kl * kl
        if critic is not None:
            with torch.no_grad():
                of_real = critic(real).flatten(1)
            terms["adversary"] = generator_loss("relativistic", of_real, critic(made).flatten(1))
            loss = loss + self.adversary * terms["adversary"]
        return Loss(loss.mean(), means(terms))


def codec_of(players: Players) -> OwnAutoencoder:
    """The player "codec", typed."""
    return cast(OwnAutoencoder, players["codec"])


def treated(x: Tensor, side: int, turn: int) -> Tensor:
    """A picture or a latent [B,C,H,H], scaled to a side and turned by quarters."""
    if side != x.shape[2]:
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return x.rot90(turn, dims=(2, 3))


def perceived(judge: LMSDCNN, size: tuple[int, ...] | torch.Size, real: Tensor, made: Tensor) -> Tensor:
    """P of each sample [B]: distance of the features of all stages, images brought to the judge's size."""
    if real.shape[2:] != torch.Size(size):
        real, made = (F.interpolate(x, size=tuple(size), mode="bilinear") for x in (real, made))
    total = made.new_zeros(len(made))
    a, b = real, made
    for layer in judge.trunk:
        a, b = layer(a), layer(b)
        if not isinstance(layer, nn.MaxPool2d | nn.PixelUnshuffle):
            apart = F.normalize(a, dim=1, eps=1e-3) - F.normalize(b, dim=1, eps=1e-3)
            total = total + apart.square().sum(1).flatten(1).mean(1)
    return total
