"""What a configuration says of a pipeline's folder, without opening it."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from lmsd.errors import UserError

KEY = "pipeline="
TARGET = "lmsd.models.pipeline.from_pipeline"
WHOLE = {TARGET: ("pipeline", "folder"), "lmsd.models.trained.from_run": ("run", "run")}
"""Generators that come with all their parts, as they are chosen, and where they are read."""
OWN = ("image_size", "batch_size")
"""Options of the run's configuration beside those with a dot: size of the images, how many at once."""
PARTS = ("net", "schedule", "conditioner", "codec")
"""Groups that a folder or a run stands in the place of."""


def folder_of(config: DictConfig) -> str | None:
    """The pipeline's folder that a run's generator is read from; None for any other generator."""
    node = config.get("generator") or {}
    return str(node["path"]) if node.get("_target_") == TARGET else None


def told_of_folder(config: DictConfig) -> dict[str, Any]:
    """What env.json says of a run's pipeline: the model's name, class and license; or nothing."""
    path = folder_of(config)
    if path is None:
        return {}
    from lmsd.models.folder import Folder

    return {"pretrained": dict(Folder(path).about)}


def refuse_parts(words: Sequence[str], config: DictConfig) -> None:
    """Refuse a part, or an option of one, that a pipeline's folder or a run holds already."""
    name, there = WHOLE.get(str((config.get("generator") or {}).get("_target_")), ("", ""))
    for word in words if name else ():
        part = word.lstrip("+").partition("=")[0].partition(".")[0]
        if part in PARTS:
            raise UserError(f"{word}: generator={name} reads its {part} from the {there}: leave it out")
