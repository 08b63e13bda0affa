"""Diffusion-DPO: preferences without a reward model in the loop (Wallace et al. 2024, eq. 14).

    e(x₀; f) = ‖f(x_t, t, c) − y‖²/D                                       same t and ε for a whole pair
    L = −log σ( −(β/2) [ (e(x^w; f_θ) − e(x^w; f_ref)) − (e(x^l; f_θ) − e(x^l; f_ref)) ] )

β stands for the paper's βTω(λ). Pairs come with the data (the batch's image is preferred over
extra["rejected"]), or the policy makes them: the best and the worst of a group by the reward.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.models.codec import bounded
from lmsd.objectives.advantages import mean_of
from lmsd.objectives.base import generator_of, latent, mean_square, means, standard_normal
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, still
from lmsd.process.times import Times
from lmsd.ranks import gather
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Sampler, Settings
from lmsd.types import Batch, Clock, Loss, Players, Turn


class DPO(Rewarded):
    """Learn which of two images is preferred.

    times: law of the times; beta: β; reward, sampler, settings, group: how pairs are made if the data have
    none; reward=None: the data must have them. updates: turns on one batch of pairs; refresh: how a judge
    keeps up; patience: the run ends after so many consecutive batches without a usable group.

    Logs: preference (share of pairs that the model gets right), margin; for pairs made by a reward also
    reward, reward_failed, diversity and reward_gap, the difference within pairs.
    """

    def __init__(
        self,
        times: Times,
        *,
        reward: Reward | None = None,
        sampler: Sampler | None = None,
        settings: Settings | None = None,
        group: int = 4,
        beta: float = 1000.0,
        updates: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        super().__init__(
            reward or Reward(),
            sampler=sampler,
            settings=settings or Settings(4),
            twins=("reference",),
            group=group,
            refresh=refresh,
            patience=patience,
        )
        if beta <= 0 or updates < 1:
            raise UserError(f"dpo: beta={beta} must be above 0 and updates={updates} at least 1")
        if reward is not None and (sampler is None or group < 2):
            raise UserError("dpo: pairs by a reward need a sampler and groups of two or more")
        self.times, self.judged, self.beta, self.updates = times, reward is not None, beta, updates

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns if they are due; pairs; `updates` turns of the generator."""
        if "rejected" in batch.extra:
            better, worse, asked = batch.x, batch.extra["rejected"], batch
            weight, facts = torch.ones(len(batch)), dict[str, Tensor]()
        elif self.judged:
            table = self.open(clock, batch.x)
            yield from self.keep_up(players, batch, table, rng)
            better, worse, asked, weight, facts = self._pairs(players, self.asked(batch), rng)
        else:
            raise UserError(
                "dpo: these data are read without pairs: data.images=[rejected] for shards of lmsd data "
                "votes, or a reward that makes them, reward@objective.reward=discriminator"
            )
        weight = weight.to(better)
        for turn in range(self.updates):
            here = Rng(rng.seed, asked.position, turn=self.settings.steps + turn)
            yield Turn("generator", partial(self._loss, players, better, worse, asked, here, weight, facts))

    def _pairs(
        self, players: Players, asked: Batch, rng: Rng
    ) -> tuple[Tensor, Tensor, Batch, Tensor, dict[str, Tensor]]:
        """Best and worst image of every group, what was asked, weights (0 for failed groups), and logs."""
        generator = generator_of(players)
        images = bounded(self.draw(generator, asked, rng), generator.bound)
        verdict = self.verdict(players, images, asked)
        scores, valid = verdict.value.view(-1, self.group), verdict.valid.view(-1, self.group).all(1)
        self.count(bool(gather(valid).any()))
        first = torch.arange(len(scores), device=scores.device) * self.group
        best, worst = first + scores.argmax(1), first + scores.argmin(1)
        gap, whole = scores.amax(1) - scores.amin(1), valid.to(scores.dtype)
        facts = {
            name: torch.where(valid.any(), mean_of(value, whole), torch.nan)
            for name, value in (("reward", scores.mean(1)), ("reward_gap", gap))
        }
        facts |= {"reward_failed": 1 - verdict.valid.float().mean(), **diversity(images, self.group)}
        return images[best], images[worst], asked.rows(first), (valid & (gap > 0)).float(), facts

    def _loss(
        self,
        players: Players,
        better: Tensor,
        worse: Tensor,
        asked: Batch,
        rng: Rng,
        weight: Tensor,
        facts: Mapping[str, Tensor],
    ) -> Loss:
        generator = generator_of(players)
        t = self.times(rng, generator.process).repeat(2)
        eps, z = standard_normal(rng, better, "eps").repeat(2, 1, 1, 1), latent(generator, rng, better)
        images = torch.cat([better, worse])
        x_t, target = generator.process.noise(images, t, eps), generator.target(images, eps, t)
        cond = conditions(generator, asked, guided=False)[0].map(lambda value: torch.cat([value] * 2))
        z = None if z is None else z.repeat(2, 1)
        with still(generator):
            native = self.pulse.through(generator(x_t, t, cond, z, output="native"))
            error = mean_square(native - target)
        with torch.no_grad():
            reference = generator_of(players, "reference")
            before = mean_square(reference(x_t, t, cond, z, output="native") - target)
        won, lost = (error - before).chunk(2)
        margin = -0.5 * self.beta * (won - lost)
        value = (weight * F.softplus(-margin)).mean()
        logs = {"preference": mean_of(margin > 0, weight), "margin": weight * margin, **facts}
        return Loss(value, means(logs))
