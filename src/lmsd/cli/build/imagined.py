"""A run as it would be, of shapes alone: no weights are drawn or read, and no data are needed.

Where the data are, their captions and classes are used; elsewhere a few pictures of one color stand in.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from omegaconf import DictConfig
from torch import nn

from lmsd.cli.build.experiment import Experiment, build
from lmsd.data.shards import words_of
from lmsd.engine.buckets import COPIED, SHARED
from lmsd.engine.imagined import Imagined, NeedsNumbers
from lmsd.engine.players import recompute
from lmsd.engine.rehearsal import Rehearsal, again, rehearse
from lmsd.errors import UserError
from lmsd.models.folder import configured
from lmsd.ranks import shares
from lmsd.types import Batch

STAND_INS = 64
"""Pictures that stand in for data which are not there."""


@dataclass(frozen=True)
class Imagination:
    """A run of shapes, played: as it is, and with the lead's activations recomputed, None where it cannot.

    block: bytes of the lead's largest block; whole: it cannot be sharded; absent: the data were not there.
    """

    kept: Rehearsal
    recomputed: Rehearsal | None
    lead: str
    block: int
    whole: bool
    absent: bool

    @property
    def buckets(self) -> int:
        """Bytes beside the gradients while they travel, at most."""
        largest = max(own.get("gradients", 0) for own in self.kept.standing.values())
        return min(largest, COPIED + 4 * SHARED)


def imagined(config: DictConfig, *, half: bool) -> Imagination:
    """Build a run on shapes, and play its turns; half: in bfloat16. Raises UserError for mistakes."""
    from lmsd.engine.sharding import require_shardable

    with standing_in(config) as absent, Imagined() as made, configured():
        config.checkpointing = False
        built = build(config)
        engine, ranks, whole = built.engine, config.devices * config.num_nodes, True
        if config.fsdp:
            require_shardable(engine, ranks)
        with suppress(UserError):  # of what ranks cannot share
            require_shardable(engine, max(2, ranks))
            whole = False
        batch = batch_of(config, built, made)
        kept = rehearse(engine, made, batch, half=half)
        lead = engine.players[engine.lead]
        recomputed = None
        with suppress(UserError):  # of a net that has no gradient checkpointing
            recompute(lead)
            recomputed = again(kept, engine, made, batch, half=half)
    return Imagination(kept, recomputed, engine.lead, largest_block(lead), whole, absent)


class HasExperiment(Protocol):
    """What holds a run that is built."""

    @property
    def built(self) -> Experiment:
        """The run."""


def tried(
    config: DictConfig,
    prepare: Callable[[], HasExperiment],
    announce: Callable[[Mapping[str, nn.Module]], None],
) -> Path:
    """A dry run: build all of it on shapes, play the turns of every phase, and say so; there is no folder.

    With precision=auto it is built as it is, and the precision tried.
    """
    if config.precision == "auto":
        from lmsd.cli.build.precision import faster

        built = prepare().built
        config.precision = faster(config, built)
        announce(built.cast)
        print("everything is built. To train, leave out debug=dry")
        return Path()
    with Imagined() as made, configured():
        built = prepare().built
        announce(built.cast)
        told = "every turn is played, on shapes"
        try:
            rehearse(built.engine, made, batch_of(config, built, made), half=config.precision != "32-true")
        except NeedsNumbers:
            told = "its turns look at numbers, and were not played"
    count = len(built.data.shards.split_set("train"))
    print(f"{count:,} train samples; everything is built, {told}. To train, leave out debug=dry")
    return Path()


def largest_block(lead: nn.Module) -> int:
    """Bytes of what is gathered at one time where the lead is sharded."""
    from lmsd.engine.sharding import blocks

    def size(part: nn.Module) -> int:
        return sum(weight.numel() * weight.element_size() for weight in part.parameters())

    found = [block for part in lead.children() for block in blocks(part)]
    rest = size(lead) - sum(map(size, found))
    return max(rest, *map(size, found)) if found else rest


def batch_of(config: DictConfig, built: Experiment, made: Imagined) -> Batch:
    """A rank's micro-batch as its loader would deliver it, with shapes in place of pictures."""
    count = shares(config.batch_size, config.devices * config.num_nodes, config.micro_batches)
    data = built.data.shards
    train = data.split_set("train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    rows = order.repeat(-(-count // len(order)))[:count]
    few = train.batch(rows[: min(2, count)])
    side = (config.data.channels, config.data.image_size, config.data.image_size)
    return Batch(
        x=made.like((count, *side)),
        position=made.like((count,), torch.int64),
        text=None if few.text is None else train.captions(rows),
        label=None if few.label is None else train.labels(rows),
        extra={name: made.like((count, *value.shape[1:]), value.dtype) for name, value in few.extra.items()},
    )


@contextmanager
def standing_in(config: DictConfig) -> Iterator[bool]:
    """Have a configuration read pictures of one color where it names no data, or data that are not there."""
    shards = config.data.shards
    if shards is not None and all(map(_is_there, words_of(shards))):
        yield False
        return
    with tempfile.TemporaryDirectory() as folder:
        write_stand_ins(Path(folder), config)
        config.data.shards, config.data.weights = folder, None
        for split in ("val", "test"):
            config.data[split] = None
        yield True


def _is_there(shards: str) -> bool:
    return "://" in shards or any(char in shards for char in "*{[") or Path(shards).exists()


def write_stand_ins(folder: Path, config: DictConfig) -> None:
    """A shard of pictures with captions and classes, and with the further pictures that a run reads."""
    from PIL import Image

    mode = "L" if config.data.channels == 1 else "RGB"
    picture = io.BytesIO()
    Image.new(mode, (config.data.image_size, config.data.image_size)).save(picture, "png")
    classes = config.conditioner.get("classes") or 1
    pictures = ["png", *(f"{name}.png" for name in config.data.get("images") or ())]
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for number in range(STAND_INS):
            members = {name: picture.getvalue() for name in pictures}
            members |= {"txt": f"a picture, number {number}".encode(), "cls": b"%d" % (number % classes)}
            for suffix, content in members.items():
                about = tarfile.TarInfo(f"{number:06d}.{suffix}")
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
