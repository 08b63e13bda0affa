"""What a reward is, and what happens when one fails.

    r = reward(images [B,C,H,W] in [-1,1], batch, judges)    [B], higher is better, any range

The batch carries what was asked for: captions, labels, and in extra["group"] which samples are compared. A
reward gets its own copy of the images. If it returns another shape, or numbers that are not finite, the
samples concerned have no score, the reason is reported once, and the run continues. The same happens if
foreign code raises, a function or a service, which a `RewardError` reports; any other exception of a reward
is our own fault and ends the run.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.types import Batch, Players

NOBODY: Players = {}


class RewardError(Exception):
    """Foreign code failed to judge a batch, which then has no scores."""

    @classmethod
    def of(cls, error: Exception) -> "RewardError":
        """What that code raised, in one line."""
        return cls(f"raised {type(error).__name__}: {' '.join(str(error).split())}")


class Reward:
    """A judge of images.

    judges: players, other than the generator, that it asks; differentiable: whether gradients reach images.
    """

    judges: tuple[str, ...] = ()
    differentiable: bool = False

    @property
    def name(self) -> str:
        """Its name in messages and logs."""
        return type(self).__name__

    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """Scores [B], float, of images [B,C,H,W] in [-1,1]; batch: what was asked for; players: judges."""
        raise NotImplementedError

    def state_dict(self) -> Mapping[str, object]:
        """What must survive a restart; nothing, unless the reward learns."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class Verdict:
    """Scores [B], 0 where there is none; which samples have one, bool [B]; what went wrong, if anything."""

    value: Tensor
    valid: Tensor
    problem: str | None = None


def judge(reward: Reward, images: Tensor, batch: Batch, players: Players = NOBODY) -> Verdict:
    """The scores of a reward that may fail; exceptions other than RewardError propagate."""
    seen = judged(reward, images, batch)
    count = len(images)
    try:
        value = reward(images.clone(), batch, players)
    except RewardError as error:
        return _failed(reward, count, str(error), images)
    if not isinstance(value, Tensor) or value.shape != (count,):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        return _failed(reward, count, f"returned {got} where scores [{count}] belong", images)
    if value.is_complex():
        return _failed(reward, count, "returned complex numbers where real ones belong", images)
    value = value.to(images.device, torch.promote_types(value.dtype, torch.float32))
    valid = value.isfinite() & seen
    problem = None
    if not bool(valid.all()):
        what = "scores" if bool(seen.all()) else "scores, or saw images,"
        problem = f"reward {reward.name} returned {int((~valid).sum())} of {count} {what} that are not finite"
        _tell(problem.split(" returned ")[0], problem)
    return Verdict(torch.where(valid, value, 0.0), valid, problem)


@explained
def judged(reward: Reward, images: Tensor, batch: Batch) -> Tensor:
    """Which images are finite, bool [B]. Raises UserError for other than one image a sample."""
    if not callable(reward) or images.ndim < 2 or len(images) != len(batch):
        raise UserError(
            f"a reward judges images [B,...], one a sample, not {list(images.shape)} of {len(batch)} by "
            f"{reward!r}"
        )
    return images.flatten(1).isfinite().all(dim=1)


def _failed(reward: Reward, count: int, reason: str, like: Tensor) -> Verdict:
    problem = f"reward {reward.name} {reason}"
    _tell(problem, problem)
    nobody = torch.zeros(count, dtype=torch.bool, device=like.device)
    return Verdict(torch.zeros(count, device=like.device), nobody, problem)


_told: set[str] = set()


def _tell(key: str, problem: str) -> None:
    """Warn once per process about each kind of problem."""
    if key not in _told:
        _told.add(key)
        warnings.warn(f"{problem}; groups without a score are left out", stacklevel=3)


class WeightedSum(Reward):
    """Σ_j w_j r_j; terms: rewards by name; weights: by the same names, 1 by default.

    Raises UserError for a weight without a term, and for no terms.
    """

    @explained
    def __init__(self, terms: Mapping[str, Reward], weights: Mapping[str, float] | None = None) -> None:
        self.terms = dict(terms)
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in self.terms}
        unknown = sorted(set(weights or {}) - set(self.terms))
        if unknown or not self.terms:
            raise UserError(
                f"reward: weights name {unknown} and the terms are {sorted(self.terms)}: name the same"
            )
        self.judges = tuple(dict.fromkeys(name for term in self.terms.values() for name in term.judges))
        self.differentiable = all(term.differentiable for term in self.terms.values())

    @property
    def name(self) -> str:
        """The terms and their weights."""
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())

    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """The weighted sum [B]; errors name the term in which they occur."""
        total = torch.zeros(len(images), device=images.device)
        for name, term in self.terms.items():
            try:
                value = term(images.clone(), batch, players)
            except RewardError as error:
                raise RewardError(f"term {name}: {error}") from error
            if value.shape != total.shape:
                raise RewardError(f"term {name}: returned {list(value.shape)}, not [{len(images)}]")
            if value.is_complex():
                raise RewardError(f"term {name}: returned complex numbers")
            total = total + self.weights[name] * value.to(total.device)
        return total

    def state_dict(self) -> Mapping[str, object]:
        """The terms' states by name."""
        return {name: dict(term.state_dict()) for name, term in self.terms.items()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The inverse of `state_dict`."""
        for name, term in self.terms.items():
            term.load_state_dict(cast(Mapping[str, object], state[name]))


class Function(Reward):
    """A user's function, (images [B,C,H,W] in [-1,1], captions) → scores [B]: a tensor or numbers.

    In a configuration: {_target_: lmsd.rewards.Function, function: {_target_: mine.score, _partial_: true}},
    with LMSD_ALLOW=mine. function: the node that names it; differentiable: whether its gradient reaches the
    images. Raises UserError for what cannot be called.
    """

    @explained
    def __init__(
        self,
        function: Callable[[Tensor, list[str]], Tensor | Sequence[float]],
        *,
        differentiable: bool = False,
    ) -> None:
        if not callable(function):
            raise UserError(
                f"reward: {function!r} is not a function; name one by its dotted path, _partial_: true"
            )
        self.function, self.differentiable = function, differentiable

    @property
    def name(self) -> str:
        """The function's own name."""
        inner = self.function.func if isinstance(self.function, partial) else self.function
        return str(getattr(inner, "__qualname__", type(inner).__name__))

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """The function's scores; numbers become a tensor. Raises RewardError if it fails."""
        try:
            scores = self.function(images, captions_of(batch))
            return scores if isinstance(scores, Tensor) else torch.as_tensor(scores, dtype=torch.float32)
        except (UserError, torch.OutOfMemoryError):  # the user can do something about these
            raise
        except Exception as error:
            raise RewardError.of(error) from error


@explained
def captions_of(batch: Batch) -> list[str]:
    """What was asked for in words: captions, or class numbers, or empty texts."""
    if batch.text is not None:
        return list(batch.text)
    if batch.label is not None:
        return [str(label) for label in batch.label.tolist()]
    return [""] * len(batch)
