"""A method is a script of turns.

    for turn in objective.turns(players, batch, clock, rng):    code between two turns runs without gradients
        loss = turn.loss()                                      gradients on for turn.player alone
        one optimizer update of turn.player

`turns` is called once per micro-batch and the iterators advance in lockstep, so every rank and every
micro-batch must yield the same players in the same order: decide by the clock, never by the data. Every term
is a mean over samples of something that depends on that sample alone; so K equal micro-batches average
exactly to the large batch.

An objective declares who plays, a `Part` for each role, and the run's setup builds the players accordingly:

    {"generator": Part(), "fake": Part(like="generator"), "teacher": Part(trained=False, like="generator")}
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.features.cnn import Extractor
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.process.gaussian import Process
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Players, Turn

JumpLaw: TypeAlias = Callable[[Rng, Process], tuple[Tensor, Tensor]]
"""(rng, process) → (s [B], t [B]): the law of jumps t → s."""


@dataclass(frozen=True)
class Part:
    """One role of a cast: whether it learns, and where it comes from.

    trained: it has an optimizer; else it is frozen. like: the role of which it begins as a twin, sharing what
    is frozen there; None: it is built from the node of its own name in the configuration. fresh: a twin with
    new weights. given: arguments that the method decides, for those constructors of its node that take them;
    stacked: images that it sees together, along the channels. needs: for a role that cannot do without
    trained weights, what to say if none are given (`init_from`); None: it may begin as it is built. fixed: a
    twin that nothing ever moves, not even the method: of a tuned generator, the base with its adapters off.

    Raises UserError for a twin with arguments of its own.
    """

    trained: bool = True
    like: str | None = None
    fresh: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    stacked: int = 1
    needs: str | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.fixed and (self.like is None or self.trained):
            raise UserError("a fixed part is a twin that does not learn: like=ROLE, trained=False")
        if self.like is None and self.fresh:
            raise UserError("a part is fresh as the twin of another: name that one, like=ROLE")
        if self.like is not None and (self.given or self.stacked > 1):
            raise UserError(f"a twin of {self.like!r} is built as that one is: leave given and stacked out")


Cast: TypeAlias = Mapping[str, Part]
"""The parts of a method by role, in the order of their optimizers."""


def trained(parts: Cast) -> tuple[str, ...]:
    """The roles that have an optimizer, in the order of the cast."""
    return tuple(role for role, part in parts.items() if part.trained)


@dataclass(frozen=True)
class Facts:
    """What a method may know before it begins.

    captions: the distinct captions of the train split, sorted, possibly none; held_out: makes a batch of
    images that no player is trained on, None without val shards; players: the cast, as built; classifier:
    (width, seed) → lmsd-cnn of the train split, trained once and kept; None where nobody can.
    """

    captions: Sequence[str]
    held_out: Callable[[], Batch | None]
    players: Players
    classifier: Callable[[int, int], Extractor] | None = None


class Objective(Protocol):
    """A training method.

    Only `turns` has to be written. The rest defaults to a method that is led by its generator, needs to know
    nothing of the data, has no health to report and no state.
    """

    @property
    def cast(self) -> Cast:
        """Who plays."""
        return {"generator": Part()}

    @property
    def lead(self) -> str:
        """The role whose updates the clock counts, and which is averaged, sampled and scored."""
        return "generator"

    @property
    def proxy(self) -> str | None:
        """The training metric, higher is better, that may be raised at the cost of what it stands for."""
        return None

    def prepare(self, facts: Facts) -> None:
        """Learn what it must know about data and players, once, and refuse what it cannot work with."""
        return

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """Yield the updates that one micro-batch asks for, in order; `batch.x` is encoded already."""
        ...

    @torch.no_grad()
    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """Its health on images that may be held out, scalars by name; called at every evaluation."""
        return {}

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """What a line of training metrics says is wrong with the game, as a clause; None for nothing."""
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """What must survive a restart: tensors and plain Python only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        return


SURE, STILL = 0.9995, 1e-7
"""The accuracy above which, and the gradient norm below which, a discriminator teaches nothing."""


def useless_discriminator(metrics: Mapping[str, float]) -> str | None:
    """`Objective.collapsed` for a game with a discriminator: right or wrong on everything, or without a
    gradient; or the generator makes the same image of every noise.

    A discriminator that plays alone (a head start) should be right on everything, so that does not count.
    """
    if "generator/grad_norm" not in metrics:
        return None
    accuracy = metrics.get("discriminator/d_accuracy", 0.5)
    if accuracy >= SURE or accuracy <= 1 - SURE:
        return f"the discriminator has been {'right' if accuracy > 0.5 else 'wrong'} on everything"
    if metrics.get("generator/diversity", 1.0) < STILL:
        return "the generator has made the same of every noise"
    if metrics.get("discriminator/grad_norm", 1.0) < STILL:
        return "the discriminator has had no gradient"
    return None


def generator_of(players: Players, role: str = "generator") -> Generator:
    """The player of a role, typed as a generator."""
    return cast(Generator, players[role])


def discriminator_of(players: Players) -> Discriminator:
    """The player "discriminator", typed."""
    return cast(Discriminator, players["discriminator"])


def caption_drop(rng: Rng, probability: float) -> Tensor:
    """Whose caption is dropped, bool [B]: u < p, one number per sample (classifier-free guidance)."""
    return rng.uniform((), "drop") < probability


def latent(generator: Generator, rng: Rng, like: Tensor, *, tag: str = "z") -> Tensor | None:
    """Latent noise z ~ N(0, I) [B, z_dim] in the dtype of `like`; None for a generator without z."""
    return rng.normal((generator.z_dim,), tag).to(like.dtype) if generator.z_dim else None


def standard_normal(rng: Rng, like: Tensor, tag: str) -> Tensor:
    """Noise ε ~ N(0, I) in the shape and dtype of `like` [B, ...]."""
    return rng.normal(like.shape[1:], tag).to(like.dtype)


def mean_square(error: Tensor) -> Tensor:
    """‖error‖²/D of each sample, [B, ...] → [B]."""
    return error.square().flatten(1).mean(1)


def repeat(value: Tensor, times: int) -> Tensor:
    """`times` copies, one after the other along the batch."""
    return torch.cat([value] * times)


def means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each value, detached, for the logs."""
    return {name: value.detach().mean() for name, value in values.items()}
