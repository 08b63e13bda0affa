"""Signals end a run after the batch at hand, with a checkpoint, on all ranks at the same batch.

A handler only notes the request (`lmsd.stops`); a second Ctrl-C ends the run at once. The ranks agree on the
largest one over a CPU group of their own, a batch late and in the background,

    r_n = max over ranks of the requests after batch n,   read by all after batch n + 1,

so that no batch waits for a device or for another rank; on what was asked for in the set-up they agree
before the first. An evaluation is broken off, by several ranks where they meet in it
(`evaluation.ranks`), and made up for when the run goes on. Lightning's own handlers broadcast inside the
handler (ranks out of step then hang), save by themselves and queue SLURM's job again, and its loop broadcasts
before every batch; all are put out of the way.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lmsd import stops
from lmsd.checkpoints import checkpoint_name, manifest_of
from lmsd.engine.callbacks import ENDED, Checkpoint, engine_of, writer
from lmsd.engine.module import Engine
from lmsd.ranks import world_size
from lmsd.stops import CODES, BrokenOff


class Interrupt(Callback):
    """Turns signals into an agreed end of the run; `code` is then its exit code, else 0."""

    def __init__(self) -> None:
        self.code = 0
        self._group: Any = None
        self._work: Any = None
        self._flag: Tensor | None = None

    @contextmanager
    def listening(self, trainer: Trainer, engine: Engine) -> Iterator[None]:
        """Hear signals from Lightning's set-up to its end, and Lightning none."""

        def heard(code: int) -> None:
            if code == CODES[signal.SIGINT] and engine.run.asked.code == code:
                raise KeyboardInterrupt
            engine.run.asked.code = stops.noted = max(engine.run.asked.code, code)
            if engine.run.asked.breakable:
                raise BrokenOff

        trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        before = stops.noted
        try:
            with stops.listening(heard):
                engine.run.asked.code = max(engine.run.asked.code, stops.noted)
                yield
        finally:
            stops.noted = before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End here, on all ranks, if any was asked to so far."""
        engine = engine_of(pl_module)
        if world_size() > 1:
            self._group = dist.new_group(backend="gloo")
            self._ask(engine)
        code = self._read() if world_size() > 1 else engine.run.asked.code
        if code and not engine.clock.done:
            self.code = code
            raise BrokenOff

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after this batch, if that is agreed."""
        engine = engine_of(pl_module)
        code = self._read() if world_size() > 1 else engine.run.asked.code
        if world_size() > 1:
            self._ask(engine)
        if code == ENDED:  # scored and saved, as at its end
            engine.run.asked.ended = trainer.should_stop = True
        elif code and not engine.clock.done:
            self.code = code
            engine.run.asked.stop = trainer.should_stop = True

    def _ask(self, engine: Engine) -> None:
        self._flag = torch.tensor(engine.run.asked.code)
        self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _read(self) -> int:
        """What was agreed on at the batch before."""
        if self._work is None or self._flag is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._flag)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the run was saved."""
        engine = engine_of(pl_module)
        if world_size() > 1:
            self._read()
            self._ask(engine)
        code = self._read() if world_size() > 1 else engine.run.asked.code
        complete = engine.clock.done and not engine.run.unscored
        self.code = 0 if complete or code == ENDED else self.code or code
        writer(trainer).wait()
        if self.code in CODES.values() and trainer.is_global_zero:
            name = Checkpoint.folder(trainer) / checkpoint_name(engine.clock.images)
            saved = f"Saved {name}" if manifest_of(name).exists() else f"There is no {name}"
            print(f"Interrupted. {saved}", file=sys.stderr, flush=True)


def _nothing() -> None:
    """In place of Lightning's handlers, and of its broadcast before every batch."""
