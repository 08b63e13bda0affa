"""A rank that hangs is named, with the stacks of all threads, and the job ends.

Each rank records its progress, (images, collectives entered), in the ranks' shared store. If no batch ends
for too long, the ranks that are furthest behind are the ones that hang: the others wait for them inside a
collective that they have not entered. A second timer works without the interpreter's lock.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmsd.engine.callbacks import engine_of
from lmsd.engine.module import Engine
from lmsd.ranks import world_size

LONGER = 10
"""How many times as long as a batch an evaluation may take."""

HUNG = 75
"""The exit code of a run that hung: a temporary failure, which may be retried."""


class Watchdog(Callback):
    """Ends the run if no batch has finished for `seconds`, or an evaluation takes ten times as long.

    seconds: option `hang_seconds`; 0 for never.
    """

    def __init__(self, *, seconds: float = 1_800.0) -> None:
        self.seconds = seconds
        self._beat = self._armed = self._limit = 0.0
        self._over = threading.Event()
        self._store: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start watching."""
        if not self.seconds:
            return
        if world_size() > 1:
            self._store = _store()
        self._over.clear()
        self._tick(self.seconds)
        thread = threading.Thread(target=self._watch, args=(trainer, engine_of(pl_module)), daemon=True)
        thread.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Reset the timers."""
        if self.seconds:
            self._tick(self.seconds)

    def _tick(self, limit: float) -> None:
        self._beat = time.monotonic()
        if limit != self._limit or self._beat - self._armed > limit / 10:
            self._armed, self._limit = self._beat, limit
            faulthandler.dump_traceback_later(2 * limit + 60, exit=True, file=2)

    def _watch(self, trainer: Trainer, engine: Engine) -> None:
        pause = min(5.0, self.seconds / 4)
        evaluating = False
        while not self._over.wait(pause):
            if evaluating != engine.run.asked.evaluating:
                evaluating = engine.run.asked.evaluating
                self._tick(LONGER * self.seconds if evaluating else self.seconds)
            if self._store is not None:
                with contextlib.suppress(Exception):  # its host may be gone
                    far = f"{engine.clock.images} {engine.reducer.calls}"
                    self._store.set(f"lmsd/far/{engine.global_rank}", far)
            if time.monotonic() - self._beat > self._limit:
                what = "no evaluation" if evaluating else "no batch"
                self._end(trainer, engine, f"{what} has ended for {self._limit:g} s", pause)

    def _end(self, trainer: Trainer, engine: Engine, why: str, pause: float) -> None:
        time.sleep(2 * pause)  # by now all ranks have recorded their progress
        far = {engine.global_rank: (engine.clock.images, engine.reducer.calls)}
        with contextlib.suppress(Exception):
            for rank in range(world_size() if self._store is not None else 0):
                words = self._store.get(f"lmsd/far/{rank}").decode().split()
                far[rank] = (int(words[0]), int(words[1]))
        behind = sorted(rank for rank, place in far.items() if place == min(far.values()))
        which = f"rank {', '.join(map(str, behind))} hangs"
        if 1 < len(far) == len(behind):
            which = "no rank is behind"
        print(
            f"lmsd: {why}, after {engine.clock.images:,} images; {which} (if it is only slow, raise "
            f"hang_seconds={self.seconds:g}). Stacks of rank {engine.global_rank}:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True, file=2)
        if engine.global_rank == 0:
            time.sleep(2 * pause)  # this process may host the store, and others still have to read it
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGKILL)
        os._exit(HUNG)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching, once the last checkpoint is written."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self._stop()

    def _stop(self) -> None:
        self._over.set()
        faulthandler.cancel_dump_traceback_later()


def _store() -> Any:
    """A separate connection to the ranks' key-value store."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(minutes=1))
