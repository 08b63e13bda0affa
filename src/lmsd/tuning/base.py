"""What may move in a pretrained generator, and what a checkpoint keeps of it.

    θ = (θ₀, φ)         θ₀: the base, frozen, from a folder or a run; φ: what moves

A tuned generator's parameters are φ alone: θ₀ becomes buffers that no state dict holds, and twins (averages,
references, a second player) share them. So optimizers, averages and checkpoints are as small as φ without
knowing of any of this. Beside φ a checkpoint holds the digest of θ₀, and with another base it is refused.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn

from lmsd.errors import UserError
from lmsd.models.frozen import digest, freeze
from lmsd.models.generator import Generator


class Tuning(ABC):
    """Base: a way of choosing φ. nothing: it leaves the generator as it is, all weights moving."""

    nothing: bool = False

    @abstractmethod
    def apply(self, generator: Generator) -> None:
        """Let φ move: the rest no longer requires a gradient, or is a buffer already."""


class Base(nn.Module):
    """What a tuned generator stands on: nothing but the digest of θ₀, which travels in its state."""

    def __init__(self, digest: str) -> None:
        super().__init__()
        self.digest = digest

    def get_extra_state(self) -> dict[str, str]:
        """Which base this is."""
        return {"digest": self.digest}

    def set_extra_state(self, state: Mapping[str, str]) -> None:
        """Refuse what was trained on another base."""
        if state["digest"] != self.digest:
            raise UserError(
                f"tuning: these weights were trained on a base of digest {state['digest'][:12]}, and this "
                f"one has {self.digest[:12]}: give the folder or run that they were trained on"
            )


def tuned(generator: Generator, tuning: Tuning) -> Generator:
    """The generator with what `tuning` lets move, in place; the rest is frozen and in no state dict.

    Raises UserError for a generator that was tuned before, and where nothing would move.
    """
    if tuning.nothing:
        return generator
    if is_tuned(generator):
        raise UserError("tuning: the generator is tuned already: tune its base, or merge it (lmsd merge)")
    generator.base = Base(digest_of(generator))
    tuning.apply(generator)
    for part in tuned_parts(generator):
        freeze(part, saved=False, learning=True)
        for parameter in part.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if not any(True for _ in generator.parameters()):
        raise UserError("tuning: nothing of this generator would move")
    return generator


def tuned_parts(generator: Generator) -> tuple[nn.Module, nn.Module]:
    """The parts that can be tuned: the net and what reads the captions."""
    return cast(nn.Module, generator.net), generator.conditioner


def is_tuned(generator: nn.Module) -> bool:
    """Whether a player is a generator of which only a part moves."""
    return "base" in dict(generator.named_children())


def digest_of(generator: Generator) -> str:
    """What tells bases apart: of every weight of net and conditioner, in hex digits."""
    parts = "".join(digest(part) for part in tuned_parts(generator))
    return hashlib.sha256(parts.encode()).hexdigest()


def matching(root: nn.Module, patterns: Sequence[str], *, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """The modules of these kinds whose dotted names end with a pattern (`to_q`, `attn1.to_*`).

    Raises UserError for a pattern that fits none.
    """
    names = [name for name, child in root.named_modules() if isinstance(child, kinds) and name]
    found: dict[str, None] = {}
    for pattern in patterns:
        fits = [name for name in names if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not fits:
            ends = sorted({name.rpartition(".")[2] for name in names} - {str(n) for n in range(1000)})
            raise UserError(
                f"tuning: no module is called {pattern}; the names of those that can be tuned end with "
                f"{', '.join(ends[:30])}"
            )
        found |= dict.fromkeys(fits)
    return list(found)
