"""Policy gradients on the chain.

    DDPO_SF, DDPO_IS    Black et al. 2024: advantages by the prompt's own last rewards; REINFORCE, or clipped
    Flow-GRPO           Liu et al. 2025: groups of one caption, normalize = global, KL to the reference
    DanceGRPO           Xue et al. 2025: normalize = group, no KL
    MixGRPO             Li et al. 2025: policy.ode, windows of four steps

    maximize  E[ r(x₀) ] − β Σ_k E[ KL_k ],       KL_k = KL( π_θ(·|x_k) ‖ π_ref(·|x_k) )

    Δ_k = log π_θ(x_{k+1}|x_k) − log π_old(x_{k+1}|x_k)                              nats
    A_k = score(r) − β Σ_{j>k} KL_j, centered in its group                           form = path
    L   = Σ_k max( −A_k ρ_k, −A_k clip(ρ_k, e^{−c}, e^{c}) ) + β KL_k,  ρ_k = e^{Δ_k}

At θ = θ_old the gradient of L is exactly that of the objective: a step pays for its own KL through the last
term, and for the later ones, whose states it chooses, through A_k. With form = step (Flow-GRPO, DanceGRPO) it
does not pay for the later ones, and the optimum differs from p_ref exp(r/β).

units: "nats" as above; "mean", the field's other convention, divides Δ, KL and c by the D numbers of an
image, so that c = 1 nat is its clip range of 1/D. With one update per batch ρ = 1 and nothing is clipped.

With normalize = center, form = path and a policy with τ = 1 from α_T = 0 the optimum is known,
p_ref(x₀|c) exp(r(x₀)/β)/Z: rewards and β are in the same nats.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import UserError, When, one_of
from lmsd.models.generator import Generator
from lmsd.objectives.advantages import Normalizer, Round, Table
from lmsd.objectives.base import generator_of, means
from lmsd.objectives.rewarded import Refresh, Rewarded, conditions, diversity, still
from lmsd.rewards import Reward
from lmsd.rng import Rng
from lmsd.sampling import Policy, Settings, log_prob, path_kl
from lmsd.types import Batch, Clock, Cond, Loss, Players, Trajectory, Turn

KLForm: TypeAlias = Literal["path", "step"]
Units: TypeAlias = Literal["nats", "mean"]
Surrogate: TypeAlias = Literal["clip", "reinforce"]
_FARTHEST = 60.0
"""Where a step's log-ratio is clamped, in nats; exp(89) overflows in float32."""


class Update:
    """How a batch of paths is used: `epochs` passes of `minibatches_per_epoch` updates each.

    surrogate: clip, or reinforce, −A log π; clip: c in nats, None: never; units: see the module; epochs:
    passes over a batch of paths; minibatches_per_epoch: updates in a pass, each on its share of the groups.

    Raises UserError for values out of range, and for REINFORCE with several updates on one batch, which would
    be off-policy.
    """

    def __init__(
        self,
        surrogate: Surrogate = "clip",
        *,
        clip: Annotated[float | None, When("surrogate", ("clip",))] = 1.0,
        units: Units = "nats",
        epochs: int = 1,
        minibatches_per_epoch: int = 1,
    ) -> None:
        one_of("policy gradient", "surrogate", surrogate, Surrogate)
        one_of("policy gradient", "units", units, Units)
        if min(epochs, minibatches_per_epoch) < 1:
            raise UserError(
                f"policy gradient: epochs={epochs} and minibatches_per_epoch={minibatches_per_epoch} must be "
                "at least 1"
            )
        if clip is not None and clip <= 0:
            raise UserError(f"policy gradient: clip={clip} nats must be above 0; null: never")
        if surrogate == "reinforce" and epochs * minibatches_per_epoch > 1:
            raise UserError(
                f"policy gradient: reinforce takes one update a batch, not {epochs * minibatches_per_epoch}: "
                "set epochs=1 and minibatches_per_epoch=1, or surrogate=clip"
            )
        self.surrogate, self.clip, self.units = surrogate, clip, units
        self.epochs, self.minibatches_per_epoch = epochs, minibatches_per_epoch

    def gain(self, advantage: Tensor, delta: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """The gain of a step with log-ratio delta, [b], and the share of samples whose ratio is clipped."""
        delta = delta / size
        if self.surrogate == "reinforce":
            return advantage * delta, torch.zeros((), device=delta.device)
        # Without this clamp the slope of a clipped ratio could be 0 times infinity.
        ratio = delta.clamp(max=_FARTHEST).exp()
        if self.clip is None:
            return advantage * ratio, torch.zeros((), device=delta.device)
        bound = self.clip / size
        inside = delta.clamp(-bound, bound).exp()
        gain = torch.minimum(advantage * ratio, advantage * inside)
        return gain, (gain != advantage * ratio).float().mean()


class Reference:
    """The KL of paths from the reference: what it costs, and how large it may become.

    weight: β, per nat; form: path or step, see the module; budget: nats of path KL above which rewards no
    longer count and only the KL does, None: unlimited. Raises UserError for a weight below 0.
    """

    def __init__(self, weight: float = 0.0, *, form: KLForm = "path", budget: float | None = None) -> None:
        one_of("policy gradient", "form", form, KLForm)
        if weight < 0:
            raise UserError(f"policy gradient: reference.weight={weight} must not be negative")
        self.weight, self.form, self.budget = weight, form, budget
        if form != "path" and not self.asked:
            raise UserError(f"policy gradient: reference.form={form} without a weight or budget does nothing")

    @property
    def asked(self) -> bool:
        """Whether the KL is computed."""
        return self.weight > 0 or self.budget is not None


class Windows:
    """Which steps of a path are learned from: `size` in a row, shifted by `stride` every `every` updates.

    size: None for all steps; stride: steps that the window moves by, back to the start after the last place;
    every: updates between two moves. Raises UserError for values out of range.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        stride: Annotated[int, When("size")] = 1,
        every: Annotated[int, When("size")] = 1,
    ) -> None:
        if min(stride, every) < 1 or (size is not None and size < 1):
            raise UserError(
                f"policy gradient: windows: size={size}, stride={stride}, every={every} must be at least 1"
            )
        self.size, self.stride, self.every = size, stride, every

    def at(self, updates: int, steps: int) -> tuple[int, ...] | None:
        """The window of an update, in paths with `steps` steps that may be learned from; None: all."""
        if self.size is None:
            return None
        places = max(0, steps - self.size) // self.stride + 1
        first = updates // self.every % places * self.stride
        return tuple(range(first, first + self.size))


class PolicyGradient(Rewarded):
    """Learn from the rewards of whole paths; see the module for the formulas.

    policy, settings: how paths are drawn; advantages: makes scores of rewards; update, reference, windows:
    see each class; group: samples per caption; refresh: how a judge keeps up; patience: the run ends after so
    many consecutive batches without a usable group.

    Logs: reward, reward_std, reward_failed, groups_without_spread, diversity, kl (nats a path), ratio (the
    largest |Δ|), clipped. Raises UserError for a window of more steps than a path has.
    """

    def __init__(
        self,
        policy: Policy,
        reward: Reward,
        *,
        settings: Settings,
        advantages: Normalizer | None = None,
        update: Update | None = None,
        reference: Reference | None = None,
        windows: Windows | None = None,
        group: int = 1,
        refresh: Refresh | None = None,
        patience: int = 25,
    ) -> None:
        self.policy, self.update = policy, update or Update()
        self.reference, self.windows = reference or Reference(), windows or Windows()
        super().__init__(
            reward,
            sampler=policy,
            settings=settings,
            normalizer=advantages or Normalizer("prompt"),
            twins=("reference",) if self.reference.asked else (),
            group=group,
            refresh=refresh,
            patience=patience,
        )
        if policy.ode and self.windows.size is None:
            raise UserError("policy gradient: policy.ode=true is about steps outside windows.size: give one")
        if self.windows.size is not None and self.windows.size > settings.steps:
            raise UserError(f"policy gradient: window={self.windows.size} of {settings.steps} steps")

    def steps_at(self, clock: Clock) -> tuple[int, ...] | None:
        """The window of this update; None: all steps."""
        # If the last step has no noise, there is nothing to learn from it alone.
        idle = self.windows.size == 1 and self.policy.last_std == 0
        return self.windows.at(clock.updates, self.settings.steps - idle)

    # -- the script -----------------------------------------------------------------------------------------

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The judge's turns if they are due; a rollout; epochs · minibatches turns of the generator."""
        generator, table = generator_of(players), self.open(clock, batch.x)
        asked, window = self.asked(batch), self.steps_at(clock)
        if len(batch) % (self.group * self.update.minibatches_per_epoch):
            raise UserError(
                f"{len(batch)} samples in a micro-batch of a rank do not make "
                f"{self.update.minibatches_per_epoch} equal parts of whole groups of {self.group}: "
                "batch_size must be a multiple of group x minibatches_per_epoch x devices x micro_batches"
            )
        yield from self.keep_up(players, batch, table, rng)
        cond, null = conditions(generator, asked, guided=self.settings.guided)
        with still(generator):
            path = self.policy.rollout(
                generator, cond, null, settings=self.settings, rng=rng, shape=batch.x.shape[1:],
                window=window, dtype=torch.promote_types(batch.x.dtype, torch.float32),
            )  # fmt: skip
            others = None
            if self.reference.asked:
                others = self.policy.means(
                    generator_of(players, "reference"), cond, null, settings=self.settings, path=path, rng=rng
                )
        images = self.score(players, path.images, asked, table, kl=_kl(path, others))
        spread = diversity(images, self.group)
        for _ in range(self.update.epochs):
            for part in range(self.update.minibatches_per_epoch):
                rows = self._rows(asked, part)
                loss = partial(self._loss, generator, path, others, cond, null, rng, rows, table, spread)
                yield Turn("generator", loss)

    def _rows(self, asked: Batch, part: int) -> Tensor:
        """The samples of the groups whose turn it is, by the group's number in the stream."""
        number = asked.position.div(self.group, rounding_mode="floor")
        return (number % self.update.minibatches_per_epoch == part).nonzero()[:, 0]

    # -- the loss --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def advantages(self, table: Table) -> Tensor:
        """A [n,k] of every sample and learned step; without rewards once the KL budget is used up."""
        score, weight = self.scored(table), table.weight
        spent = (weight * table.kl.sum(1)).sum() / weight.sum().clamp(min=1)
        if self.reference.budget is not None and float(spent) > self.reference.budget:
            score = torch.zeros_like(score)
        value = score[:, None].expand_as(table.kl)
        if self.reference.weight > 0 and self.reference.form == "path":
            later = table.kl.flip(1).cumsum(1).flip(1) - table.kl
            value = value - self.reference.weight * table.against_others(later)
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
            moved = self.policy.means(generator, cond, null, settings=self.settings, path=path, rng=rng)
        size = path.x[0, 0].numel() if self.update.units == "mean" else 1
        total, apart, clipped, kl = torch.zeros_like(weight), [], [], torch.zeros_like(weight)
        for j, (k, mean) in enumerate(zip(path.steps, moved, strict=True)):
            mean = mean.to(path.x.dtype)
            own = self.pulse.through(mean)
            delta = log_prob(path.x[:, k + 1], own, path.std[j]) - path.log_prob[:, j]
            gain, cut = self.update.gain(advantage[:, j], delta, size)
            total = total - gain
            if others is not None:
                nats = path_kl(mean, others[j].to(mean.dtype), path.std[j])
                total, kl = total + self.reference.weight * nats / size, kl + nats.detach()
            apart.append(delta.detach().abs().max())
            clipped.append(cut)
        logs = table.logs() | dict(spread) | {"ratio": torch.stack(apart).max()}
        logs["clipped"] = torch.stack(clipped)
        if others is not None:
            logs["kl"] = kl
        return Loss((weight * total).mean(), means(logs))


def _kl(path: Trajectory, others: list[Tensor] | None) -> Tensor:
    """KL of every learned step from the reference, [B,k] nats; 0 without a reference."""
    if others is None:
        return torch.zeros_like(path.log_prob)
    pairs = zip(path.mean.unbind(1), others, path.std, strict=True)
    return torch.stack([path_kl(mean, other.to(mean.dtype), std) for mean, other, std in pairs], 1)
