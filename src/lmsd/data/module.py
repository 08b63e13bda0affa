"""The DataModule: shards in, batches of this rank out, and the one integer that says where the stream stands.

The position counts global images. The engine moves it by `advance` after each optimizer step, so what a
loader has read ahead never counts, and a checkpoint of it resumes exactly, in any world size, with any
workers and micro-batches.
"""

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lmsd import stops
from lmsd.data.heldout import HeldOut
from lmsd.data.index import Index, changed
from lmsd.data.order import Order
from lmsd.data.reader import Reader
from lmsd.data.shards import Source, Split, by_split, chosen, resolve
from lmsd.data.storage import Storage
from lmsd.data.stream import OnError, Positions, Stream
from lmsd.data.text import Lines
from lmsd.errors import UserError, one_of
from lmsd.ranks import shares
from lmsd.types import Batch, Progress

VERSION = 1
OnChange: TypeAlias = Literal["error", "new_epoch"]
Decode: TypeAlias = Literal["old", "new"]

_SKIP = ", or train without such samples by data.on_error=skip"
_HELD = 256 << 20  # bytes of shards that a loader may hold, so that a sample costs no system call

log = logging.getLogger(__name__)


class ShardDataModule(pl.LightningDataModule):
    """Batches of images and captions from webdataset shards.

    shards: folder, glob, brace range, list, or http and s3 URLs; splits by file prefix train-|val-|test-;
    val, test: shards of these splits that lie elsewhere; first: train on the first so many images of the
    stream, over and over; batch_size: global; image_size: images are cropped and resized to this square;
    channels: 3 or 1; flip, color: augmentation of the train split; num_workers: processes that decode, 0 for
    none; window: shards shuffled together; cache_dir, cache_gb: where remote shards are kept, and how much of
    them; memory_gb: a train split that takes less when decoded is held in memory (without workers); on_error:
    what a damaged train sample does; on_change: what a resume does where the train shards are others than
    before: refuse, or begin an epoch of the new ones; caption_key: a text field of KEY.json, instead of
    KEY.txt or "caption"; captions: what several lines of a caption give, all joined, the first, or one drawn
    anew each time; decode: "old" reads images and captions as before version 2 of the index (no color
    profiles, no orientation by XMP, captions as they stand), "new" as today, and says yes to that where a
    resumed run began with the old one; world, rank: default to the trainer's; micro_batches: runs that each
    rank's share of a batch is handed over in.

    Raises UserError for shards that are missing or damaged, and for sizes that do not divide.
    """

    def __init__(
        self,
        shards: Source,
        *,
        batch_size: int,
        image_size: int,
        channels: int = 3,
        val: Source | None = None,
        test: Source | None = None,
        first: int | None = None,
        flip: bool = False,
        color: float = 0.0,
        num_workers: int = 0,
        window: int = 8,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_gb: float = 20.0,
        memory_gb: float = 0.5,
        on_error: OnError = "stop",
        on_change: OnChange = "error",
        caption_key: str | None = None,
        captions: Lines = "join",
        decode: Decode | None = None,
        world: int | None = None,
        rank: int | None = None,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise UserError(f"data.channels={channels}: images have 3 channels (RGB) or 1 (grey)")
        one_of("data", "on_error", on_error, OnError)
        one_of("data", "on_change", on_change, OnChange)
        one_of("data", "captions", captions, Lines)
        if decode is not None:
            one_of("data", "decode", decode, Decode)
        shares(batch_size, 1, micro_batches)
        self._shards = by_split(resolve(shards))
        named: dict[Split, Source | None] = {"val": val, "test": test}
        for split, source in named.items():
            if source is not None:
                self._shards[split] = chosen(source, split)
        self._refuse_overlap()
        self.batch_size = batch_size
        self.image_size = image_size
        self.channels = channels
        self.window = window
        self.first = first
        self.seed = seed
        self.micro_batches = micro_batches
        self.position = 0
        self._augment = partial(Stream, flip=flip, color=color, on_error=on_error)
        self._num_workers = num_workers
        self._memory_gb = memory_gb
        self._storage = Storage(cache_dir, cache_gb)
        self._caption_key, self._on_change, self._on_error = caption_key, on_change, on_error
        self._lines, self._decode = captions, decode
        self.progress: Progress | None = None
        self._world, self._rank = world, rank
        self._indexes: dict[Split, Index] = {}

    @property
    def epoch(self) -> int:
        """How often the whole train split has been seen."""
        return self.position // len(self.index("train"))

    @property
    def samples(self) -> int:
        """Samples that are trained on."""
        return min(len(self.index("train")), self.first or len(self.index("train")))

    def index(self, split: Split) -> Index:
        """The index of a split; shards that have none are read and checked first.

        Raises UserError when the split has no shards.
        """
        if split not in self._indexes:
            shards = self._shards[split]
            if not shards:
                raise UserError(_absent(split))
            self._indexes[split] = self._storage.index(shards, progress=self.progress)
        return self._indexes[split]

    def has(self, split: Split) -> bool:
        """Whether there are shards of a split."""
        return bool(self._shards[split])

    def prepare_data(self) -> None:
        """Index what is there, once a machine, before the other ranks look."""
        for split, shards in self._shards.items():
            if shards:
                for what, count, name in self.index(split).notes():
                    log.warning("%s: %s %s (%s)", split, f"{count:,}", what, name)

    def split_set(self, split: Split) -> HeldOut:
        """A split as a sequence, without augmentation. Raises UserError when the split has no shards."""
        return HeldOut(split, self._reader(split))

    def train_dataloader(self) -> DataLoader[Batch]:
        """An endless loader of this rank's micro-batches from the present position on."""
        index = self.index("train")
        order = Order(index.sizes, window=self.window, seed=self.seed, first=self.first)
        bytes_decoded = order.total * self.image_size**2 * self.channels
        keep = self._num_workers == 0 and bytes_decoded <= self._memory_gb * 1e9
        largest = sorted(header.size for header in index.headers)[-2 * self.window :]
        whole = len(largest) if sum(largest) <= _HELD else 0
        world, rank = self._where()
        return DataLoader(
            self._augment(
                order,
                self._reader("train", keep=keep, whole=whole),
                ahead=self._storage.ahead(index, self.window),
            ),
            batch_size=None,
            sampler=Positions(
                self.position,
                batch_size=self.batch_size,
                world=world,
                rank=rank,
                micro_batches=self.micro_batches,
            ),
            num_workers=self._num_workers,
            worker_init_fn=stops.outlive,
            generator=torch.Generator(),  # the loader would else draw from the global one
        )

    def advance(self, images: int) -> None:
        """Count global images as used: the engine calls it after each optimizer step."""
        self.position += images

    def state_dict(self) -> dict[str, Any]:
        """Version, position, seed, window, index_hash, batch_size, decode, and the shards: plain Python."""
        return {
            "version": VERSION,
            "position": self.position,
            "seed": self.seed,
            "window": self.window,
            "index_hash": self.index("train").hash,
            "batch_size": self.batch_size,
            "decode": self._decode or "new",
            "shards": self.index("train").summary(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a saved position; batch_size may differ. Raises UserError for other data, seed or window.

        With on_change="new_epoch" other data are taken from the next beginning of one of their epochs.
        """
        now = self.state_dict()
        differences = [
            f"{name} was {state_dict.get(name)!r} and is {now[name]!r}"
            for name in ("version", "seed", "window")
            if state_dict.get(name) != now[name]
        ]
        position = int(state_dict["position"])
        other = any(state_dict.get(name) != now[name] for name in ("index_hash", "shards"))
        if other and self._on_change == "error":
            differences.append(
                f"the shards are others: {changed(state_dict.get('shards', ()), now['shards'])}"
            )
        if differences:
            way = "; or take the new shards from a new epoch on, data.on_change=new_epoch" if other else ""
            raise UserError(
                f"the data stream cannot resume: {'; '.join(differences)}; give the same shards, seed= and "
                f"data.window=, or start a new run by init_from={way}"
            )
        self._compare(state_dict.get("decode", "old"))
        total = len(self.index("train"))
        self.position = -(-position // total) * total if other else position

    def _compare(self, before: Decode) -> None:
        """Refuse to go on where samples decode otherwise than before, unless told how."""
        index = self.index("train")
        if before == (self._decode or "new") or not index.changed:
            return
        told = f"{index.changed:,} of {len(index):,} training samples ({index.changed / len(index):.2%})"
        if self._decode is None:
            raise UserError(
                f"{told} decode otherwise than when this run began (color profiles, orientation by XMP, "
                "marks and white space in captions): continue as it began by data.decode=old, or with "
                "today's decoder by data.decode=new"
            )
        log.warning("%s decode otherwise than before, by data.decode=%s", told, self._decode)

    def _reader(self, split: Split, *, keep: bool = False, whole: int = 0) -> Reader:
        index = self.index(split)
        return Reader(
            index,
            self._storage.locate(index),
            image_size=self.image_size,
            channels=self.channels,
            caption=_caption(index, self._caption_key),
            lines=self._lines,
            old=self._decode == "old",
            keep=keep,
            whole=whole,
            advice=_SKIP if split == "train" else "",
        )

    def _where(self) -> tuple[int, int]:
        trainer = self.trainer
        world = self._world if self._world is not None else (trainer.world_size if trainer else 1)
        rank = self._rank if self._rank is not None else (trainer.global_rank if trainer else 0)
        return world, rank

    def _refuse_overlap(self) -> None:
        for split in ("val", "test"):
            both = set(self._shards["train"]) & set(self._shards[split])
            if both:
                raise UserError(
                    f"{min(both)} is named for both train and {split}: give data.{split}= other shards"
                )


def _absent(split: Split) -> str:
    if split == "train":
        return "data.shards= names no train shard (every name begins with val- or test-): add train-*.tar"
    return (
        f"there are no {split} shards: give data.{split}=SHARDS, or name shards {split}-000000.tar and so on "
        "among data.shards= (`lmsd data build` makes the split)"
    )


def _caption(index: Index, key: str | None) -> str | None:
    """Where captions are read: the key asked for, else KEY.txt, else "caption" of KEY.json, else nowhere."""
    if key is not None and key not in index.captions:
        known = ", ".join(sorted(index.captions)) or "none"
        raise UserError(
            f"data.caption_key={key!r} is not in every sample of {index.shards[0]} ...; there are: {known}"
        )
    if key is None and index.captions and not index.captions & {"txt", "caption"}:
        raise UserError(
            f"no 'caption' in KEY.json: give data.caption_key= one of {', '.join(sorted(index.captions))}"
        )
    return key or next((name for name in ("txt", "caption") if name in index.captions), None)
