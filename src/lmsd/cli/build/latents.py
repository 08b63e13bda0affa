"""The codec of a run by itself, and whether its latents are as they should be."""

from collections.abc import Mapping

import torch
from omegaconf import DictConfig
from torch import nn

from lmsd import spec
from lmsd.cli.config.schema import plain
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.models.autoencoder import Pretrained
from lmsd.models.statistics import check
from lmsd.objectives.base import generator_of

CHECKED = 64
"""Training images that statistics are checked on."""


def codec_of(config: DictConfig, *, statistics: bool = True) -> Pretrained:
    """The autoencoder of a run; statistics: with those of the run's file.

    Raises UserError for a codec that is none.
    """
    node = plain(config)["codec"]
    found: Pretrained = spec.build(node if statistics else node | {"statistics": None})
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
