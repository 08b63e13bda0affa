"""What decides by held-out scores: called once for every evaluation, whatever interrupts the run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmsd.engine.callbacks import engine_of
from lmsd.engine.module import Engine


class Scored(Callback):
    """Calls `scored` once after each evaluation. Place it between `Evaluate` and `Checkpoint`."""

    def __init__(self) -> None:
        self.seen = -1

    def scored(self, trainer: Trainer, engine: Engine) -> None:
        """Look at `engine.run.scores`; all ranks have the same numbers and decide alike."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at an evaluation that a signal interrupted and that has just been repeated."""
        self._look(trainer, engine_of(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after an evaluation."""
        self._look(trainer, engine_of(pl_module))

    def _look(self, trainer: Trainer, engine: Engine) -> None:
        if engine.run.scored_at == engine.clock.images != self.seen:
            self.seen = engine.clock.images
            self.scored(trainer, engine)
