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
from lmsd.objectives.advantages import Normalization, Normalizer, Round, Table
from lmsd.objectives.base import Cast, Clock, Part, generator_of, latent, mean_square, standard_normal
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, reference_of, still
from lmsd.process.times import Times
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Sampler, sample
from lmsd.types import Batch, Loss, Players, Turn

Weighting: TypeAlias = Literal["none", "adaptive"]


class NFT(Rewarded):
    """Contrast better with worse samples of the old policy, at any time of the forward process.

    sampler, steps, guidance, interval, clamp: how the old policy draws; times: law of the times it is learned
    at (Grid for few-step students). beta: β; bound: A_max; normalize: see `Normalizer`; updates: turns on one
    batch of samples, each with its own times and noise. decay, ramp: after each batch old ← η old + (1 − η) θ
    with η = min(ramp · updates, decay). pull: weight of ‖f_θ − f_ref‖²/D. weighting: as above.

    Logs: reward, reward_std, reward_failed, groups_without_spread, diversity, positive, negative, drift.
    """

    def __init__(
        self,
        sampler: Sampler,
        reward: Reward,
        *,
        times: Times,
        steps: int,
        group: int = 16,
        guidance: float = 1.0,
        interval: tuple[float, float] | None = None,
        clamp: float | None = 1.0,
        beta: float = 1.0,
        bound: float = 5.0,
        normalize: Normalization = "global",
        updates: int = 1,
        decay: float = 0.5,
        ramp: float = 0.001,
        pull: float = 1e-4,
        weighting: Weighting = "adaptive",
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        super().__init__(reward, group=group, refresh=refresh, patience=patience)
        one_of("nft", "weighting", weighting, Weighting)
        if beta <= 0 or bound <= 0 or updates < 1 or not 0 <= decay <= 1 or ramp < 0:
            raise UserError(
                f"nft: beta={beta} and bound={bound} must be above 0, updates={updates} 1 or more, "
                f"decay={decay} in [0, 1] and ramp={ramp} not negative"
            )
        self.sampler, self.times, self.steps = sampler, times, steps
        self.guidance, self.clamp, self.beta, self.bound = guidance, clamp, beta, bound
        self.interval = None if interval is None else (float(interval[0]), float(interval[1]))
        self.normalizer = Normalizer(normalize, bound=None)
        self.updates, self.decay, self.ramp = updates, decay, ramp
        self.pull, self.weighting = pull, weighting

    @property
    def cast(self) -> Cast:
        """Judges, the old policy, and the reference where it pulls."""
        twin = Part(trained=False, like="generator")
        return {**super().cast, "old": twin, **({"reference": twin} if self.pull > 0 else {})}

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns where they are due; samples; `updates` turns of the generator; the old policy."""
        old, table, asked = (
            generator_of({"generator": players["old"]}),
            self.open(clock, batch.x),
            self.asked(batch),
        )
        yield from self.keep_up(players, batch, table, partial(self.draw, old), rng)
        images = self.score(players, self.draw(old, asked, rng), asked, table)
        spread = diversity(images, self.group)
        for turn in range(self.updates):
            here = rng.at(self.steps + turn)
            yield Turn("generator", partial(self._loss, players, images, asked, here, table, spread))
        if not table.flags.get("blended"):
            table.flags["blended"] = True
            blend(old, generator_of(players), min(self.ramp * clock.updates, self.decay))

    def draw(self, generator: Generator, asked: Batch, rng: Rng) -> Tensor:
        """Images of a policy."""
        cond, null = conditions(generator, asked, guided=self.guidance != 1)
        with still(generator):
            return sample(
                generator, cond, null, sampler=self.sampler, steps=self.steps, rng=rng,
                shape=asked.x.shape[1:], guidance=self.guidance, interval=self.interval, clamp=self.clamp,
                dtype=asked.x.dtype,
            )  # fmt: skip

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
        old = generator_of({"generator": players["old"]})
        t = self.times(rng, generator.process)
        eps = standard_normal(rng, images, "eps")
        x_t, z = generator.process.noise(images, t, eps), latent(generator, rng, images)
        cond, _ = conditions(generator, asked, guided=False)
        with still(generator):
            new = generator(x_t, t, cond, z, output="native")
        with torch.no_grad():
            before = old(x_t, t, cond, z, output="native")
        own = self.pulse.through(new)
        positive = (1 - self.beta) * before + self.beta * own
        negative = (1 + self.beta) * before - self.beta * own
        if self.weighting == "none":
            target = generator.target(images, eps, t)
            plus, minus = mean_square(positive - target), mean_square(negative - target)
        else:
            plus, minus = (_adaptive(generator.to_x0(side, x_t, t) - images) for side in (positive, negative))
        value = good * plus + (1 - good) * minus
        logs = {"positive": plus, "negative": minus, "drift": mean_square(new - before)}
        if self.pull > 0:
            with torch.no_grad():
                anchor = reference_of(players)(x_t, t, cond, z, output="native")
            value = value + self.pull * mean_square(new - anchor)
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


@torch.no_grad()
def blend(old: nn.Module, new: nn.Module, eta: float) -> None:
    """Old ← η old + (1 − η) new; buffers are copied."""
    for kept, fresh in zip(old.parameters(), new.parameters(), strict=True):
        kept.lerp_(fresh, 1 - eta)
    for held, current in zip(old.buffers(), new.buffers(), strict=True):
        held.copy_(current)
