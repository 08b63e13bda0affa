"""A guard against reward hacking: the reward rises, a judge that nobody optimizes falls.

Goodhart's law shows first as a proxy and a held-out score that part ways (Gao et al. 2023). After `patience`
evaluations in a row in which they did, the run ends, with a checkpoint; the best one by the judge is kept.
"""

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmsd.engine.callbacks import engine_of
from lmsd.engine.module import Engine


class HackingGuard(Callback):
    """Ends a run whose proxy rose while its judge got worse at `patience` evaluations in a row.

    proxy: a training metric, higher is better; judge: how the name of an evaluation's score begins, lower is
    better. To stand between `Evaluate` and `Checkpoint`.
    """

    def __init__(self, *, judge: str = "val/fd[", proxy: str = "generator/reward", patience: int = 3) -> None:
        self.judge, self.proxy, self.patience = judge, proxy, patience
        self._last: tuple[float, float] | None = None
        self._seen = -1
        self._parted = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare after an evaluation that a signal broke off, and that was made up for just now."""
        self._compare(trainer, engine_of(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare after an evaluation; all ranks have the same numbers and decide alike."""
        self._compare(trainer, engine_of(pl_module))

    def _compare(self, trainer: Trainer, engine: Engine) -> None:
        if engine.evaluated_at != engine.clock.images or self._seen == engine.clock.images:
            return
        self._seen = engine.clock.images
        names = [n for n in engine.evaluation if n.startswith(self.judge) and n.endswith("]")]
        if not names or self.proxy not in engine.metrics:
            return
        now = (engine.metrics[self.proxy], engine.evaluation[names[0]])
        if self._last is not None:
            parted = now[0] > self._last[0] and now[1] > self._last[1]
            self._parted = self._parted + 1 if parted else 0
        self._last = now
        if self._parted >= self.patience:
            engine.stopping = trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"Stopped: {self.proxy} rose and {names[0]} got worse at {self._parted} evaluations in a "
                    "row; the best checkpoint by the latter is kept",
                    file=sys.stderr,
                )

    def state_dict(self) -> dict[str, Any]:
        """What was seen last."""
        return {"last": self._last, "seen": self._seen, "parted": self._parted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        last = state_dict["last"]
        self._last = None if last is None else (float(last[0]), float(last[1]))
        self._seen, self._parted = int(state_dict["seen"]), int(state_dict["parted"])
