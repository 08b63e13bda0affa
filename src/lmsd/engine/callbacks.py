"""What happens beside the updates, at cadences in images: evaluate, save, show, stop.

The order in a Trainer is Interrupt, Watchdog, Guard, Progress, Evaluate, Checkpoint: whoever asks for a
checkpoint or adds a score to one comes before the one who writes it.
"""

import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lmsd.checkpoints import checkpoint_name, manifests
from lmsd.data.reader import DamagedSample
from lmsd.engine.checkpoint import first_not_finite, prune
from lmsd.engine.module import Engine
from lmsd.engine.players import PlayersStrategy
from lmsd.engine.plugin import AtomicCheckpointIO
from lmsd.evaluation.pointer import is_kept
from lmsd.ranks import world_size
from lmsd.stops import BrokenOff

REFUSED, ENDED = 1, 2
"""The requests to stop since checkpoints cannot be written, and since a callback of the user's does."""

Evaluation: TypeAlias = Callable[[Engine], Mapping[str, float]]


def engine_of(module: LightningModule) -> Engine:
    """The module of a Trainer, typed."""
    assert isinstance(module, Engine)
    return module


def writer(trainer: Trainer) -> AtomicCheckpointIO:
    """What writes a Trainer's checkpoints, typed."""
    assert isinstance(trainer.strategy.checkpoint_io, AtomicCheckpointIO)
    return trainer.strategy.checkpoint_io


def not_finite(trainer: Trainer, engine: Engine) -> str | None:
    """The place in a run's weights, averages and optimizers that is not finite on some rank, or None.

    All ranks call it, and get the same answer: what follows, saving or going back, they do together.
    """
    optimizers = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
    places = [first_not_finite({**engine.state_dict(), "optimizer": optimizers})]
    if world_size() > 1:
        places *= world_size()
        dist.all_gather_object(places, places[0])
    return next((place for place in places if place is not None), None)


def ended(trainer: Trainer, engine: Engine) -> bool:
    """Whether a callback that is none of ours ends the run with this batch (`trainer.should_stop`).

    What one of several ranks wants, all must know: they hear of it with signals, a batch or two later.
    """
    asked = engine.run.asked
    if not trainer.should_stop or engine.clock.done or asked.stop:
        return False
    if world_size() > 1 and not asked.ended:
        asked.code, trainer.should_stop = max(asked.code, ENDED), False
        return False
    asked.ended = True
    return True


class Evaluate(Callback):
    """Calls `function(engine)` every `every_images` images, at the end, and before the first batch.

    Every rank calls it, so that it can share the work; what counts, for all, are rank 0's numbers. A run that
    is being stopped is saved at once, and scored where it goes on. Then all callbacks' `on_validation_end` is
    called, Lightning's EarlyStopping among them: `trainer.callback_metrics` holds what was written last.
    """

    def __init__(self, function: Evaluation, *, every_images: int, at_start: bool = True) -> None:
        self.function, self.every_images, self.at_start = function, every_images, at_start
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the untrained weights, or those that a signal kept from being scored."""
        engine = engine_of(pl_module)
        self._seen, late = engine.clock.images, engine.run.unscored
        if late or (self.at_start and engine.clock.images == 0):
            self._evaluate(trainer, engine)
            engine.run.asked.save = late and not engine.run.unscored

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score where a multiple of the cadence was passed."""
        engine = engine_of(pl_module)
        before, self._seen = self._seen, engine.clock.images
        if engine.clock.crossed(before, self.every_images) or engine.clock.done or ended(trainer, engine):
            self._evaluate(trainer, engine)

    def _evaluate(self, trainer: Trainer, engine: Engine) -> None:
        found: list[dict[str, float] | None] = [None]
        strategy = trainer.strategy
        stopping = engine.run.asked.stop or (world_size() == 1 and engine.run.asked.code)
        if engine.clock.done or not stopping:
            engine.run.asked.evaluating = True
            try:
                with strategy.gathered() if isinstance(strategy, PlayersStrategy) else nullcontext():
                    found = [self._score(engine)]
                if world_size() > 1:
                    dist.broadcast_object_list(found, src=0)
            finally:
                engine.run.asked.evaluating = False
        engine.run.unscored = found[0] is None
        if found[0] is None:
            engine.run.asked.stop = trainer.should_stop = True
        else:
            engine.run.scores, engine.run.scored_at = found[0], engine.clock.images
            engine.write(found[0])
            for callback in trainer.callbacks if engine.clock.images else ():  # type: ignore[attr-defined]
                callback.on_validation_end(trainer, engine)
            if world_size() > 1:  # all ranks are here: what one wants now needs no batch more to be heard of
                wishes = [trainer.should_stop] * world_size()
                dist.all_gather_object(wishes, trainer.should_stop)
                trainer.should_stop = engine.run.asked.ended = any(wishes)

    def _score(self, engine: Engine) -> dict[str, float] | None:
        """None where a signal broke it off; nothing where the system refused to write it down."""
        try:
            try:
                engine.run.asked.breakable = (
                    world_size() == 1
                )  # several ranks leave together (`evaluation.ranks`)
                return {name: float(value) for name, value in self.function(engine).items()}
            finally:
                engine.run.asked.breakable = False
        except BrokenOff:
            return None
        except OSError as error:
            warnings.warn(f"no scores at {engine.clock.images} images: {error}", stacklevel=2)
            return {}


class Checkpoint(Callback):
    """Saves every `every_images` images, at the end, and when the run is stopped.

    every_images: 0 for a tenth of the run. Kept are the last `keep_last`, the first one past every multiple
    of `keep_every` images (0: none), what is or was promoted, and the best by `monitor`, a metric of the
    evaluation (which, to count, must fall on the same images). A state that is not finite is not saved.
    After `tolerate` saves in a row that the system refused, the run is stopped.
    """

    def __init__(
        self,
        *,
        every_images: int = 0,
        keep_last: int = 3,
        keep_every: int = 0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        tolerate: int = 3,
    ) -> None:
        self.every_images, self.keep_last, self.keep_every = every_images, keep_last, keep_every
        self.monitor, self.mode, self.tolerate = monitor, mode, tolerate
        self.last: Path | None = None
        self._seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed process left half written."""
        self._seen = engine_of(pl_module).clock.images
        folder = self.folder(trainer)
        if trainer.is_global_zero:
            for leftover in folder.glob("*.tmp.*"):
                leftover.unlink(missing_ok=True)
        writer(trainer).after = lambda: self.prune(folder)
        if engine_of(pl_module).run.asked.save:
            self.save(trainer, engine_of(pl_module))

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        """Where checkpoints go."""
        return Path(trainer.default_root_dir) / "checkpoints"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is due."""
        engine, clock = engine_of(pl_module), engine_of(pl_module).clock
        writer(trainer).check()
        before, self._seen = self._seen, clock.images
        due = clock.crossed(before, self.every_images or -(-clock.total_images // 10))
        if due or clock.done or engine.run.asked.stop or engine.run.asked.save or ended(trainer, engine):
            self.save(trainer, engine)
        if writer(trainer).failures >= self.tolerate:
            engine.run.asked.code = max(engine.run.asked.code, REFUSED)

    def save(self, trainer: Trainer, engine: Engine) -> None:
        """Save now, unless the state holds what is not finite; all ranks agree on that."""
        engine.run.asked.save, bad = False, not_finite(trainer, engine)
        if bad is not None:
            engine.run.asked.sick = True
            warnings.warn(f"no checkpoint at {engine.clock.images} images: {bad} is not finite", stacklevel=2)
            return
        self.last = self.folder(trainer) / checkpoint_name(engine.clock.images)
        trainer.save_checkpoint(self.last, weights_only=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what was trained before a damaged sample ended the run; other ranks may not know of it."""
        engine = engine_of(pl_module)
        if isinstance(exception, DamagedSample) and world_size() == 1 and engine.clock.images:
            save_now(trainer, engine)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the writer, all ranks together: a scheduler may kill the others once one has left."""
        writer(trainer).wait()
        trainer.strategy.barrier()

    def prune(self, folder: Path) -> None:
        """Delete what need not be kept."""
        prune(
            folder,
            keep_last=self.keep_last,
            keep_every=self.keep_every,
            best=self.best(folder),
            kept=is_kept,
        )

    def best(self, folder: Path) -> Path | None:
        """The checkpoint with the best score, the earliest of equals; None without a monitor or scores."""
        if self.monitor is None:
            return None
        scores = {path: m["metrics"].get(self.monitor) for path, m in manifests(folder).items()}
        known = {path: score for path, score in scores.items() if score is not None}
        if not known:
            return None
        pick = min if self.mode == "min" else max
        return pick(known, key=lambda path: known[path])


def save_now(trainer: Trainer, engine: Engine) -> None:
    """Have a checkpoint on the disk, by the run's own `Checkpoint`, before the run ends itself."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Checkpoint):
            callback.save(trainer, engine)
            writer(trainer).wait()


def peak_memory() -> int:
    """The largest memory of this process so far in MiB: of the GPU where it used one, else resident."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated() / 2**20)
    status = Path("/proc/self/status")  # getrusage tells the peak of whoever started this process, if larger
    peak = status.read_text().partition("VmHWM:")[2].split() if status.is_file() else []
    if peak:
        return int(peak[0]) // 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


class Progress(Callback):
    """One bar on a terminal, refreshed four times a second; elsewhere a line now and then.

    seconds: between two lines where there is no terminal.
    """

    def __init__(self, *, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._bar: Any = None
        self._task: Any = None
        self._shown = self._began = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        engine = engine_of(pl_module)
        self._shown = self._began = time.monotonic()
        self._first = engine.clock.images
        if trainer.is_global_zero and sys.stderr.isatty():
            from rich import console, progress

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                "{task.description}",
                console=console.Console(stderr=True),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=engine.clock.total_images, completed=self._first)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show how far the run is."""
        now, engine = time.monotonic(), engine_of(pl_module)
        pause = 0.25 if self._bar is not None else self.seconds
        if (now - self._shown < pause and not engine.clock.done) or not trainer.is_global_zero:
            return
        self._shown = now
        text = self.describe(engine, now - self._began)
        if self._bar is not None:
            self._bar.update(self._task, completed=engine.clock.images, description=text)
        else:
            seen = f"{engine.clock.images}/{engine.clock.total_images} images"
            print(f"{seen}  {text}", file=sys.stderr, flush=True)

    def tell(self, done: int, total: int, what: str) -> None:
        """Show how far something is that holds training up, in the bar's own line."""
        text = f"{what} {done:,}/{total:,}"
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif time.monotonic() - self._shown >= self.seconds:
            self._shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def describe(self, engine: Engine, elapsed: float) -> str:
        """Speed, on a GPU MFU, the last line's losses, the most memory so far, and the time left."""
        clock = engine.clock
        speed = (clock.images - self._first) / max(elapsed, 1e-9)
        losses = [f"{n.split('/')[0]} {v:.3g}" for n, v in engine.run.line.items() if n.endswith("/loss")]
        left = max(0, clock.total_images - clock.images) / max(speed, 1e-9)
        time_left = f"{int(left // 60)}:{int(left % 60):02d} left"
        used = [] if engine.flops.latest is None else [f"MFU {engine.flops.latest:.1%}"]
        return "  ".join(
            [f"{speed:.0f} images/s", *used, *losses, f"{peak_memory() / 1024:.1f} GiB", time_left]
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
