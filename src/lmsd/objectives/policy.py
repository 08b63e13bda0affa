"""Policy gradients on the chain: what ddpo and grpo have in common.

    maximize  E[ r(x₀) ] − β Σ_k E[ KL_k ],       KL_k = KL( π_θ(·|x_k) ‖ π_ref(·|x_k) )

    Δ_k = log π_θ(x_{k+1}|x_k) − log π_old(x_{k+1}|x_k)                              nats
    A_k = score(r) − β Σ_{j>k} KL_j, centered in its group                           kl_form = path
    L   = Σ_k max( −A_k ρ_k, −A_k clip(ρ_k, e^{−c}, e^{c}) ) + β KL_k,  ρ_k = e^{Δ_k}

The gradient of L at θ = θ_old is that of the objective, exactly: a step answers for its own KL through the
last term and for the later ones, whose states it chooses, through A_k. With kl_form = step (Flow-GRPO,
DanceGRPO) it does not answer for the later ones, and the optimum is another than p_ref exp(r/β).

units: "nats" as above; "mean", the field's other convention, divides Δ, KL and c by the D numbers of an
image, so that c = 1 nat is its clip range of 1/D. With one update a batch ρ = 1 and nothing is clipped.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import UserError, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.advantages import Normalization, Normalizer, Round, Table
from lmsd.objectives.base import Cast, Clock, Part, generator_of
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, reference_of, still
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Policy, log_prob, path_kl
from lmsd.types import Batch, Cond, Loss, Players, Trajectory, Turn

KLForm: TypeAlias = Literal["path", "step"]
Units: TypeAlias = Literal["nats", "mean"]
Surrogate: TypeAlias = Literal["clip", "reinforce"]
_FARTHEST = 60.0
"""Nats of a step's log-ratio that are told apart; exp(89) is no number in float32."""


class PolicyGradient(Rewarded):
    """Learn from the rewards of whole paths; see the module for the formulas.

    policy: how paths are drawn; normalize, bound, memory, least: see `Normalizer`; surrogate: "clip", or
    "reinforce", −A log π; clip: c in nats, None: never; kl: β; kl_form, units: as above. epochs: passes over
    a batch of paths; parts: updates in a pass, each on every parts-th group. budget: nats of path KL from the
    reference, above which rewards count nothing and only the KL does, None: no bound. window: how many steps
    in a row are learned from, None: all; it moves on by `stride` every `every` updates and begins anew.

    Logs: reward, reward_std, reward_failed, groups_without_spread, diversity, kl (nats a path), ratio (the
    largest |Δ|), clipped.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        *,
        group: int,
        normalize: Normalization,
        surrogate: Surrogate = "clip",
        clip: float | None = 1.0,
        kl: float = 0.0,
        kl_form: KLForm = "path",
        units: Units = "nats",
        bound: float | None = 5.0,
        memory: int = 32,
        least: int = 16,
        epochs: int = 1,
        parts: int = 1,
        budget: float | None = None,
        window: int | None = None,
        stride: int = 1,
        every: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        super().__init__(reward, group=group, refresh=refresh, patience=patience)
        self.policy, self.surrogate, self.clip = policy, surrogate, clip
        self.kl, self.kl_form, self.units, self.budget = kl, kl_form, units, budget
        self.normalizer = Normalizer(normalize, bound=bound, memory=memory, least=least)
        self.epochs, self.parts = epochs, parts
        self.window, self.stride, self.every = window, stride, every
        self._check()

    def _check(self) -> None:
        one_of("policy gradient", "surrogate", self.surrogate, Surrogate)
        one_of("policy gradient", "kl_form", self.kl_form, KLForm)
        one_of("policy gradient", "units", self.units, Units)
        if min(self.epochs, self.parts, self.stride, self.every) < 1 or self.kl < 0:
            raise UserError(
                f"policy gradient: epochs={self.epochs}, parts={self.parts}, stride={self.stride}, "
                f"every={self.every} must be at least 1 and kl={self.kl} not negative"
            )
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"policy gradient: clip={self.clip} nats must be above 0; null: never")
        if self.window is not None and not 1 <= self.window <= self.policy.steps:
            raise UserError(f"policy gradient: window={self.window} of {self.policy.steps} steps")

    @property
    def refers(self) -> bool:
        """Whether a reference is needed."""
        return self.kl > 0 or self.budget is not None

    @property
    def cast(self) -> Cast:
        """Judges, and the reference where the KL is looked at."""
        return {
            **super().cast,
            **({"reference": Part(trained=False, like="generator")} if self.refers else {}),
        }

    def steps_at(self, clock: Clock) -> tuple[int, ...] | None:
        """The window of this update; None: all steps."""
        if self.window is None:
            return None
        still = self.window == 1 and self.policy.last_std == 0  # nothing to learn from the last step alone
        places = max(0, self.policy.steps - still - self.window) // self.stride + 1
        first = clock.updates // self.every % places * self.stride
        return tuple(range(first, first + self.window))

    # -- the script -----------------------------------------------------------------------------------------

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns where they are due; a rollout; epochs · parts turns of the generator."""
        generator, table = generator_of(players), self.open(clock, batch.x)
        asked, window = self.asked(batch), self.steps_at(clock)
        if len(batch) % (self.group * self.parts):
            raise UserError(
                f"{len(batch)} samples in a micro-batch of a rank do not make {self.parts} equal parts of "
                f"whole groups of {self.group}: batch_size must be a multiple of group x parts x devices x "
                "micro_batches"
            )
        yield from self.keep_up(players, batch, table, partial(self.draw, generator), rng)
        cond, null = conditions(generator, asked, guided=self.policy.guidance != 1)
        with still(generator):
            path = self.policy.rollout(
                generator, cond, null, rng=rng, shape=batch.x.shape[1:], window=window, dtype=_wide(batch.x)
            )
            others = self._reference(players, path, cond, null, rng)
        images = self.score(players, path.images, asked, table, kl=_kl(path, others))
        spread = diversity(images, self.group)
        for _ in range(self.epochs):
            for part in range(self.parts):
                rows = self._rows(asked, part)
                loss = partial(self._loss, generator, path, others, cond, null, rng, rows, table, spread)
                yield Turn("generator", loss)

    def draw(self, generator: Generator, asked: Batch, rng: Rng) -> Tensor:
        """Images of the policy, for judges to learn from."""
        cond, null = conditions(generator, asked, guided=self.policy.guidance != 1)
        with still(generator):
            path = self.policy.rollout(
                generator, cond, null, rng=rng, shape=asked.x.shape[1:], dtype=_wide(asked.x)
            )
        return path.images

    def _rows(self, asked: Batch, part: int) -> Tensor:
        """The samples of every parts-th group, by the group's number in the stream."""
        number = asked.position.div(self.group, rounding_mode="floor")
        return (number % self.parts == part).nonzero()[:, 0]

    def _reference(
        self, players: Players, path: Trajectory, cond: Cond, null: Cond | None, rng: Rng
    ) -> list[Tensor] | None:
        if not self.refers:
            return None
        return self.policy.means(reference_of(players), cond, null, path=path, rng=rng)

    # -- the loss --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def advantages(self, table: Table) -> Tensor:
        """A [n,k] of every sample and learned step; 0 for rewards where the KL budget is used up."""
        score = self.normalizer(table)
        weight = table.weight
        self.pulse.differ(score, weight)
        self.count(bool(weight.sum() > 0))
        spent = (weight * table.kl.sum(1)).sum() / weight.sum().clamp(min=1)
        if self.budget is not None and float(spent) > self.budget:
            score = torch.zeros_like(score)
        value = score[:, None].expand_as(table.kl)
        if self.kl > 0 and self.kl_form == "path":
            later = table.kl.flip(1).cumsum(1).flip(1) - table.kl
            value = value - self.kl * table.against_others(later)
        return value * weight[:, None]

    def _loss(
        self,
        generator: Generator,
        path: Trajectory,
        others: list[Tensor] | None,
        cond: Cond,
        null: Cond | None,
        rng: Rng,
        rows: Tensor,
        round: Round,
        spread: Mapping[str, Tensor],
    ) -> Loss:
        table, advantages = round.settle(self.advantages)
        places = table.rows(rng.position[rows])
        advantage, weight = advantages[places].to(path.x.dtype), table.weight[places].to(path.x.dtype)
        if len(rows) < len(path):
            path, rng = path.rows(rows), Rng(rng.seed, rng.position[rows])
            cond, null = cond.map(lambda v: v[rows]), None if null is None else null.map(lambda v: v[rows])
            others = None if others is None else [mean[rows] for mean in others]
        with still(generator):
            means = self.policy.means(generator, cond, null, path=path, rng=rng)
        size = path.x[0, 0].numel() if self.units == "mean" else 1
        total, apart, clipped, kl = torch.zeros_like(weight), [], [], torch.zeros_like(weight)
        for j, (k, mean) in enumerate(zip(path.steps, means, strict=True)):
            mean = mean.to(path.x.dtype)
            own = self.pulse.through(mean)
            delta = log_prob(path.x[:, k + 1], own, path.std[j]) - path.log_prob[:, j]
            gain, cut = self._surrogate(advantage[:, j], delta, size)
            total = total - gain
            if others is not None:
                nats = path_kl(mean, others[j].to(mean.dtype), path.std[j])
                total, kl = total + self.kl * nats / size, kl + nats.detach()
            apart.append(delta.detach().abs().max())
            clipped.append(cut)
        logs = table.logs() | dict(spread) | {"ratio": torch.stack(apart).max()}
        logs["clipped"] = torch.stack(clipped).mean()
        if others is not None:
            logs["kl"] = kl.mean()
        return Loss((weight * total).mean(), {name: value.float() for name, value in logs.items()})

    def _surrogate(self, advantage: Tensor, delta: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """What a step gains, [b], and the share of samples whose ratio is clipped."""
        delta = delta / size
        if self.surrogate == "reinforce":
            return advantage * delta, torch.zeros((), device=delta.device)
        ratio = delta.clamp(
            max=_FARTHEST
        ).exp()  # beyond, the slope of a clipped ratio would be 0 times infinity
        if self.clip is None:
            return advantage * ratio, torch.zeros((), device=delta.device)
        bound = self.clip / size
        inside = delta.clamp(-bound, bound).exp()
        gain = torch.minimum(advantage * ratio, advantage * inside)
        return gain, (gain != advantage * ratio).float().mean()

    # -- states ----------------------------------------------------------------------------------------------

    def state_dict(self) -> Mapping[str, Any]:
        """The base's, and the prompts' last rewards."""
        return {**super().state_dict(), "normalizer": self.normalizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state_dict`."""
        super().load_state_dict(state)
        self.normalizer.load_state_dict(state["normalizer"])


def _wide(x: Tensor) -> torch.dtype:
    """Paths are kept in float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def _kl(path: Trajectory, others: list[Tensor] | None) -> Tensor:
    """KL of every learned step from the reference, [B,k] nats; 0 where there is none."""
    if others is None:
        return torch.zeros_like(path.log_prob)
    pairs = zip(path.mean.unbind(1), others, path.std, strict=True)
    return torch.stack([path_kl(mean, other.to(mean.dtype), std) for mean, other, std in pairs], 1)
