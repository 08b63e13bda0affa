"""Words on a pipeline's folder: what stands in the place of run=, and what a generator of its own refuses."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from lmsd.errors import UserError

TARGET = "lmsd.models.pipeline.from_pipeline"
KEY = "pipeline="
OWN = ("image_size", "batch_size")
"""Options of the run's configuration beside those with a dot: size of the images, how many at once."""
PARTS = ("net", "schedule", "conditioner", "codec")
"""Groups that a folder stands in the place of."""


def as_run(words: Sequence[str]) -> list[str]:
    """A verb's words with run=FOLDER in place of pipeline=FOLDER and of what configures it; the run is made.

    What has a dot in its name (data.shards=, generator.precision=) configures the run, and so do `OWN`.
    """
    paths = [word.removeprefix(KEY) for word in words if word.startswith(KEY)]
    if not paths:
        return list(words)
    if len(paths) > 1 or any(word.startswith("run=") for word in words):
        raise UserError("pipeline=FOLDER stands in the place of run=: give one of them, once")
    from lmsd.cli.build.pretrained import begun

    given, left = apart(words)
    return [f"run={begun(paths[0], given, words)}", *left]


def apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what configures the run; the verb's own options), without pipeline=."""
    names = [(word, word.lstrip("+").partition("=")[0]) for word in words if not word.startswith(KEY)]
    given = [word for word, name in names if "." in name or name in OWN]
    return given, [word for word, _ in names if word not in given]


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
    """Refuse a part, or an option of one, that a pipeline's folder holds already."""
    for word in words if folder_of(config) else ():
        part = word.lstrip("+").partition("=")[0].partition(".")[0]
        if part in PARTS:
            raise UserError(f"{word}: generator=pipeline reads its {part} from the folder: leave it out")
