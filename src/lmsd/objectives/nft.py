"""DiffusionNFT: learn from rewards on the forward process (Zheng et al. 2025).

    x₀ ~ the old policy, by any sampler;  r ∈ [0, 1] its optimality;  x_t = α x₀ + σ ε,  y the net's target
    f₊ = (1 − β) f_old + β f_θ,      f₋ = (1 + β) f_old − β f_θ
    L  = E[ r ‖f₊ − y‖² + (1 − r) ‖f₋ − y‖² ]

It needs no log-probabilities and no SDE, so one-step and deterministic students learn too. For an f_old that
is E[y|x_t] under its own samples the optimum is

    f_θ = f_old + (2/β) Cov(r, y | x_t)

r = ½ + clip(A/A_max, −1, 1)/2 with A the score of the reward. weighting: "none" as above, in the net's own
target; "adaptive": errors of x̂₀, each divided by its own mean absolute size, as in the paper.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.errors import UserError, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.advantages import Normalizer, Round, Table
from lmsd.objectives.base import Cast, Clock, Part, generator_of, latent, mean_square, standard_normal
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, draw, reference_of, still
from lmsd.process.times import Times
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Sampler, Settings
from lmsd.types import Batch, Loss, Players, Turn

Weighting: TypeAlias = Literal["none", "adaptive"]


class OldPolicy:
    """How the policy that draws follows the one that learns: old ← η old + (1 − η) θ after each batch.

    decay, ramp: η = min(ramp · updates, decay). Raises UserError for values out of range.
    """

    def __init__(self, decay: float = 0.5, *, ramp: float = 0.001) -> None:
        if not 0 <= decay <= 1 or ramp < 0:
            raise UserError(f"nft: decay={decay} must be in [0, 1] and ramp={ramp} not negative")
        self.decay, self.ramp = decay, ramp

    @torch.no_grad()
    def follow(self, old: nn.Module, new: nn.Module, updates: int) -> None:
        """One step after the new policy; buffers are copied."""
        eta = min(self.ramp * updates, self.decay)
        for kept, fresh in zip(old.parameters(), new.parameters(), strict=True):
            kept.lerp_(fresh, 1 - eta)
        for held, current in zip(old.buffers(), new.buffers(), strict=True):
            held.copy_(current)


class NFT(Rewarded):
    """Contrast better with worse samples of the old policy, at any time of the forward process.

    sampler, settings: how the old policy draws; times: law of the times it is learned at (Grid for few-step
    students); advantages: A, with A_max their bound; beta: β; weighting: as above; updates: turns on one
    batch of samples, each with its own times and noise; old: how the old policy follows; reference_weight: of
    ‖f_θ − f_ref‖²/D; group: samples of one caption; refresh: how a judge keeps up; patience: batches in a row
    without one usable group that end the run.

    Logs: reward, reward_std, reward_failed, groups_without_spread, diversity, positive, negative, drift.
    """

    def __init__(
        self,
        sampler: Sampler,
        reward: Reward,
        *,
        times: Times,
        settings: Settings,
        advantages: Normalizer | None = None,
        beta: float = 1.0,
        weighting: Weighting = "adaptive",
        updates: int = 1,
        old: OldPolicy | None = None,
        reference_weight: float = 1e-4,
        group: int = 16,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        super().__init__(reward, group=group, refresh=refresh, patience=patience)
        one_of("nft", "weighting", weighting, Weighting)
        self.normalizer = advantages or Normalizer("global")
        if beta <= 0 or updates < 1 or self.normalizer.bound is None:
            raise UserError(
                f"nft: beta={beta} must be above 0, updates={updates} 1 or more, and advantages need a bound"
            )
        self.sampler, self.times, self.settings = sampler, times, settings
        self.beta, self.weighting, self.updates = beta, weighting, updates
        self.old, self.reference_weight, self.bound = (
            old or OldPolicy(),
            reference_weight,
            self.normalizer.bound,
        )

    @property
    def cast(self) -> Cast:
        """Judges, the old policy, and the reference where it pulls."""
        twin = Part(trained=False, like="generator")
        return {**super().cast, "old": twin, **({"reference": twin} if self.reference_weight > 0 else {})}

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns where they are due; samples; `updates` turns of the generator; the old policy."""
        old, table, asked = (
            generator_of(players, "old"),
            self.open(clock, batch.x),
            self.asked(batch),
        )
        yield from self.keep_up(players, batch, table, partial(self.draw, old), rng)
        images = self.score(players, self.draw(old, asked, rng), asked, table)
        spread = diversity(images, self.group)
        for turn in range(self.updates):
            here = rng.at(self.settings.steps + turn)
            yield Turn("generator", partial(self._loss, players, images, asked, here, table, spread))
        if not table.blended:
            table.blended = True
            self.old.follow(old, generator_of(players), clock.updates)

    def draw(self, generator: Generator, asked: Batch, rng: Rng) -> Tensor:
        """What a policy makes of what is asked."""
        return draw(generator, asked, rng, sampler=self.sampler, settings=self.settings)

    def optimality(self, table: Table) -> Tensor:
        """The rewards r in [0, 1] of all samples, [n]."""
        weight = table.weight
        self.count(bool(weight.sum() > 0))
        score = self.normalizer(table)
        self.pulse.differ(score, weight)
        return 0.5 + 0.5 * (score / self.bound).clamp(-1, 1)

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
        value, logs = self.contrast(players, images, asked, rng, good)
        logs = table.logs() | dict(spread) | {name: number.detach().mean() for name, number in logs.items()}
        return Loss((weight * value).mean(), {name: number.float() for name, number in logs.items()})

    def contrast(
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
        # Noted side by side, so that the slopes of new are summed in the order of before.
        positive = self.pulse.through((1 - self.beta) * before + self.beta * new)
        negative = self.pulse.through((1 + self.beta) * before - self.beta * new)
        if self.weighting == "none":
            target = generator.target(images, eps, t)
            plus, minus = mean_square(positive - target), mean_square(negative - target)
        else:
            plus, minus = (_adaptive(generator.to_x0(side, x_t, t) - images) for side in (positive, negative))
        value = good * plus + (1 - good) * minus
        logs = {"positive": plus, "negative": minus, "drift": mean_square(new - before)}
        if self.reference_weight > 0:
            with torch.no_grad():
                anchor = reference_of(players)(x_t, t, cond, z, output="native")
            value = value + self.reference_weight * mean_square(new - anchor)
        return value, logs

    def state_dict(self) -> Mapping[str, Any]:
        """The base's; the old policy is a player and travels with the weights."""
        return {**super().state_dict(), "normalizer": self.normalizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state_dict`."""
        super().load_state_dict(state)
        self.normalizer.load_state_dict(state["normalizer"])


def _adaptive(error: Tensor) -> Tensor:
    """‖error‖²/D over its own mean absolute size, which is not differentiated; [B,...] → [B]."""
    size = error.detach().abs().flatten(1).mean(1)
    return mean_square(error) / size.clamp(min=1e-5)
