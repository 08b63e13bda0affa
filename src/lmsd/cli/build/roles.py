"""What is typed about players that a method does not have."""

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig

from lmsd.cli.config.compose import parse
from lmsd.cli.config.schema import held, plain
from lmsd.errors import UserError


def check_roles(words: Iterable[str], config: DictConfig, cast: Mapping[str, Any]) -> None:
    """Refuse options, as typed, of players that the method does not have."""
    learning = [role for role, node in plain(config.optim).items() if "_target_" in held(node)]
    for override in map(parse, words):
        place = (override.package or override.key_or_group).removeprefix("optim.")
        role = next(iter(place.removeprefix("clip.").removeprefix("averages.").split(".")))
        if role in learning and role not in cast:
            method, players = config.objective._target_.rpartition(".")[2], " and ".join(cast)
            raise UserError(f"{override.input_line}: {method} plays {players} alone: leave it out")
