"""A method is a script of turns.

    for turn in objective.turns(players, batch, clock, rng):    what runs between two turns has no gradients
        loss = turn.loss()                                      gradients on for turn.player alone
        one optimizer update of turn.player

`turns` is called once a micro-batch and its iterators are advanced in lockstep, so every rank and every
micro-batch must yield the same players in the same order: decide by the clock, never by the data. Every term
is a mean over samples of what depends on that sample alone; then K equal micro-batches average exactly to the
large batch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor

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


class Objective(Protocol):
    """A training method."""

    players: tuple[str, ...]
    """Who has an optimizer."""

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """Yield the updates that one micro-batch asks for, in order; `batch.x` is encoded already."""

    def state_dict(self) -> Mapping[str, Any]:
        """What must survive a restart: tensors and plain Python only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state_dict`."""


def generator_of(players: Players) -> Generator:
    """The player "generator", typed."""
    return cast(Generator, players["generator"])


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
