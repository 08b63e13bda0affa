"""The DataModule: this rank's batches from a shard set, and the integer that says where the stream stands.

The position counts global images. The engine advances it after each optimizer step, so what a loader has
prefetched never counts, and a checkpoint resumes exactly, for any world size, workers and micro-batches.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lmsd import stops
from lmsd.data.index import difference
from lmsd.data.mixture import length_of
from lmsd.data.shardset import Decode, ShardSet
from lmsd.data.stream import Positions
from lmsd.errors import UserError
from lmsd.ranks import shares
from lmsd.types import Batch

VERSION = 1

log = logging.getLogger(__name__)


class ShardDataModule(LightningDataModule):
    """The train split of a shard set as an endless loader that can be resumed.

    batch_size: global; micro_batches: pieces in which each rank's share of a batch is delivered; seed: of the
    order and of augmentation; world, rank: the trainer's by default. Raises UserError for sizes that do not
    divide.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        batch_size: int,
        micro_batches: int = 1,
        seed: int = 0,
        world: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        shares(batch_size, 1, micro_batches)
        self.shards, self.batch_size, self.micro_batches, self.seed = shards, batch_size, micro_batches, seed
        self.position = 0
        self._world, self._rank = world, rank

    @property
    def epoch(self) -> int:
        """How many times the whole train split has been seen."""
        return self.position // length_of(self.shards.index("train"))

    def prepare_data(self) -> None:
        """Index the shards, once per machine, before the other ranks look at them."""
        self.shards.prepare()

    def train_dataloader(self) -> DataLoader[Batch]:
        """An endless loader of this rank's micro-batches, from the current position on."""
        world, rank = self._where()
        return DataLoader(
            self.shards.stream(seed=self.seed, several=world > 1, batch_size=self.batch_size),
            batch_size=None,
            sampler=Positions(
                self.position,
                batch_size=self.batch_size,
                world=world,
                rank=rank,
                micro_batches=self.micro_batches,
            ),
            num_workers=self.shards.train.num_workers,
            worker_init_fn=stops.outlive,
            generator=torch.Generator(),  # else the loader would draw from the global one
        )

    def advance(self, images: int) -> None:
        """Count global images as used; the engine calls this after each optimizer step."""
        self.position += images

    def state_dict(self) -> dict[str, Any]:
        """Version, position, seed, window, index_hash, batch_size, decode, and the shards: plain Python."""
        index = self.shards.index("train")
        return {
            "version": VERSION,
            "position": self.position,
            "seed": self.seed,
            "window": self.shards.train.window,
            **self.shards.sources.state(index),
            **({} if self.shards.train.buckets is None else {"buckets": self.shards.train.buckets}),
            "index_hash": index.hash,
            "batch_size": self.batch_size,
            "decode": self.shards.decode or "new",
            "shards": index.summary(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at a saved position, with any batch_size. Raises UserError for other data, seed or window.

        With on_change="new_epoch" changed data are used from the start of their next epoch.
        """
        now = self.state_dict()
        more = ("buckets", "batch_size") if "buckets" in {*now, *state_dict} else ()
        differences = [
            f"{name} was {state_dict.get(name)!r} and is {now.get(name)!r}"
            for name in (
                "version",
                "seed",
                "window",
                "sources",
                *more,
            )
            if state_dict.get(name) != now.get(name)
        ]
        position = int(state_dict["position"])
        other = any(state_dict.get(name) != now[name] for name in ("index_hash", "shards"))
        if other and (self.shards.train.on_change == "error" or "sources" in now or more):
            told = difference(state_dict.get("shards", ()), now["shards"])
            differences.append(f"the shards have changed: {told}")
        if differences:
            way = "; or take the new shards from a new epoch on, data.train.on_change=new_epoch"
            raise UserError(
                f"the data stream cannot resume: {'; '.join(differences)}; give the same shards, seed= and "
                f"data.train.window=, or start a new run by init_from={way if other else ''}"
            )
        self._compare(state_dict.get("decode", "old"))
        total = length_of(self.shards.index("train"))
        self.position = -(-position // total) * total if other else position

    def _compare(self, before: Decode) -> None:
        """Refuse to continue if samples decode differently than before, unless told how."""
        total, decode = len(self.shards.index("train")), self.shards.decode
        if before == (decode or "new") or not (changed := self.shards.otherwise()):
            return
        told = f"{changed:,} of {total:,} training samples ({changed / total:.2%})"
        if decode is None:
            raise UserError(
                f"{told} decode differently than when this run began (color profiles, orientation by XMP, "
                "marks and white space in captions, extraneous bytes in JPEGs): continue as it began by "
                "data.decode=old, or with today's decoder by data.decode=new"
            )
        log.warning("%s decode differently than before, by data.decode=%s", told, decode)

    def _where(self) -> tuple[int, int]:
        trainer = self.trainer
        world = self._world if self._world is not None else (trainer.world_size if trainer else 1)
        rank = self._rank if self._rank is not None else (trainer.global_rank if trainer else 0)
        return world, rank
