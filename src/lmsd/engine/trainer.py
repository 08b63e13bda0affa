"""One call that trains: a Lightning Trainer, configured as the engine needs it.

One endless epoch (`max_epochs=-1`), since Lightning replays or loses batches when a run is resumed at the end
of an epoch; our own checkpoints, metrics and progress bar; no sanity validation, no samplers of Lightning's,
no logging of hyperparameters. The engine counts, clips and reduces.
"""

import logging
import multiprocessing
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.profilers import Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import Strategy

from lmsd.checkpoints import find, manifests, set_aside
from lmsd.engine.callbacks import REFUSED, Checkpoint, Progress
from lmsd.engine.divergence import Guard
from lmsd.engine.hardware import ALONE, Hardware
from lmsd.engine.logging import JSONLLogger
from lmsd.engine.module import Engine
from lmsd.engine.players import PlayersStrategy
from lmsd.engine.plugin import AtomicCheckpointIO
from lmsd.engine.signals import Interrupt
from lmsd.engine.watchdog import Watchdog
from lmsd.errors import UserError
from lmsd.ranks import launched_rank, shares
from lmsd.stops import BrokenOff

_OFF: dict[str, Any] = {
    "max_epochs": -1,
    "limit_val_batches": 0,
    "check_val_every_n_epoch": None,  # else Lightning's EarlyStopping waits for the end of an epoch
    "val_check_interval": 2**62,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "enable_autolog_hparams": False,
}
"""The parts of Lightning that are not used."""

_LOUD = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")
_NOT_SO = (
    ".*module.s. in eval mode.*",
    ".*does not have many workers.*",
    ".*You're resuming from a checkpoint.*",  # the position is the DataModule's
    ".*overridden `transfer_batch_to_device`.*",
    ".*LeafSpec.*",
    ".*`srun` command is available.*",  # one process is started where one is wanted
    r".*FSDPMLPBackbone\) returned a view tensor.*",  # into which `Generator.forward` does not write
)


@runtime_checkable
class Resumable(Protocol):
    """A data module whose stream can be resumed exactly."""

    def advance(self, images: int) -> None:
        """Count global images as used, after each optimizer step."""


def fit(
    engine: Engine,
    datamodule: LightningDataModule,
    *,
    run_dir: Path,
    hardware: Hardware = ALONE,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    resume_from: Path | None = None,
    profiler: Literal["simple", "pytorch"] | None = None,
    asynchronous: bool = False,
) -> Trainer:
    """Train until `engine.clock` has seen all images; returns the Trainer, which knows its rank and devices.

    run_dir: for metrics.jsonl, checkpoints/ and the profiler's tables; loggers: further ones; callbacks: a
    `Checkpoint` is added if there is none; resume_from: a checkpoint, or a run folder for its newest one;
    asynchronous: write checkpoints in the background, from a copy in memory. Raises UserError for a batch
    size that does not divide and if checkpoints could not be written, SystemExit(130) after Ctrl-C,
    SystemExit(143) after SIGTERM or SIGUSR1.
    """
    _check(engine, datamodule, hardware.ranks, callbacks)
    hardware.check(engine)
    found = None if resume_from is None else str(_found(Path(resume_from)))
    interrupt, disk = Interrupt(), AtomicCheckpointIO(asynchronous=asynchronous)
    _quiet()
    trainer = Trainer(
        default_root_dir=run_dir,
        accelerator=found_accelerator(hardware.accelerator),
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=_strategy(hardware),
        precision=hardware.precision,
        logger=[JSONLLogger(Path(run_dir) / "metrics.jsonl"), *loggers],
        callbacks=_ordered(callbacks, interrupt),
        plugins=[disk],
        profiler=_profiler(profiler, run_dir),
        **_OFF,
    )
    with _to_its_end(trainer, interrupt), interrupt.listening(trainer, engine):
        trainer.fit(engine, datamodule=datamodule, ckpt_path=found)
    if interrupt.code == REFUSED or disk.failures:
        raise UserError(f"checkpoints could not be written to {run_dir}: make room and resume the run")
    if interrupt.code:
        sys.exit(interrupt.code if trainer.is_global_zero or _external(trainer) else 0)
    return trainer


def _check(
    engine: Engine, datamodule: LightningDataModule, ranks: int, callbacks: Sequence[Callback]
) -> None:
    if not isinstance(datamodule, Resumable):
        raise UserError(
            f"{type(datamodule).__name__} has no advance(images): the engine tells it how far the stream is"
        )
    shares(engine.batch_size, ranks, engine.micro_batches)
    check_callbacks(callbacks, engine.learners)


@contextmanager
def _to_its_end(trainer: Trainer, interrupt: Interrupt) -> Iterator[None]:
    """Let a run that is asked to end before its first batch end like any other; leave no worker behind."""
    try:
        yield
    except BrokenOff:
        if not interrupt.code:
            raise
        if trainer.is_global_zero:
            print("Interrupted before the first batch", file=sys.stderr, flush=True)
    finally:
        for worker in multiprocessing.active_children():
            if worker.daemon:  # a loader's, stuck: it would outlive the process by `stops.GRACE`
                worker.kill()


def _strategy(hardware: Hardware) -> Strategy | str:
    """How the ranks work together."""
    if hardware.fsdp:
        from lmsd.engine.sharding import ShardedStrategy

        return ShardedStrategy()
    return PlayersStrategy() if hardware.ranks > 1 else "auto"


def found_accelerator(wanted: str) -> str:
    """The accelerator that `auto` stands for; never Apple's, which lacks the float64 that schedules need."""
    if wanted != "auto":
        return wanted
    return "gpu" if torch.cuda.is_available() else "cpu"


def _found(path: Path) -> Path:
    """The checkpoint to continue from; rank 0 sets aside damaged ones, and those later than a named file."""
    chief = launched_rank() == 0
    found = find(path, aside=chief)
    if chief and path.is_file():
        for later in manifests(found.parent):
            if later > found:
                set_aside(later)
    return found


def _external(trainer: Trainer) -> bool:
    """Whether a launcher other than Lightning started the ranks and looks at their exit codes.

    Lightning kills rank 0 as soon as another rank's code is not 0.
    """
    environment: Any = trainer.strategy.cluster_environment if trainer.world_size > 1 else None  # type: ignore[attr-defined]
    return environment is None or bool(environment.creates_processes_externally)


def _ordered(callbacks: Sequence[Callback], interrupt: Interrupt) -> list[Callback]:
    """Interrupt, Watchdog and Guard first; last, after all who may ask for or add to one, checkpoints."""

    def place(callback: Callback) -> int:
        return next((n for n, kind in _PLACES.items() if isinstance(callback, kind)), 3)

    own = callbacks if any(place(c) == 4 for c in callbacks) else [*callbacks, Checkpoint()]
    return [interrupt, *sorted(own, key=place)]


_PLACES: Mapping[int, type[Callback]] = {0: Watchdog, 1: Guard, 2: Progress, 4: Checkpoint}


REPLACED: Mapping[type[Callback], str] = {
    theirs.Checkpoint: "runs save themselves, also the best by val: checkpoint_every=, keep=, keep_every=",
    theirs.OnExceptionCheckpoint: "runs save themselves: checkpoint_every=, keep=, keep_every=",
    theirs.GradientAccumulationScheduler: "gradients are accumulated by micro_batches=2 (4, 8, ...)",
    theirs.StochasticWeightAveraging: "weights are averaged by optim.ema=[HALFLIFE]",
    theirs.WeightAveraging: "weights are averaged by optim.ema=[HALFLIFE]",
    theirs.ProgressBar: "the bar is callbacks.progress",
    theirs.LearningRateMonitor: "rates are logged by images: generator/lr, discriminator/lr",
    theirs.DeviceStatsMonitor: "it logs by batches, and all else by images; debug=profile tells of time",
    theirs.ThroughputMonitor: "it logs by batches, and all else by images; debug=profile tells of time",
    theirs.BatchSizeFinder: "give batch_size=, and micro_batches= where it does not fit",
    theirs.LearningRateFinder: "rates are searched by lmsd sweep optim.generator.lr=1e-4,3e-4",
}
"""Lightning's callbacks that cannot work here or would duplicate ours, and what to use instead."""


def check_callbacks(callbacks: Sequence[Callback], learners: Sequence[str], *, scored: bool = True) -> None:
    """Refuse callbacks that cannot work with the engine, and early stopping by what is never measured."""
    for callback in callbacks:
        name = type(callback).__name__
        way = next((way for kind, way in REPLACED.items() if isinstance(callback, kind)), None)
        if way is not None:
            raise UserError(f"callbacks: {name} cannot be used here; {way}")
        if not isinstance(callback, theirs.EarlyStopping):
            continue
        if not scored:
            raise UserError(f"callbacks: {name} acts after evaluations; give evaluate.n=1000")
        place, _, score = (callback.monitor or "").partition("/")
        if not score or place not in ("val", *learners):
            raise UserError(
                f"callbacks: {name} monitor={callback.monitor} is not measured; take val/fd, val/kid, "
                f"val/right (or another score of lmsd evaluate), or of training {learners[0]}/loss"
            )


def _profiler(kind: str | None, folder: Path) -> Profiler | None:
    """Lightning's profiler of that name, which writes to the run's folder."""
    if kind is None:
        return None
    made = SimpleProfiler if kind == "simple" else PyTorchProfiler
    return made(dirpath=folder, filename="profile")


def _quiet() -> None:
    """Silence hints that do not apply: averages are in eval mode on purpose, and the loader is ours."""
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOT_SO:
        warnings.filterwarnings("ignore", message=message)
