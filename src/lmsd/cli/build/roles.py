"""What is typed about players that a method does not have, and about a reward that it does not ask."""

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


def check_pairs(config: DictConfig) -> None:
    """Refuse a reward beside pairs that the data hold, which it would not judge."""
    node, pairs = config.objective, "rejected" in (config.data.images or ())
    if pairs and node._target_.endswith(".DPO") and node.get("reward") is not None:
        raise UserError(
            "data.images=[rejected]: the pairs are the data's own, and objective.reward= would judge none: "
            "give objective.reward=null, or leave data.images= out"
        )
