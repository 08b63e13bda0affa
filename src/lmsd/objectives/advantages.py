"""From rewards to advantages, over all micro-batches and all ranks.

    center    A_i = r_i − mean of the group's others      unbiased, and in the reward's unit: nats stay nats
    group     A_i = (r_i − mean_group)/(std_group + δ)    Shao et al. 2024 (GRPO); groups of one: as global
    global    A_i = (r_i − mean_group)/(std_all + δ)      Liu et al. 2025 (Flow-GRPO); of one: − mean_all
    prompt    A_i = (r_i − mean_p)/(std_p + δ)            Black et al. 2024 (DDPO): p's last rewards

A group is N consecutive samples that share a caption. Every micro-batch and rank holds whole groups; their
rewards are put together, in the order of the samples' positions, before anything is computed, so the result
does not depend on how the batch is split. A group in which a reward failed has weight 0.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import Tensor

from lmsd.errors import UserError, When, one_of
from lmsd.ranks import gather
from lmsd.types import Batch

Normalization: TypeAlias = Literal["center", "group", "global", "prompt"]
_DELTA = 1e-4


@dataclass(frozen=True)
class Table:
    """All scores of one global batch, sorted by position, in groups of `size` consecutive rows.

    position, key of the prompt: int64 [n]; reward [n]; valid: bool [n]; kl: nats of each learned step [n,k].
    """

    position: Tensor
    key: Tensor
    reward: Tensor
    valid: Tensor
    kl: Tensor
    size: int

    @property
    def weight(self) -> Tensor:
        """1 for rows of groups with all their scores, else 0; [n], float."""
        whole = self.valid.view(-1, self.size).all(1)
        return whole.repeat_interleave(self.size).to(self.reward.dtype)

    def by_group(self, value: Tensor) -> Tensor:
        """At every row the mean over its group; [n,...] → [n,...]."""
        groups = value.view(-1, self.size, *value.shape[1:])
        return groups.mean(1).repeat_interleave(self.size, dim=0)

    def against_others(self, value: Tensor) -> Tensor:
        """Value minus the mean of its group's others, N/(N − 1) (v − mean); v itself in groups of one."""
        if self.size == 1:
            return value
        return (value - self.by_group(value)) * (self.size / (self.size - 1))

    def rows(self, position: Tensor) -> Tensor:
        """The rows of these positions."""
        return torch.searchsorted(self.position, position)

    def logs(self) -> dict[str, Tensor]:
        """Means over what has a score: reward, its spread, groups without spread, failures."""
        weight = self.weight
        total = weight.sum().clamp(min=1)
        mean = (weight * self.reward).sum() / total
        groups = self.reward.view(-1, self.size)
        whole = weight.view(-1, self.size)[:, 0]
        still = (groups.amax(1) - groups.amin(1) < 1e-6).to(weight.dtype)
        found = {
            "reward": torch.where(weight.sum() > 0, mean, torch.nan),
            "reward_std": ((weight * (self.reward - mean).square()).sum() / total).sqrt(),
            "reward_failed": 1 - self.valid.to(weight.dtype).mean(),
        }
        return found if self.size == 1 else {**found, "groups_without_spread": mean_of(still, whole)}


@dataclass
class Round:
    """What the micro-batches of one global batch collect; settled once the last has added its share.

    images: on the clock when it began; size: of a group; refresh: whether judges learn in it; calibrated,
    counted, blended: what has already been done, once for all micro-batches.
    """

    images: int
    size: int
    refresh: bool = False
    calibrated: bool = False
    counted: bool = False
    blended: bool = False
    shares: list[tuple[Tensor, ...]] = field(default_factory=list)
    table: Table | None = None
    result: Tensor | None = None

    def add(self, batch: Batch, reward: Tensor, valid: Tensor, kl: Tensor | None = None) -> None:
        """Add one micro-batch's scores [b]; kl [b,k]."""
        kl = reward.new_zeros(len(reward), 1) if kl is None else kl
        whole = torch.stack([batch.position, prompt_keys(batch).to(reward.device), valid.long()], 1)
        numbers = torch.cat([reward[:, None].double(), kl.double()], 1)
        self.shares.append((whole, numbers))

    def settle(self, advantages: Callable[[Table], Tensor]) -> tuple[Table, Tensor]:
        """The table of all shares on all ranks, and the advantages [n] or [n,k] of its rows; made once."""
        if self.table is None or self.result is None:
            whole, numbers = (gather(torch.cat(column)) for column in zip(*self.shares, strict=True))
            order = whole[:, 0].argsort()
            whole, numbers = whole[order], numbers[order]
            self.table = Table(
                whole[:, 0].contiguous(),
                whole[:, 1],
                numbers[:, 0],
                whole[:, 2].bool(),
                numbers[:, 1:],
                self.size,
            )
            self.result = advantages(self.table)
        return self.table, self.result


def prompt_keys(batch: Batch) -> Tensor:
    """A number for what was asked of each sample, int64 [B], the same in every process."""
    if batch.text is not None:
        words: Sequence[str] = batch.text
    elif batch.label is not None:
        words = [str(label) for label in batch.label.tolist()]
    else:
        words = [""] * len(batch)
    known = {
        word: int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest()) for word in set(words)
    }
    return torch.tensor([known[word] for word in words], dtype=torch.int64)


class Normalizer:
    """Rewards → scores of mean 0 by one of the rules above.

    normalize: the rule; bound: largest |score|, None: unlimited; history, min_history: for the rule "prompt",
    how many of a prompt's last rewards count, and from how many on; before that the batch's mean and standard
    deviation stand in. Raises UserError for values out of range.
    """

    def __init__(
        self,
        normalize: Normalization,
        *,
        bound: Annotated[float | None, When("normalize", ("group", "global", "prompt"))] = 5.0,
        history: Annotated[int, When("normalize", ("prompt",))] = 32,
        min_history: Annotated[int, When("normalize", ("prompt",))] = 16,
    ) -> None:
        one_of("advantages", "normalize", normalize, Normalization)
        if bound is not None and bound <= 0:
            raise UserError(f"advantages: bound={bound} must be above 0; null: none")
        self.rule: Normalization = normalize
        self.bound, self.history, self.min_history = bound, history, min_history
        self.seen: dict[int, list[float]] = {}

    def __call__(self, table: Table) -> Tensor:
        """Scores [n], 0 where the weight is 0."""
        reward, weight = table.reward, table.weight
        if self.rule == "prompt":
            score = self._by_prompt(table)
        elif self.rule == "center":
            score = table.against_others(reward)
        else:
            score = (reward - self._baseline(table)) / self._scale(table)
        if self.bound is not None and self.rule != "center":
            score = score.clamp(-self.bound, self.bound)
        return score * weight

    def _baseline(self, table: Table) -> Tensor:
        """The mean of the group, [n]; in groups of one, that of the batch."""
        if table.size > 1:
            return table.by_group(table.reward)
        return mean_of(table.reward, table.weight).expand_as(table.reward)

    def _scale(self, table: Table) -> Tensor:
        """What centered rewards are divided by, [n]."""
        apart = (table.reward - table.by_group(table.reward)).square()
        if self.rule == "group" and table.size > 1:
            return table.by_group(apart).sqrt() + _DELTA
        weight = table.weight
        everything = (weight * (table.reward - mean_of(table.reward, weight)).square()).sum()
        return ((everything / weight.sum().clamp(min=1)).sqrt() + _DELTA).expand_as(apart)

    def _by_prompt(self, table: Table) -> Tensor:
        weight = table.weight
        kept = weight > 0
        for key, reward in zip(table.key[kept].tolist(), table.reward[kept].tolist(), strict=True):
            past = self.seen.setdefault(key, [])
            past.append(reward)
            del past[: -self.history]
        mean = mean_of(table.reward, weight)
        std = ((weight * (table.reward - mean).square()).sum() / weight.sum().clamp(min=1)).sqrt()
        means, stds = mean.expand_as(weight).clone(), std.expand_as(weight).clone()
        for row, key in enumerate(table.key.tolist()):
            past = self.seen.get(key, [])
            if len(past) >= self.min_history:
                values = torch.tensor(past, dtype=torch.float64)
                means[row], stds[row] = values.mean(), values.std(correction=0)
        return (table.reward - means) / (stds + _DELTA)

    def state_dict(self) -> Mapping[str, Any]:
        """The prompts' last rewards."""
        return {"seen": {str(key): list(past) for key, past in self.seen.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.seen = {int(key): list(past) for key, past in state["seen"].items()}


def mean_of(value: Tensor, weight: Tensor) -> Tensor:
    """The mean over rows of weight 1; 0 if there are none."""
    return (weight * value).sum() / weight.sum().clamp(min=1)
