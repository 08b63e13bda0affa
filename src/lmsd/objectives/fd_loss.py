"""The Fréchet distance as a loss: a control that shows how a score is gamed (Yang et al. 2026, FD-loss).

    f = φ(x̂₀),  x̂₀ = G(x_T, c): one step                            φ: the features of an lmsd-cnn
    μ = β μ̄ + (1 − β) mean f,   M = β M̄ + (1 − β) mean f fᵀ         β: decay; of reals likewise: μ*, M*
    L = ‖μ − μ*‖² + tr Σ + tr Σ* − 2 Σ_i √λ_i(Σ*^½ Σ Σ*^½),   Σ = M − μ μᵀ        Dowson and Landau 1982

A distance in one net's features falls below that of real images while nothing else gets better: optimize it,
and it measures no more than how well it was optimized (docs/adversarial.md, `benchmarks/goodhart.py`). Judge
by other families, as the report does.

The loss couples the samples of a batch: its moments are those of all ranks, and micro-batches would make it
another loss, so they are refused. Gradients go through the current batch alone. A long memory sees what the
generator was, and one that learns fast swings around it: take large batches, and β near 1 only with small
rates (the paper: 1,024, .999 and 1e-5).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.features.cnn import load_extractor
from lmsd.models.codec import bounded
from lmsd.models.frozen import freeze
from lmsd.models.generator import Generator
from lmsd.objectives.base import Objective, caption_drop, generator_of, latent
from lmsd.ranks import gather, world_size
from lmsd.rng import Rng
from lmsd.sampling import Settings, begin
from lmsd.types import Batch, Clock, Loss, Players, Turn

_LEAST = 1e-12
"""Eigenvalues below this share of the largest count as 0: their root has no slope there."""


class Moments:
    """Running mean [d] and second moment [d,d] of features, float64; none before the first batch."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.second: Tensor | None = None

    def blended(self, features: Tensor, decay: float) -> tuple[Tensor, Tensor]:
        """(μ, M) with this batch of all ranks [n,d], differentiable in its own rows; changes nothing."""
        f = features.double()
        mean, second = _over_ranks(f.mean(0)), _over_ranks(f.T @ f / len(f))
        if self.mean is None or self.second is None:
            return mean, second
        share = 1 - decay
        return self.mean.to(f).lerp(mean, share), self.second.to(f).lerp(second, share)

    def keep(self, moments: tuple[Tensor, Tensor]) -> None:
        """Go on from here."""
        self.mean, self.second = (value.detach() for value in moments)

    def state_dict(self) -> Mapping[str, Any]:
        """Both."""
        return {"mean": self.mean, "second": self.second}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.mean, self.second = state["mean"], state["second"]


def _over_ranks(value: Tensor) -> Tensor:
    """The mean over ranks as a value; the gradient is that of the rank's own, which the engine averages."""
    if world_size() == 1:
        return value
    mean = gather(value.detach()[None]).mean(0)
    return value + (mean - value.detach())


def frechet(mean: Tensor, cov: Tensor, real_mean: Tensor, real_cov: Tensor) -> Tensor:
    """L of two Gaussians, means [d] and covariances [d,d] in float64; differentiable in the first two."""
    if not bool(cov.isfinite().all() & real_cov.isfinite().all()):
        return mean.sum() * torch.nan  # what no eigenvalues are found of; the update is skipped
    values, vectors = torch.linalg.eigh(real_cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov @ root
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    cross = eigenvalues.clamp(min=_LEAST * float(eigenvalues[-1].detach().clamp(min=1e-300))).sqrt().sum()
    total: Tensor = (mean - real_mean).square().sum() + cov.trace() + real_cov.trace() - 2 * cross
    return total


class FDLoss(Objective):
    """Train a one-step generator on the Fréchet distance of features; see the module.

    features: images [n,C,H,W] in [-1,1] → [n,d], differentiable; decay: β of the running moments;
    caption_dropout: share of captions dropped. Logs: frechet, score (minus that). Raises UserError for values
    out of range, and for more than one micro-batch.
    """

    def __init__(
        self, features: Callable[[Tensor], Tensor], *, decay: float = 0.9, caption_dropout: float = 0.0
    ) -> None:
        if not (0 <= decay < 1 and 0 <= caption_dropout <= 1):
            raise UserError(
                f"fd_loss: decay={decay} must be from 0 to below 1, and caption_dropout={caption_dropout} a "
                "share from 0 to 1"
            )
        self.features, self.decay, self.caption_dropout = features, decay, caption_dropout
        self.fake, self.real = Moments(), Moments()
        self._open = False

    @property
    def proxy(self) -> str | None:
        """Minus the distance that it trains."""
        return "generator/score"

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """One turn of the generator."""
        if self._open:
            raise UserError(
                "fd_loss: a distance of whole batches is no mean over their parts: set micro_batches=1"
            )
        self._open, generator = True, generator_of(players)
        real = self.real.blended(self.features(generator.decode(batch.x)), self.decay)
        found: list[tuple[Tensor, Tensor]] = []
        yield Turn("generator", partial(self._loss, generator, batch, rng, real, found))
        self._open = False
        if all(bool(part.isfinite().all()) for part in (*found[-1], *real)):  # else the step was skipped
            self.fake.keep(found[-1])
            self.real.keep(real)

    def _loss(
        self,
        generator: Generator,
        batch: Batch,
        rng: Rng,
        real: tuple[Tensor, Tensor],
        found: list[tuple[Tensor, Tensor]],
    ) -> Loss:
        schedule = generator.process.schedule
        cond = generator.condition(batch, caption_drop(rng, self.caption_dropout))
        x_T = begin(generator, Settings(1), rng, batch.x.shape[1:], batch.x.dtype)
        t = schedule.knots(1, x_T.device)[0].expand(len(x_T))
        x_0 = bounded(generator(x_T, t, cond, latent(generator, rng, x_T)), generator.bound)
        moments = self.fake.blended(self.features(generator.decode(x_0)), self.decay)
        found.append(moments)
        (mean, second), (real_mean, real_second) = moments, real
        value = frechet(mean, second - mean.outer(mean), real_mean, real_second - real_mean.outer(real_mean))
        told = value.detach().to(x_0.dtype)
        return Loss(value, {"frechet": told, "score": -told})

    def state_dict(self) -> Mapping[str, Any]:
        """The running moments."""
        return {"fake": dict(self.fake.state_dict()), "real": dict(self.real.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.fake.load_state_dict(state["fake"])
        self.real.load_state_dict(state["real"])
        self._open = False


class _Classifier:
    """The features of an lmsd-cnn, in float32."""

    def __init__(self, path: str | Path) -> None:
        self.net = freeze(load_extractor(path).net, saved=False)

    def __call__(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            found: Tensor = self.net.to(images.device)(images.float())[0]
        return found


def on_classifier(path: str | Path, *, decay: float = 0.9, caption_dropout: float = 0.0) -> FDLoss:
    """`FDLoss` on the features of an lmsd-cnn.

    path: the classifier's folder, made by lmsd data features; decay: β of the running moments;
    caption_dropout: share of captions dropped.
    """
    return FDLoss(_Classifier(path), decay=decay, caption_dropout=caption_dropout)
