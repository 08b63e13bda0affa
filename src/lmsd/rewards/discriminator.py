"""The discriminator as a reward.

A relativistic discriminator minimizes −log σ(D(x) − D(y)) over x ~ p_data, y ~ p_G: the likelihood of a
Bradley-Terry model, whose optimum is

    D*(x|c) = log p_data(x|c) − log p_G(x|c) + f(c)                                               nats

so argmax_p E_p[D*] − β KL(p ‖ p_G) = p_G exp(D*/β)/Z, which is p_data at β = 1 nat. f(c) is free: scores are
only comparable within a group of one caption, and everything here lets f cancel. Penalties flatten D; a
temperature k, fitted on held-out pairs as argmax_k Σ log σ(k ΔD), restores the unit of its logits.

    r = k · (mean_h D_h − ensemble · std_h D_h),      r − mean_group r ≤ median over held-out pairs of k ΔD

Being more real than real earns nothing: no image counts as further above its group's mean than the median
real image is above the policy's image of the same caption. Held-out real images have a mean of 0 nats;
without such an origin a refreshed judge would raise or lower the reward of the very same images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.rewards.base import NOBODY, Reward
from lmsd.rng import Rng
from lmsd.types import Batch, Players


class DiscriminatorReward(Reward):
    """The logit of the player "discriminator" (marginal pairing) on images, in calibrated nats.

    levels: times of the schedule at which images are judged, 0: as they are; the mean counts. ensemble: how
    many standard deviations over heads are subtracted. saturate: cap at the median real score, from the first
    calibration on. seed: of the noise. Images of one caption are consecutive, in groups of equal size, named
    by batch.extra["group"]. If something other than images is diffused, batch.extra["diffused"] holds what
    they are decoded from, which is what the discriminator knows. Raises UserError for no levels and a
    negative ensemble.
    """

    judges = ("discriminator",)
    differentiable = True

    @explained
    def __init__(
        self,
        *,
        levels: Sequence[float] = (0.0,),
        ensemble: float = 0.0,
        saturate: bool = True,
        seed: int = 0,
    ) -> None:
        if not levels or ensemble < 0:
            raise UserError(f"discriminator reward: levels={levels} is empty or ensemble={ensemble} negative")
        self.levels, self.ensemble = tuple(float(t) for t in levels), ensemble
        self.saturate, self.seed = saturate, seed
        self.temperature, self.margin, self.origin = 1.0, math.inf, 0.0

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B], nats up to a constant per caption; 0: the mean of real images at the last calibration."""
        scores = self.logits(batch.extra.get("diffused", images), batch, players) - self.origin
        size = group_size(batch)
        if not self.saturate or size == 1 or math.isinf(self.margin):
            return scores
        mean = scores.detach().view(-1, size).mean(1)
        return torch.minimum(scores, (mean + self.margin).repeat_interleave(size))

    def logits(self, images: Tensor, batch: Batch, players: Players) -> Tensor:
        """The temperature times (mean over heads and levels − ensemble · std over heads), [B]."""
        discriminator, generator = _of(players)
        with torch.no_grad():
            cond = generator.condition(batch)
        rng = Rng(self.seed, batch.position)
        total = torch.zeros(len(images), dtype=images.dtype, device=images.device)
        for number, level in enumerate(self.levels):
            t = torch.full((len(images),), level, device=images.device)
            eps = rng.at(number).normal(images.shape[1:], "judge").to(images.dtype)
            x = images if level == 0.0 else generator.process.noise(images, t, eps)
            heads = discriminator(x, None, t, t, cond)
            total = total + heads.mean(1)
            if heads.shape[1] > 1:
                total = total - self.ensemble * heads.std(1)
        return self.temperature * total / len(self.levels)

    def calibrate(self, fakes: Tensor, batch: Batch, players: Players) -> float:
        """Fit k, the cap and the origin on held-out pairs: batch.x real, `fakes` of the same captions.

        Returns k.
        """
        self.temperature = 1.0
        with torch.no_grad():
            real = self.logits(batch.x, batch, players)
            gap = real - self.logits(fakes, batch, players)
        self.temperature = fit_temperature(gap)
        self.origin = self.temperature * float(real.mean())
        self.margin = max(0.0, self.temperature * float(gap.median()))
        return self.temperature

    def state_dict(self) -> Mapping[str, object]:
        """Temperature, cap and origin."""
        return {"temperature": self.temperature, "margin": self.margin, "origin": self.origin}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of `state_dict`."""
        self.temperature = float(cast(float, state["temperature"]))
        self.margin = float(cast(float, state["margin"]))
        self.origin = float(cast(float, state.get("origin", 0.0)))  # not in earlier checkpoints


@explained
def fit_temperature(gap: Tensor, *, bounds: tuple[float, float] = (0.05, 20.0)) -> float:
    """argmax_k Σ log σ(k · gap) over `bounds`, from D(real) − D(fake) [n]; concave, solved by bisection."""
    gap = gap.detach().double().flatten()
    low, high = (math.log(bound) for bound in bounds)
    for _ in range(60):
        middle = (low + high) / 2
        slope = float((gap * torch.sigmoid(-math.exp(middle) * gap)).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


@explained
def group_size(batch: Batch) -> int:
    """How many consecutive images share a caption, by batch.extra["group"]; 1 without it."""
    group = batch.extra.get("group")
    return 1 if group is None else int((group == group[0]).sum())


def _of(players: Players) -> tuple[Discriminator, Generator]:
    if "discriminator" not in players:
        raise UserError(
            "the discriminator reward needs a discriminator: init_from=[RUN@ema, RUN:discriminator]"
        )
    discriminator = cast(Discriminator, players["discriminator"])
    if not discriminator.marginal:
        raise UserError(
            "the discriminator reward judges images alone: it needs one of marginal pairing, and this one "
            "judges transitions"
        )
    return discriminator, cast(Generator, players["generator"])
