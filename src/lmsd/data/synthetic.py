"""Shards of generated images, which are for training alone: never a reference of scores, never val or test.

They are called `train-synthetic-000000.tar`, and the manifest beside them says which run made them. A score
against generated images says how alike two generators are, and a held-out set of them hides what a model
forgot.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from lmsd.data.shards import Split
from lmsd.data.urls import is_remote, name_of
from lmsd.errors import UserError

NAME = "train-synthetic"
"""How the names of such shards begin."""
_MANIFEST = "manifest.json"


def is_synthetic(shard: str) -> bool:
    """Whether generated images lie in a shard, by its name or by the manifest beside it."""
    if name_of(shard).startswith(NAME):
        return True
    beside = Path(shard).with_name(_MANIFEST)
    if is_remote(shard) or not beside.is_file():
        return False
    try:
        return bool(json.loads(beside.read_text(encoding="utf-8"))["source"]["name"] == "synthetic")
    except (OSError, ValueError, KeyError, TypeError):  # somebody else's manifest
        return False


def refuse(shards: Sequence[str], split: Split) -> None:
    """Refuse generated images as val or test."""
    made = [shard for shard in shards if is_synthetic(shard)]
    if made:
        raise UserError(
            f"{made[0]} holds generated images, which are no {split} set: name real ones, data.{split}=SHARDS"
        )


def only_real(shards: Sequence[str]) -> tuple[str, ...]:
    """The shards of real images among those that are trained on, which scores are measured against.

    Raises UserError where there are none.
    """
    found = tuple(shard for shard in shards if not is_synthetic(shard))
    if shards and not found:
        raise UserError(
            f"all of these are generated images ({shards[0]}), and scores need real ones: name both, "
            "data.shards=[REAL, GENERATED], or take evaluate.n=0"
        )
    return found
