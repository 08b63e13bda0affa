"""DiffusionNFT: learn from rewards on the forward process (Zheng et al. 2025).

    x₀ ~ the old policy, by any sampler;  r ∈ [0, 1] its optimality;  x_t = α x₀ + σ ε,  y the net's target
    f₊ = (1 − β) f_old + β f_θ,      f₋ = (1 + β) f_old − β f_θ
    L  = E[ r ‖f₊ − y‖² + (1 − r) ‖f₋ − y‖² ]

It needs neither log-probabilities nor an SDE, so one-step and deterministic students learn too. For an f_old
that is E[y|x_t] under its own samples the optimum is

    f_θ = f_old + (2/β) Cov(r, y | x_t)

r = ½ + clip(A/A_max, −1, 1)/2, where A is the score of the reward. weighting: none as above, on the net's own
target; adaptive: on errors of x̂₀, each divided by its mean absolute size, as in the paper.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.errors import UserError, one_of
from lmsd.objectives.advantages import Normalizer, Round, Table
from lmsd.objectives.base import Clock, generator_of, latent, mean_square, means, standard_normal
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, still
from lmsd.process.times import Times
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Sampler, Settings
from lmsd.types import Batch, Loss, Players, Turn

Weighting: TypeAlias = Literal["none", "adaptive"]


class Contrast:
    """How better samples are set against worse ones.

    beta: β; weighting: see the module; updates: turns on one batch of samples, each with its own times and
    noise; reference_weight: of ‖f_θ − f_ref‖²/D. Raises UserError for values out of range.
    """

    def __init__(
        self,
        beta: float = 1.0,
        *,
        weighting: Weighting = "adaptive",
        updates: int = 1,
        reference_weight: float = 1e-4,
    ) -> None:
        one_of("nft", "weighting", weighting, Weighting)
        if beta <= 0 or updates < 1:
            raise UserError(f"nft: beta={beta} must be above 0 and updates={updates} 1 or more")
        self.beta, self.weighting, self.updates = beta, weighting, updates
        self.reference_weight = reference_weight


class OldPolicy:
    """How the sampling policy follows the one that learns: old ← η old + (1 − η) θ after each batch.

    decay, ramp: η = min(ramp · updates, decay). Raises UserError for values out of range.
    """

    def __init__(self, decay: float = 0.5, *, ramp: float = 0.001) -> None:
        if not 0 <= decay <= 1 or ramp < 0:
            raise UserError(f"nft: decay={decay} must be in [0, 1] and ramp={ramp} not negative")
        self.decay, self.ramp = decay, ramp

    @torch.no_grad()
    def follow(self, old: nn.Module, new: nn.Module, updates: int) -> None:
        """Move one step towards the new policy; buffers are copied."""
        eta = min(self.ramp * updates, self.decay)
        for kept, fresh in zip(old.parameters(), new.parameters(), strict=True):
            kept.lerp_(fresh, 1 - eta)
        for held, current in zip(old.buffers(), new.buffers(), strict=True):
            held.copy_(current)


class NFT(Rewarded):
    """Contrast better and worse samples of the old policy, at any time of the forward process.

    sampler, settings: how the old policy samples; times: law of the training times (Grid for few-step
    students); contrast, old: see each class; advantages: A, whose bound is A_max; group: samples per caption;
    refresh: how a judge keeps up; patience: the run ends after so many consecutive batches without a usable
    group.

    Logs: reward, reward_std, reward_failed, groups_without_spread, diversity, positive, negative, drift.
    Raises UserError for advantages without a bound.
    """

    def __init__(
        self,
        sampler: Sampler,
        reward: Reward,
        *,
        times: Times,
        settings: Settings,
        contrast: Contrast | None = None,
        advantages: Normalizer | None = None,
        old: OldPolicy | None = None,
        group: int = 16,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        self.times, self.contrast, self.old = times, contrast or Contrast(), old or OldPolicy()
        normalizer = advantages or Normalizer("global")
        if normalizer.bound is None:
            raise UserError("nft: rewards become shares of advantages.bound, which is null: set it")
        self.bound = normalizer.bound
        super().__init__(
            reward,
            sampler=sampler,
            settings=settings,
            normalizer=normalizer,
            twins=("old", "reference") if self.contrast.reference_weight > 0 else ("old",),
            group=group,
            refresh=refresh,
            patience=patience,
        )

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns if they are due; samples; `updates` turns of the generator; the old policy."""
        old, table, asked = generator_of(players, "old"), self.open(clock, batch.x), self.asked(batch)
        yield from self.keep_up(players, batch, table, rng, policy="old")
        images = self.score(players, self.draw(old, asked, rng), asked, table)
        spread = diversity(images, self.group)
        for turn in range(self.contrast.updates):
            here = rng.at(self.settings.steps + turn)
            yield Turn("generator", partial(self._loss, players, images, asked, here, table, spread))
        if not table.blended:
            table.blended = True
            self.old.follow(old, generator_of(players), clock.updates)

    def optimality(self, table: Table) -> Tensor:
        """The rewards r in [0, 1] of all samples, [n]."""
        return 0.5 + 0.5 * (self.scored(table) / self.bound).clamp(-1, 1)

    def _loss(
        self,
        players: Players,
        images: Tensor,
        asked: Batch,
        rng: Rng,
        round: Round,
        spread: Mapping[str, Tensor],
    ) -> Loss:
        table, optimality = round.settle(self.optimality)
        places = table.rows(rng.position)
        good, weight = optimality[places].to(images.dtype), table.weight[places].to(images.dtype)
        value, logs = self.terms(players, images, asked, rng, good)
        return Loss((weight * value).mean(), means({**table.logs(), **spread, **logs}))

    def terms(
        self, players: Players, images: Tensor, asked: Batch, rng: Rng, good: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L of each sample [B], and its parts; good: r [B] in [0, 1]."""
        generator = generator_of(players)
        old = generator_of(players, "old")
        t = self.times(rng, generator.process)
        eps = standard_normal(rng, images, "eps")
        x_t, z = generator.process.noise(images, t, eps), latent(generator, rng, images)
        cond, _ = conditions(generator, asked, guided=False)
        with still(generator):
            new = generator(x_t, t, cond, z, output="native")
        with torch.no_grad():
            before = old(x_t, t, cond, z, output="native")
        beta, pull = self.contrast.beta, self.contrast.reference_weight
        # Noted on each side, which keeps the order in which the gradients of new are summed.
        positive = self.pulse.through((1 - beta) * before + beta * new)
        negative = self.pulse.through((1 + beta) * before - beta * new)
        if self.contrast.weighting == "none":
            target = generator.target(images, eps, t)
            plus, minus = mean_square(positive - target), mean_square(negative - target)
        else:
            plus, minus = (_adaptive(generator.to_x0(side, x_t, t) - images) for side in (positive, negative))
        value = good * plus + (1 - good) * minus
        logs = {"positive": plus, "negative": minus, "drift": mean_square(new - before)}
        if pull > 0:
            with torch.no_grad():
                anchor = generator_of(players, "reference")(x_t, t, cond, z, output="native")
            value = value + pull * mean_square(new - anchor)
        return value, logs


def _adaptive(error: Tensor) -> Tensor:
    """‖error‖²/D over its own mean absolute size, which gets no gradient; [B,...] → [B]."""
    size = error.detach().abs().flatten(1).mean(1)
    return mean_square(error) / size.clamp(min=1e-5)
