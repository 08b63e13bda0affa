"""A method is a script of turns.

    for turn in objective.turns(players, batch, clock, rng):    what runs between two turns has no gradients
        loss = turn.loss()                                      gradients on for turn.player alone
        one optimizer update of turn.player

`turns` is called once a micro-batch and its iterators are advanced in lockstep, so every rank and every
micro-batch must yield the same players in the same order: decide by the clock, never by the data. Every term
is a mean over samples of what depends on that sample alone; then K equal micro-batches average exactly to the
large batch.

Who plays is the objective's to declare, a `Part` for each role; whoever sets a run up builds them from it:

    {"generator": Part(), "fake": Part(like="generator"), "teacher": Part(trained=False, like="generator")}
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.process.gaussian import Process
from lmsd.rng import Rng
from lmsd.types import Batch, Players, Turn

JumpLaw: TypeAlias = Callable[[Rng, Process], tuple[Tensor, Tensor]]
"""(rng, process) → (s [B], t [B]): the law of jumps t → s."""


class Clock(Protocol):
    """How far a run is, in images seen and in updates of the generator; the same on every rank."""

    @property
    def images(self) -> int:
        """How many images were seen, all ranks together."""

    @property
    def updates(self) -> int:
        """How many updates the generator has had."""

    @property
    def played(self) -> Mapping[str, int]:
        """Updates of every player so far; who never played is not in it."""

    @property
    def total_images(self) -> int:
        """How many images the run will see."""

    @property
    def progress(self) -> float:
        """The share images / total_images, in [0, 1]."""

    @property
    def furthest(self) -> float:
        """`progress`, or that of the run which this one extends, where it is more: phases begin by it."""


@dataclass(frozen=True)
class Part:
    """One role of a cast: whether it learns, and where it comes from.

    trained: it has an optimizer; else it is frozen. like: a role that this one begins as a twin of, sharing
    what is frozen there; None: it is built from the configuration's node of its own name. fresh: a twin with
    new weights. given: arguments that the method decides, for those constructors of its node that take them;
    stacked: images that it looks at together, along the channels. needs: what to tell who gives a role that
    cannot do without them no weights (`init_from`); None: it may begin as it is built.

    Raises UserError for a part that is both a twin and told how to be built.
    """

    trained: bool = True
    like: str | None = None
    fresh: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    stacked: int = 1
    needs: str | None = None

    def __post_init__(self) -> None:
        if self.like is None and self.fresh:
            raise UserError("a part is fresh as the twin of another: name whose, like=ROLE")
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

    captions: the distinct ones of the train split, sorted, none where there are none; held_out: makes a batch
    of images that no player is trained on, None without val shards; players: its cast, as it was built.
    """

    captions: Sequence[str]
    held_out: Callable[[], Batch | None]
    players: Players


class Objective(Protocol):
    """A training method. `turns` is all it must write: the rest is that of a method led by its generator
    which needs to know nothing of the data, has no health to report and no state.
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
        """The training metric, higher is better, that it may raise at the cost of what it stands for."""
        return None

    def prepare(self, facts: Facts) -> None:
        """Take in what it must know of data and players, once, and refuse what it cannot play with."""
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
"""Accuracy from which, and norm of the gradient below which, a discriminator teaches nothing."""


def useless_discriminator(metrics: Mapping[str, float]) -> str | None:
    """`Objective.collapsed` of a game with a discriminator: it is right or wrong on all it sees, or has no
    gradient, or the generator makes the same whatever its noise.

    One that plays alone (a head start) is meant to be right on all, so such readings do not count.
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
    """The player of a role that is a generator, typed."""
    return cast(Generator, players[role])


def discriminator_of(players: Players) -> Discriminator:
    """The player "discriminator", typed."""
    return cast(Discriminator, players["discriminator"])


def caption_drop(rng: Rng, probability: float) -> Tensor:
    """Whose caption is dropped, bool [B]: u < p, one number a sample (classifier-free guidance)."""
    return rng.uniform((), "drop") < probability


def latent(generator: Generator, rng: Rng, like: Tensor, *, tag: str = "z") -> Tensor | None:
    """Latent noise z ~ N(0, I) [B, z_dim] in the type of `like`; None for a generator without."""
    return rng.normal((generator.z_dim,), tag).to(like.dtype) if generator.z_dim else None


def standard_normal(rng: Rng, like: Tensor, tag: str) -> Tensor:
    """Noise ε ~ N(0, I) in the shape and type of `like` [B, ...]."""
    return rng.normal(like.shape[1:], tag).to(like.dtype)


def mean_square(error: Tensor) -> Tensor:
    """‖error‖²/D of each sample, [B, ...] → [B]."""
    return error.square().flatten(1).mean(1)


def repeat(value: Tensor, times: int) -> Tensor:
    """`times` copies one after the other along the batch."""
    return torch.cat([value] * times)


def means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each value, detached, for the logs."""
    return {name: value.detach().mean() for name, value in values.items()}
