"""What all methods that learn from rewards share: prompts in groups, scores, judges, the reference.

    batch of B captions → B/N of them, N times each        group g = the N samples from position gN on
    x₀ ~ the method's own sampling                         no gradients
    r = reward(x₀, asked)                                  failures: weight 0, for the whole group
    every M updates: D learns on current samples, is calibrated on held-out pairs, p_ref ← p_θ

Rewards do not train the generator's text encoder: judges read the same code. Nets are always in eval mode, in
rollouts and in updates, so that both see the same function.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.models.codec import bounded
from lmsd.models.generator import Generator
from lmsd.objectives.advantages import Normalizer, Round, Table
from lmsd.objectives.base import (
    Cast,
    Facts,
    Objective,
    Part,
    discriminator_of,
    generator_of,
    means,
    standard_normal,
    useless_discriminator,
)
from lmsd.objectives.pulse import Pulse
from lmsd.objectives.terms import (
    difference_penalty,
    discriminator_loss,
    sign_right,
)
from lmsd.rewards import DiscriminatorReward, Reward, Verdict, WeightedSum, judge
from lmsd.rng import Rng, fold
from lmsd.sampling import Sampler, Settings, sample
from lmsd.types import Batch, Clock, Cond, Loss, Players, Turn

_FAKES, _CALIBRATION = 1, 0  # streams of random numbers beside the rollout's own


_UNTRAINED = {
    "discriminator": "the reward is a discriminator that does not learn here: give a trained one, "
    "init_from=[RUN@ema,RUN:discriminator], let it learn, "
    "objective.refresh={_target_: lmsd.objectives.rewarded.Refresh}, or take another reward"
}
"""The ways out if a frozen judge has learned nothing."""


@contextmanager
def still(*modules: nn.Module) -> Iterator[None]:
    """Eval mode for a while: no dropout, whose mask would differ between rollout and update."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, before, strict=True):
            module.train(mode)


def conditions(generator: Generator, asked: Batch, *, guided: bool) -> tuple[Cond, Cond | None]:
    """The condition and, if guidance needs it, the null condition; both without gradients."""
    with torch.no_grad():
        cond = generator.condition(asked)
        nothing = torch.ones(len(asked), dtype=torch.bool, device=asked.position.device)
        return cond, generator.condition(asked, nothing) if guided else None


def stream(rng: Rng, number: int) -> Rng:
    """Another stream of random numbers for the same samples; a rollout uses up the turns of the first."""
    return Rng(int(fold(rng.seed, number).item()), rng.position)


class Refresh:
    """The judge keeps up: every `every` updates of the generator, `turns` updates of the discriminator.

    It learns from relativistic pairs of a batch's images and the policy's images of the same captions, at the
    levels that the reward judges at, with finite-difference penalties (γ/2)(R1 + R2) of width sigma. renew:
    the reference becomes the current generator, so that D is again log p_data/p_ref.
    """

    def __init__(
        self, *, every: int = 20, turns: int = 10, gamma: float = 0.1, sigma: float = 0.1, renew: bool = True
    ) -> None:
        if every < 1 or turns < 1:
            raise UserError(f"refresh: every={every} and turns={turns} must be at least 1")
        self.every, self.turns, self.gamma, self.sigma, self.renew = every, turns, gamma, sigma, renew

    def loss(
        self, players: Players, batch: Batch, fakes: Tensor, *, levels: Sequence[float], rng: Rng
    ) -> Loss:
        """D's loss on one batch."""
        generator, discriminator = generator_of(players), discriminator_of(players)
        with torch.no_grad():
            cond = generator.condition(batch)
        choice = rng.integer(0, len(levels), (), "level")
        t = torch.tensor(levels, device=fakes.device)[choice]
        eps = standard_normal(rng, fakes, "judge_eps")
        process = generator.process
        clean = (t == 0.0).view(-1, *[1] * (fakes.ndim - 1))
        pair = [torch.where(clean, x, process.noise(x, t, eps)) for x in (batch.x, fakes)]
        step = self.sigma * standard_normal(rng, fakes, "judge_fd")
        rows = cond.map(lambda value: torch.cat([value] * 4))
        x = torch.cat([*pair, *(side + step for side in pair)])
        real, fake, *moved = discriminator(x, None, t.repeat(4), t.repeat(4), rows).chunk(4)
        penalty = sum(
            difference_penalty(near, logits, self.sigma)
            for near, logits in zip(moved, (real, fake), strict=True)
        )
        value = discriminator_loss("relativistic", real, fake)
        right = sign_right("relativistic", real, fake)
        logs = {"adversary": value, "d_accuracy": right, "logit_gap": real - fake}
        return Loss((value + 0.5 * self.gamma * penalty).mean(), means(logs))


class Rewarded(Objective):
    """Base of policy gradients, nft, dpo and draft.

    reward: see `lmsd.rewards`; sampler, settings: how images are drawn; normalizer: makes scores of rewards,
    for methods that use scores; twins: frozen roles that begin as the generator; group: N samples per
    caption; refresh: how a discriminator keeps up, None: it is frozen; patience: the run ends after so many
    consecutive batches without a usable group. held_out: images with captions that no player was trained on,
    to calibrate a discriminator's temperature.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        sampler: Sampler | None,
        settings: Settings,
        normalizer: Normalizer | None = None,
        twins: Sequence[str] = (),
        group: int,
        refresh: Refresh | None,
        patience: int,
    ) -> None:
        if group < 1 or patience < 1:
            raise UserError(f"group={group} and patience={patience} must be at least 1")
        self.reward, self.group, self.refresh, self.patience = reward, group, refresh, patience
        self.sampler, self.settings, self.normalizer, self.twins = sampler, settings, normalizer, tuple(twins)
        self.held_out: Batch | None = None
        self._real: Batch | None = None  # the same, as they are diffused
        self.pulse = Pulse()
        self._round: Round | None = None
        self._barren = 0
        self._refreshed = -1
        self._problem = "no reward"
        if refresh is not None and not self._discriminators():
            raise UserError(f"refresh: reward {reward.name} asks no discriminator that could be refreshed")

    @property
    def cast(self) -> Cast:
        """Judges, of which the discriminator learns if it is refreshed, the generator and its twins."""
        learns = ("discriminator",) if self.refresh else ()
        judges = {
            name: Part(trained=name in learns, given={"marginal": True}, needs=_UNTRAINED.get(name))
            for name in self.reward.judges
        }
        renewed = self.refresh is not None and self.refresh.renew
        twins = {
            name: Part(trained=False, like="generator", fixed=name == "reference" and not renewed)
            for name in self.twins
        }
        return {**judges, "generator": Part(), **twins}

    @property
    def proxy(self) -> str | None:
        """The reward."""
        return "generator/reward"

    def prepare(self, facts: Facts) -> None:
        """Discriminators are calibrated on held-out images.

        Raises UserError for a generator of which only the text encoder moves, which rewards do not train.
        """
        generator = generator_of(facts.players)
        if not any(p.requires_grad for p in cast(nn.Module, generator.net).parameters()):
            raise UserError(
                "rewards do not train what reads the captions, and nothing else of this generator moves: "
                "take tuning=lora, or full"
            )
        if self._discriminators():
            self.held_out = facts.held_out()

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """generator/idle = 1 if nothing was learned from the reward in the first updates; else nothing."""
        return {} if self.pulse.sentence is None else {"generator/idle": torch.ones(())}

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """Whether a discriminator that keeps up teaches nothing."""
        return useless_discriminator(metrics)

    # -- a round -------------------------------------------------------------------------------------------

    def open(self, clock: Clock, like: Tensor) -> Round:
        """The round of this global batch, shared by all its micro-batches; like: a tensor on the device."""
        if self._round is None or self._round.images != clock.images:
            told = self.pulse.check(clock.updates, like)
            if told is not None:
                warnings.warn(told, stacklevel=2)
            self._round = Round(clock.images, self.group)
            last = self._refreshed
            due = last < 0 or (self.refresh is not None and clock.updates - last >= self.refresh.every)
            self._round.refresh = due and bool(self._discriminators())
            if self._round.refresh:
                self._refreshed = clock.updates
        return self._round

    def asked(self, batch: Batch) -> Batch:
        """The batch in which every group is asked for its first sample's caption; extra["group"]: int64 [B].

        Raises UserError if groups do not divide it.
        """
        count = len(batch)
        if count % self.group:
            raise UserError(
                f"{count} samples in a micro-batch of a rank do not make whole groups of {self.group}: "
                "batch_size must be a multiple of group x devices x micro_batches"
            )
        lead = torch.arange(count, device=batch.position.device) // self.group * self.group
        return replace(batch.rows(lead), position=batch.position, extra={"group": batch.position[lead]})

    def draw(self, generator: Generator, asked: Batch, rng: Rng) -> Tensor:
        """A policy's samples of what is asked, in eval mode and without gradients; not decoded."""
        assert self.sampler is not None
        cond, null = conditions(generator, asked, guided=self.settings.guided)
        with still(generator):
            return sample(
                generator, cond, null, sampler=self.sampler, settings=self.settings, rng=rng,
                shape=asked.x.shape[1:], dtype=asked.x.dtype,
            )  # fmt: skip

    def score(
        self, players: Players, x: Tensor, asked: Batch, table: Round, *, kl: Tensor | None = None
    ) -> Tensor:
        """Judge samples and add their scores to the round; returns the samples within their bound."""
        x = bounded(x, generator_of(players).bound)
        verdict = self.verdict(players, x, asked)
        table.add(asked, verdict.value, verdict.valid, kl)
        return x

    def verdict(self, players: Players, x: Tensor, asked: Batch) -> Verdict:
        """The reward of the images of x; judges of what is diffused find it in extra["diffused"]."""
        generator = generator_of(players)
        diffused = {"diffused": bounded(x, generator.bound)}
        asked = replace(asked, extra={**asked.extra, **diffused})
        verdict = judge(self.reward, generator.decode(x), asked, players)
        self._problem = verdict.problem or self._problem
        return verdict

    def scored(self, table: Table) -> Tensor:
        """The normalized scores [n] of a round; takes note of whether there is anything to learn."""
        assert self.normalizer is not None
        score = self.normalizer(table)
        self.pulse.differ(score, table.weight)
        self.count(bool(table.weight.sum() > 0))
        return score

    def count(self, usable: bool) -> None:
        """Note whether a batch, or one of its micro-batches, had a usable group.

        Raises UserError after `patience` consecutive batches without one.
        """
        counted = self._round is not None and self._round.counted
        if usable:
            self._barren = 0
        elif not counted:
            self._barren += 1
        if self._round is not None:
            self._round.counted = True
        if self._barren >= self.patience:
            raise UserError(
                f"{self._barren} batches in a row had no group with a score; the last problem: "
                f"{self._problem}"
            )

    # -- judges that keep up -------------------------------------------------------------------------------

    def _discriminators(self) -> list[DiscriminatorReward]:
        terms = self.reward.terms.values() if isinstance(self.reward, WeightedSum) else [self.reward]
        return [term for term in terms if isinstance(term, DiscriminatorReward)]

    def keep_up(
        self, players: Players, batch: Batch, table: Round, rng: Rng, *, policy: str = "generator"
    ) -> Iterator[Turn]:
        """Turns of the discriminator if they are due, then calibration and a renewed reference.

        policy: the role whose images it learns from.
        """
        if not table.refresh:
            return
        judges, drawing = self._discriminators(), generator_of(players, policy)
        for turn in range(self.refresh.turns if self.refresh else 0):
            assert self.refresh is not None
            here = stream(rng, _FAKES + turn)
            fakes = bounded(self.draw(drawing, batch, here), generator_of(players).bound)
            loss = partial(self.refresh.loss, players, batch, fakes, levels=judges[0].levels, rng=here)
            yield Turn("discriminator", loss)
        if table.calibrated:
            return
        table.calibrated = True
        if self.held_out is not None:
            generator = generator_of(players)
            if self._real is None:
                self._real = generator.encode(self.held_out.to(batch.x.device))
            here = stream(Rng(rng.seed, self._real.position), _CALIBRATION)
            fakes = bounded(self.draw(drawing, self._real, here), generator.bound)
            for reward in judges:
                reward.calibrate(fakes, self._real, players)
        if self.refresh and self.refresh.renew and "reference" in players:
            players["reference"].load_state_dict(players["generator"].state_dict())

    # -- states --------------------------------------------------------------------------------------------

    def state_dict(self) -> Mapping[str, Any]:
        """The state of the reward, the prompts' last rewards, and the counts."""
        scores = {} if self.normalizer is None else {"normalizer": self.normalizer.state_dict()}
        return {
            **scores,
            "reward": dict(self.reward.state_dict()),
            "barren": self._barren,
            "refreshed": self._refreshed,
            "pulse": dict(self.pulse.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.reward.load_state_dict(state["reward"])
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["normalizer"])
        self._barren, self._refreshed = int(state["barren"]), int(state["refreshed"])
        if "pulse" in state:  # not in earlier checkpoints
            self.pulse.load_state_dict(state["pulse"])
        self._round = None


def diversity(images: Tensor, group: int) -> dict[str, Tensor]:
    """{"diversity": √(E ‖x − x'‖²/D)} over pairs of one group, which falls as a policy collapses.

    In groups of one, over pairs of different captions; empty for a single image. images: decoded or not.
    """
    images = images.detach()
    groups = images.flatten(1).view(-1, group if group > 1 else len(images), images[0].numel())
    return {"diversity": (2 * groups.var(1)).mean().sqrt()} if groups.shape[1] > 1 else {}
