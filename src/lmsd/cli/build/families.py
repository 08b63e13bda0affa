"""The families of features that score a run beside its extractor, and what the run was tuned on."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmsd.cli.build.extractors import find_or_train
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.evaluation.families import Families
from lmsd.features.base import FeatureExtractor
from lmsd.features.random_conv import SMALLEST, RandomExtractor
from lmsd.files import cache_folder


def families_of(
    names: Sequence[str], settings: DictConfig, data: ShardSet, *, own: FeatureExtractor
) -> Families | None:
    """The families of these names (ssl, random, folders of DINOv2) beside an extractor; None for none."""
    if list(names) in ([], ["none"]):
        return None
    known(names)
    if "random" in names and data.image_size < SMALLEST:
        note = f"note: no random-conv: it sees images of {SMALLEST} pixels or more, not {data.image_size}"
        print(note, file=sys.stderr)
        names = [name for name in names if name != "random"]
        if not names:
            return None
    made = {each.name: each for each in (family(name, settings, data) for name in names)}  # each counts once
    beside = [each for name, each in made.items() if name != own.name]
    return Families(beside, data.split_set("train", real=True), cache=cache_folder() / "features")


def known(names: Sequence[str]) -> None:
    """Refuse a name that is neither a family nor a folder, before anything is trained."""
    for name in names:
        if name not in ("ssl", "random", "none") and not Path(name).is_dir():
            raise UserError(
                f"families: there is no family {name}; take ssl, random, the folder of a DINOv2, or none"
            )


def family(name: str, settings: DictConfig, data: ShardSet) -> FeatureExtractor:
    """The extractor of one family, by a name that is known."""
    if name == "random":
        return RandomExtractor(data.channels)
    if name == "ssl":
        return find_or_train(data, kind="lmsd-ssl", augment=settings.augment, images=settings.images)[0]
    from lmsd.features.pretrained import DINOv2Extractor

    return DINOv2Extractor(name)


def tuned_on(config: DictConfig) -> str:
    """What a run is trained and selected on, in words: no claim rests on it alone."""
    kind = config.evaluate.extractor.get("kind") or "lmsd-cnn"
    rewards = sorted({word.rpartition(".")[2] for word in _targets(config.objective) if ".rewards." in word})
    return " and ".join([f"fd[{kind}] on val", *(f"the reward {name}" for name in rewards)])


def _targets(node: Any) -> Iterator[str]:
    """Every `_target_` below a node."""
    for key, value in node.items() if isinstance(node, DictConfig) else ():
        yield from [str(value)] if key == "_target_" else _targets(value)
