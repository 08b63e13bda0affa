"""How a discriminator does on images that it never trained on.

When it learns its training set by heart, its accuracy there rises and here falls.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lmsd.engine.callbacks import engine_of
from lmsd.engine.clock import crossed
from lmsd.errors import UserError
from lmsd.rng import Rng
from lmsd.types import Batch, Players


@runtime_checkable
class Judged(Protocol):
    """An objective whose discriminator's verdicts can be counted."""

    def sign_accuracy(self, players: Players, batch: Batch, rng: Rng) -> Tensor:
        """Share of right verdicts on a batch, a scalar."""


class Split(Protocol):
    """A held-out split by number."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Images [n,C,H,W]."""

    def captions(self, indices: Tensor) -> list[str]:
        """Captions; UserError where there are none."""

    def labels(self, indices: Tensor) -> Tensor | None:
        """Classes [n], or None."""


def held_out_batch(split: Split, size: int, *, seed: int = 0) -> Batch:
    """At most `size` samples of a split, drawn by `seed`, at positions < 0, where no training sample lies."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(split), generator=generator)[:size]
    try:
        text = split.captions(indices)
    except UserError:
        text = None
    position = -1 - torch.arange(len(indices))
    return Batch(x=split.images(indices), position=position, text=text, label=split.labels(indices))


class HeldOutAccuracy(Callback):
    """Logs "held_out/d_accuracy" on `batch` every `every_images` images, where someone discriminates."""

    def __init__(self, batch: Batch, *, every_images: int) -> None:
        self.batch, self.every_images = batch, every_images
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._seen = engine_of(pl_module).clock.images
        self.batch = self.batch.to(pl_module.device)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge where a multiple of the cadence was passed; every rank does, rank 0 logs."""
        engine = engine_of(pl_module)
        before, self._seen = self._seen, engine.clock.images
        if isinstance(engine.objective, Judged) and crossed(before, self._seen, self.every_images):
            held = engine.encode(self.batch)
            rng = Rng(engine.seed, held.position)
            accuracy = engine.objective.sign_accuracy(engine.roles, held, rng)
            engine.write({"held_out/d_accuracy": accuracy.item()})
