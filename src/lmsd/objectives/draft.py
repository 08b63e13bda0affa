"""DRaFT: gradients of a differentiable reward through the last steps of sampling (Clark et al. 2024).

    x_{K−n} by sampling without gradients,     x₀ by the last n steps with them,     L = −E[r(x₀)]

n = 1 is DRaFT-1, n = K AlignProp. The counter fixes the noise of the steps. Of all methods it climbs fastest
and departs farthest: reference_weight, a refreshed judge, or few updates hold it back.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.models.codec import bounded
from lmsd.models.generator import Generator
from lmsd.objectives.base import generator_of, mean_square, means
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, still
from lmsd.ranks import gather
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Policy, Settings, Step, begin, walk
from lmsd.types import Batch, Clock, Cond, Loss, Players, Turn


class DRaFT(Rewarded):
    """Climb a differentiable reward.

    policy, settings: how images are drawn (tau = 0: DDIM); last: n, the steps with gradients;
    reference_weight: of the squared distance per pixel between their means and the reference's; group:
    samples per caption; refresh: how a judge keeps up; patience: the run ends after so many consecutive
    batches without a usable group. Raises UserError for a reward without gradients.

    Logs: reward, reward_failed, diversity, pull.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        *,
        settings: Settings,
        last: int = 1,
        reference_weight: float = 0.0,
        group: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        super().__init__(
            reward,
            sampler=policy,
            settings=settings,
            twins=("reference",) if reference_weight > 0 else (),
            group=group,
            refresh=refresh,
            patience=patience,
        )
        if not reward.differentiable:
            raise UserError(f"draft: reward {reward.name} has no gradient: use grpo, ddpo or nft")
        if policy.ode:
            raise UserError("draft: no window of steps is learned from here, of which policy.ode=true speaks")
        if not 1 <= last <= settings.steps or reference_weight < 0:
            raise UserError(
                f"draft: last={last} of {settings.steps} steps, and reference_weight={reference_weight} not "
                "negative"
            )
        self.policy, self.last, self.reference_weight = policy, last, reference_weight

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns if they are due; one turn of the generator."""
        generator, table, asked = generator_of(players), self.open(clock, batch.x), self.asked(batch)
        yield from self.keep_up(players, batch, table, rng)
        cond, null = conditions(generator, asked, guided=self.settings.guided)
        with still(generator):
            x = begin(generator, self.settings, rng, batch.x.shape[1:], batch.x.dtype)
            for step in islice(self._walk(generator, cond, null, x, rng), self.settings.steps - self.last):
                x = step.x_s
        yield Turn("generator", partial(self._loss, players, x, asked, cond, null, rng))

    def _walk(
        self, generator: Generator, cond: Cond, null: Cond | None, x: Tensor, rng: Rng, start: int = 0
    ) -> Iterator[Step]:
        return walk(
            generator, cond, null, x, sampler=self.policy, settings=self.settings, rng=rng, start=start
        )

    def _loss(
        self, players: Players, x: Tensor, asked: Batch, cond: Cond, null: Cond | None, rng: Rng
    ) -> Loss:
        generator = generator_of(players)
        first = self.settings.steps - self.last
        with still(generator):
            steps = list(self._walk(generator, cond, null, x, rng, first))
        x_0 = steps[-1].x_s
        verdict = self.verdict(players, self.pulse.through(x_0), asked)
        whole = verdict.valid.view(-1, self.group).all(1).repeat_interleave(self.group)
        self.count(bool(gather(whole).any()))
        # A NaN score has a NaN gradient, which a weight of 0 would not stop.
        if x_0.requires_grad:
            rows = whole.view(-1, *[1] * (x_0.ndim - 1))
            x_0.register_hook(lambda slope: torch.where(rows, slope, 0.0))
        spread = diversity(bounded(x_0, generator.bound), self.group)
        reward = torch.where(whole, verdict.value, 0.0).to(x_0.dtype)
        reward = reward + 0.0 * x_0.flatten(1).sum(1)  # a graph, even if all scores failed
        value, logs = -reward.mean(), {}
        if self.reference_weight > 0:
            reference, away = generator_of(players, "reference"), torch.zeros_like(reward)
            starts = [x, *(step.x_s for step in steps)]
            for k, (start, step) in enumerate(zip(starts, steps, strict=False), first):
                with torch.no_grad():
                    other = next(self._walk(reference, cond, null, start, rng, k)).mean
                away = away + mean_square(step.mean - other)
            value, logs = value + self.reference_weight * away.mean(), {"pull": away.mean()}
        valid, count = verdict.valid.to(reward.dtype), whole.sum()
        mean = torch.where(count > 0, reward.sum() / count.clamp(min=1), torch.nan)
        logs |= {"reward": mean, "reward_failed": 1 - valid.mean(), **spread}
        return Loss(value, means(logs))
