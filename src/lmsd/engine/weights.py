"""Weights out of a checkpoint, for `init_from=` and for evaluation.

    RUN|PATH[:player][@ema]      outputs/a-run            the generator's raw weights, newest checkpoint
                                 outputs/a-run@ema        the generator's first EMA
                                 outputs/a-run@50000      the one with a half-life of 50,000 images
                                 a.ckpt:discriminator     another player

Raw or averaged is always said, never guessed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lmsd.engine.checkpoint import read
from lmsd.errors import UserError

_SOURCE = re.compile(r"(?P<path>.+?)(:(?P<player>[a-z_]+))?(@(?P<ema>ema|\d+))?")


@dataclass(frozen=True)
class Source:
    """Where weights come from; ema: None for raw weights, "ema" for the first average, or its half-life."""

    path: Path
    player: str = "generator"
    ema: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Source":
        """RUN|PATH[:player][@ema]."""
        match = _SOURCE.fullmatch(text)
        if match is None:
            raise UserError(f"init_from={text!r} is not RUN|PATH[:player][@ema]")
        return cls(Path(match["path"]), match["player"] or "generator", match["ema"])


@dataclass(frozen=True)
class Mismatch:
    """Keys that the module has and the checkpoint lacks, and the reverse."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]


def player_state(checkpoint: dict[str, object], source: Source) -> dict[str, Tensor]:
    """One player's weights, raw or averaged, out of a checkpoint's content."""
    state = checkpoint["state_dict"]
    assert isinstance(state, dict)
    prefix = f"players.{source.player}."
    if source.ema is not None:
        if source.player != "generator":
            raise UserError(f"only the generator has an EMA: ask for {source.player!r} without @{source.ema}")
        half_lives = list(dict.fromkeys(key.split(".")[1] for key in state if re.match(r"ema\.\d+\.", key)))
        name = half_lives[0] if source.ema == "ema" and half_lives else source.ema
        if name not in half_lives:
            raise UserError(f"{source.path} holds no EMA {source.ema!r}; there are {half_lives or 'none'}")
        prefix = f"ema.{name}."
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        players = sorted({key.split(".")[1] for key in state if key.startswith("players.")})
        raise UserError(f"{source.path} holds no player {source.player!r}; there are {players}")
    return found


def load_weights(
    module: nn.Module, path: Path, *, player: str = "generator", ema: str | None = None
) -> Mismatch:
    """Copy a player's weights out of a checkpoint or run into `module`; returns the keys that did not match.

    ema: None for raw weights, "ema" for the first average, a half-life in images for another.
    Raises UserError where a shape differs or nothing matches.
    """
    source = Source(path, player, ema)
    state = player_state(read(path), source)
    own = module.state_dict()
    for key in own.keys() & state.keys():
        ours, theirs = getattr(own[key], "shape", None), getattr(state[key], "shape", None)
        if ours != theirs:
            raise UserError(
                f"init_from: {key} is {_size(ours)} here and {_size(theirs)} in {path}: build the same net, "
                "or choose another checkpoint"
            )
    if not own.keys() & state.keys():
        raise UserError(f"init_from: {path} ({player}) shares no key with this {type(module).__name__}")
    result = module.load_state_dict(state, strict=False)
    return Mismatch(tuple(result.missing_keys), tuple(result.unexpected_keys))


def _size(shape: tuple[int, ...] | None) -> str:
    return "no tensor" if shape is None else str(list(shape))
