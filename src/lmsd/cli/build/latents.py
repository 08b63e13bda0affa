"""The codec of a run by itself, and whether its latents are as they should be."""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from lmsd import spec
from lmsd.cli.config.schema import plain
from lmsd.data.latents import Latents, Maker
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.models.autoencoder import Pretrained
from lmsd.models.codes import Codes
from lmsd.models.conditioner import PretrainedText
from lmsd.models.statistics import check
from lmsd.objectives.base import generator_of

CHECKED = 64
"""Training images that statistics are checked on."""


def codec_of(config: DictConfig, *, statistics: bool = True) -> Pretrained:
    """The autoencoder of a run; statistics: with those of the run's file.

    Raises UserError for a codec that is none.
    """
    node = plain(config)["codec"]
    bare = spec.taken(node, {"statistics": None})
    found: Pretrained = spec.build(node if statistics else node | bare)
    if not found.checked:
        raise UserError(f"codec: {type(found).__name__} is no autoencoder, and its latents need no files")
    return found


def check_latents(nets: Mapping[str, nn.Module], data: ShardSet) -> None:
    """Refuse a codec whose latents of training images have another mean than 0, or deviation than 1."""
    codec = generator_of(nets).codec if "generator" in nets else None
    if codec is None or not codec.checked:
        return
    train = data.split_set("train")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:CHECKED]
    with torch.no_grad():
        check(codec.encode(train.images(rows)))


def attach(config: DictConfig, data: ShardSet, nets: Mapping[str, nn.Module]) -> None:
    """Have the train split read from the caches that the configuration names.

    Raises UserError where they are not all there, or made by something else.
    """
    folder = config.data.train.get("latents")
    if folder is None:
        return
    codec: Any = generator_of(nets).codec if "generator" in nets else None
    if codec is None or not codec.checked:
        raise UserError(
            f"data.train.latents={folder}: this run's codec is no autoencoder with a cache of latents"
        )
    data.latents = Latents(folder, data.index("train"), maker(codec, data))
    reader = generator_of(nets).conditioner
    if isinstance(reader, PretrainedText):
        if any(parameter.requires_grad for parameter in reader.parameters()):
            raise UserError(
                f"data.train.latents={folder} holds the codes of captions, and this run's text encoder "
                "learns: leave it out"
            )
        reader.codes = Codes(folder, captions_of(data), reader.digest, reader.length)


def captions_of(data: ShardSet) -> list[str]:
    """The distinct captions of the whole train split, sorted; the first line of several."""
    train = data.split_set("train")
    found: set[str] = set()
    for start in range(0, len(train), 10_000):
        found |= set(train.captions(range(start, min(start + 10_000, len(train)))))
    return sorted(found)


def maker(codec: Pretrained, data: ShardSet) -> Maker:
    """What makes the latents of a run."""
    return data.maker(codec.digest, drawn=codec.posterior == "drawn")
