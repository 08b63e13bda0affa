"""DRaFT: gradients of a differentiable reward through the last steps of sampling (Clark et al. 2024).

    x_{K−n} by sampling without gradients,     x₀ by the last n steps with them,     L = −E[r(x₀)]

n = 1 is DRaFT-1, n = K AlignProp. Noise of the steps is a constant by counter. It climbs fastest of all and
departs farthest: pull, a judge that is refreshed, or few updates hold it back.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.models.codec import bounded
from lmsd.models.generator import Generator
from lmsd.objectives.base import Cast, Clock, Part, generator_of, mean_square
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, reference_of, still
from lmsd.ranks import gather
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Policy
from lmsd.types import Batch, Cond, Loss, Players, Turn


class DRaFT(Rewarded):
    """Climb a differentiable reward.

    policy: how images are drawn (tau = 0: DDIM); last: n steps with gradients; pull: weight of the squared
    distance per pixel of their means from the reference's. Raises UserError for a reward without gradients.

    Logs: reward, reward_failed, diversity, pull.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        *,
        last: int = 1,
        pull: float = 0.0,
        group: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        super().__init__(reward, group=group, refresh=refresh, patience=patience)
        if not reward.differentiable:
            raise UserError(f"draft: reward {reward.name} has no gradient: use grpo, ddpo or nft")
        if not 1 <= last <= policy.steps or pull < 0:
            raise UserError(f"draft: last={last} of {policy.steps} steps, and pull={pull} not negative")
        self.policy, self.last, self.pull = policy, last, pull

    @property
    def cast(self) -> Cast:
        """Judges, and the reference where it pulls."""
        return {
            **super().cast,
            **({"reference": Part(trained=False, like="generator")} if self.pull > 0 else {}),
        }

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns where they are due; one turn of the generator."""
        generator, table, asked = generator_of(players), self.open(clock, batch.x), self.asked(batch)
        yield from self.keep_up(players, batch, table, partial(self.draw, generator), rng)
        cond, null = conditions(generator, asked, guided=self.policy.guidance != 1)
        with still(generator):
            x = self.policy.start(generator, rng, batch.x.shape[1:]).to(batch.x.dtype)
            x = self._walk(generator, cond, null, x, rng, range(self.policy.steps - self.last))[0]
        yield Turn("generator", partial(self._loss, players, x, asked, cond, null, rng))

    def draw(self, generator: Generator, asked: Batch, rng: Rng) -> Tensor:
        """Images of the policy."""
        cond, null = conditions(generator, asked, guided=self.policy.guidance != 1)
        with still(generator), torch.no_grad():
            x = self.policy.start(generator, rng, asked.x.shape[1:]).to(asked.x.dtype)
            return self._walk(generator, cond, null, x, rng, range(self.policy.steps))[0]

    def _walk(
        self, generator: Generator, cond: Cond, null: Cond | None, x: Tensor, rng: Rng, steps: range
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """X after `steps`, and (where a step began, its mean) of each."""
        kernels, means = self.policy.kernels(generator.process), []
        for k in steps:
            mean = self.policy.mean(generator, cond, null, x_t=x, step=k, kernel=kernels[k], rng=rng)
            means.append((x, mean))
            x = mean + kernels[k].std * rng.at(k).normal(x.shape[1:], "step").to(x.dtype)
        return x, means

    def _loss(
        self, players: Players, x: Tensor, asked: Batch, cond: Cond, null: Cond | None, rng: Rng
    ) -> Loss:
        generator = generator_of(players)
        steps = range(self.policy.steps - self.last, self.policy.steps)
        with still(generator):
            x_0, means = self._walk(generator, cond, null, x, rng, steps)
        verdict = self.verdict(players, self.pulse.through(x_0), asked)
        whole = verdict.valid.view(-1, self.group).all(1).repeat_interleave(self.group)
        self.count(bool(gather(whole).any()))
        # A score that is NaN has a gradient that is NaN, which a weight of 0 would not stop.
        if x_0.requires_grad:
            rows = whole.view(-1, *[1] * (x_0.ndim - 1))
            x_0.register_hook(lambda slope: torch.where(rows, slope, 0.0))
        spread = diversity(bounded(x_0, generator.bound), self.group)
        reward = torch.where(whole, verdict.value, 0.0).to(x_0.dtype)
        reward = reward + 0.0 * x_0.flatten(1).sum(1)  # a graph where it failed
        value, logs = -reward.mean(), {}
        if self.pull > 0:
            kernels = self.policy.kernels(generator.process)
            away = torch.zeros_like(reward)
            for k, (start, mean) in zip(steps, means, strict=True):
                with torch.no_grad():
                    other = self.policy.mean(
                        reference_of(players), cond, null, x_t=start, step=k, kernel=kernels[k], rng=rng
                    )
                away = away + mean_square(mean - other)
            value, logs = value + self.pull * away.mean(), {"pull": away.mean()}
        valid, count = verdict.valid.to(reward.dtype), whole.sum()
        mean = torch.where(count > 0, reward.sum() / count.clamp(min=1), torch.nan)
        logs |= {"reward": mean, "reward_failed": 1 - valid.mean(), **spread}
        return Loss(value, {name: number.detach().float() for name, number in logs.items()})
