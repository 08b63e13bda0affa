"""`lmsd sweep`: many runs over some options, each its own process, ranked by their scores on val.

The folder's name is that of the command, and trials.json says what is done, so the same command continues a
sweep that was stopped in any way: finished trials are kept, interrupted ones resumed from their checkpoint. A
trial that crashes, or whose score is not finite, costs itself alone.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from lmsd.cli import options, ranking, runs
from lmsd.cli.proposals import Direction, Method, hopeless, propose
from lmsd.cli.space import Space, read
from lmsd.cli.trials import Ledger, Trial
from lmsd.errors import UserError

HELP = """lmsd sweep OPTION=VALUE,VALUE ... [option=value ...]

  OPTION=1,2  =range(1,5)  =choice(a,b)      a grid: every combination
  OPTION=interval(0,1)                       numbers between, proposed by Optuna
         =int(interval(8,64))  =tag(log,interval(1e-5,1e-3))
  sweep.method=grid|tpe|random               default: tpe with an interval, else grid
  sweep.trials=20                            in all; default: the whole grid
  sweep.monitor=fd sweep.direction=min|max   which score on val: fd, kid, right, ...
  sweep.prune=true|false                     stop what is worse than the median; default: not on a grid
  sweep.jobs=1 sweep.gpus=[0,1]              at a time, each on its own GPU
  sweep.prefix='[srun, --gres=gpu:1]'        what starts each job, for SLURM and the like
  sweep.seed=0 sweep.name=NAME
  --dry-run                                  list the trials, or what is proposed, and stop

The same command continues an interrupted sweep. Results: outputs/sweeps/NAME/results.csv, .json,
parallel.svg, and the command that trains the winner. A sweep never sees the test split.
"""
POLL = 0.5  # seconds between two looks at the jobs


@dataclass(frozen=True)
class SweepOptions:
    """Options of `lmsd sweep` itself, each written sweep.NAME=; see HELP."""

    method: Method | None = None
    trials: int | None = None
    monitor: str = "fd"
    direction: Direction = "min"
    prune: bool | None = None
    jobs: int = 1
    gpus: tuple[int, ...] = ()
    prefix: tuple[str, ...] = ()
    seed: int = 0
    name: str | None = None


def main(arguments: list[str]) -> int:
    """Sweep, print the table and the winner's command."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0 if arguments else 2
    dry = "--dry-run" in arguments
    words = [word for word in arguments if word != "--dry-run"]
    own = [word.removeprefix("sweep.") for word in words if word.startswith("sweep.")]
    chosen = options.read(SweepOptions, own, verb="sweep (sweep.NAME=)")
    space = read([word for word in words if not word.startswith("sweep.")])
    sweep = Sweep(space, chosen, folder_of(space, chosen))
    if dry:
        print(sweep.plan())
        return 0
    with terminated_like_interrupted():
        sweep.run()
    print(sweep.report())
    return 0 if any(trial.state == "done" for trial in sweep.ledger.trials) else 1


def folder_of(space: Space, chosen: SweepOptions) -> Path:
    """outputs/sweeps/NAME; without a name, one made of what is swept, the same for the same command."""
    told = repr((space, chosen.method, chosen.monitor, chosen.direction, chosen.seed))
    experiment = next((w.partition("=")[2] for w in space.fixed if w.startswith("experiment=")), "sweep")
    name = chosen.name or f"{experiment}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return runs.OUTPUTS / "sweeps" / name


@dataclass
class Job:
    """A trial's process; handle is None where an earlier, killed sweep began it."""

    trial: Trial
    pid: int
    slot: int
    handle: "subprocess.Popen[bytes] | None" = None
    pruned: bool = False

    def running(self) -> bool:
        """Whether the process lives."""
        return runs.alive(self.pid) if self.handle is None else self.handle.poll() is None


@dataclass
class Sweep:
    """The loop that keeps `jobs` trials running until all are finished."""

    space: Space
    chosen: SweepOptions
    folder: Path
    ledger: Ledger = field(init=False)
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)
        intervals = any(not axis.choices for axis in self.space.axes)
        self.method: Method = self.chosen.method or ("tpe" if intervals else "grid")
        whole = len(self.space.grid()) if self.method == "grid" else 20
        self.total = self.chosen.trials or whole
        self.total = min(self.total, whole) if self.method == "grid" else self.total
        self.prunes = self.method != "grid" if self.chosen.prune is None else self.chosen.prune
        if self.chosen.jobs < 1 or self.total < 1:
            raise UserError("sweep.jobs and sweep.trials must be at least 1")
        known = {tuple(trial.values) for trial in self.ledger.trials} - {
            tuple(a.key for a in self.space.axes)
        }
        if known:
            raise UserError(f"{self.folder} is a sweep over {', '.join(*known)}: give another sweep.name=")

    def plan(self) -> str:
        """What would run, and where."""
        done = len(self.ledger.finished())
        head = f"{self.folder}: {self.total} trials by {self.method}, {done} of them finished"
        if self.method != "grid":
            return "\n".join([head, *(f"  {axis}" for axis in self.space.axes)])
        tried = [trial.values for trial in self.ledger.finished()]
        rows = [f"  lmsd train {' '.join(self.space.words(v))}" for v in self.space.grid() if v not in tried]
        return "\n".join([head, *rows[: self.total - done]])

    def run(self) -> None:
        """Run every trial that is not finished."""
        print(f"Sweep {self.folder}  ({self.total} trials by {self.method}, {self.chosen.jobs} at a time)")
        waiting = [trial for trial in self.ledger.trials if trial.state == "running"]
        try:
            while True:
                self._collect()
                free = sorted(set(range(self.chosen.jobs)) - {job.slot for job in self.jobs})
                for slot in free:
                    trial = waiting.pop(0) if waiting else self._next()
                    if trial is not None:
                        self._start(trial, slot)
                if not self.jobs and not waiting:
                    break
                time.sleep(POLL)
        finally:
            self._stop()
            ranking.write(
                self.ledger, self.space, monitor=self.chosen.monitor, direction=self.chosen.direction
            )

    def _next(self) -> Trial | None:
        if len(self.ledger.trials) >= self.total:
            return None
        states = [trial.state for trial in self.ledger.trials]
        if len(states) >= 3 and set(states) == {"failed"}:
            return None  # the rest would fail alike
        values = propose(
            self.space,
            self.ledger.trials,
            method=self.method,
            direction=self.chosen.direction,
            seed=self.chosen.seed,
        )
        return None if values is None else self.ledger.add(values)

    def _start(self, trial: Trial, slot: int) -> None:
        done = runs.status(self.ledger.run_dir(trial)).get("state") == "done"
        if trial.pid is not None and (done or runs.alive(trial.pid)):
            self.jobs.append(Job(trial, trial.pid, slot))  # it outlived the sweep that began it
            return
        environment = dict(os.environ)
        if self.chosen.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.chosen.gpus[slot % len(self.chosen.gpus)])
        with self._log(trial) as log:
            # In a session of its own: Ctrl-C reaches it through `_stop`, once.
            handle = subprocess.Popen(
                self.command(trial), stdout=log, stderr=log, env=environment, start_new_session=True
            )
        trial.pid = handle.pid
        self.ledger.save()
        self.jobs.append(Job(trial, handle.pid, slot, handle))

    def _log(self, trial: Trial) -> IO[bytes]:
        return open(self.folder / f"{trial.number}.log", "ab")

    def command(self, trial: Trial) -> list[str]:
        """What trains a trial: anew, or on from the checkpoint that an interrupted sweep left."""
        folder = self.ledger.run_dir(trial)
        if any((folder / "checkpoints").glob("*.ckpt")):
            words = [f"resume={folder}"]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            words = [*self.space.words(trial.values), f"run_dir={folder}"]
        return [*self.chosen.prefix, sys.executable, "-m", "lmsd.cli", "train", *words]

    def _collect(self) -> None:
        """Take in what the jobs have written; end those that are through, and stop the hopeless."""
        for job in list(self.jobs):
            trial = job.trial
            trial.read(self.ledger.run_dir(trial), self.chosen.monitor)
            if not job.running():
                self.jobs.remove(job)
                self._finish(job)
            elif self.prunes and not job.pruned and self._hopeless(trial):
                job.pruned = True
                _send(job, signal.SIGINT)

    def _hopeless(self, trial: Trial) -> bool:
        return hopeless(trial, self.ledger.trials, direction=self.chosen.direction)

    def _finish(self, job: Job) -> None:
        trial, folder = job.trial, self.ledger.run_dir(job.trial)
        trial.read(folder, self.chosen.monitor)
        state = runs.status(folder).get("state")
        if job.pruned:
            trial.state = "pruned"
        elif state == "done" and trial.value is not None:
            trial.state = "done"
        else:
            trial.state, trial.note = "failed", self._why(trial, folder, state)
        trial.pid = None
        self.ledger.save()
        print(
            f"#{trial.number}  {ranking.score(trial)}  {trial.state}{f': {trial.note}' if trial.note else ''}"
        )
        ranking.write(self.ledger, self.space, monitor=self.chosen.monitor, direction=self.chosen.direction)

    def _why(self, trial: Trial, folder: Path, state: Any) -> str:
        """The reason of a failure: the sentence in its log, or that it ended without a score."""
        log = (self.folder / f"{trial.number}.log").read_text(errors="replace")
        said = [line.removeprefix("lmsd: ") for line in log.splitlines() if line.startswith("lmsd: ")]
        if said and state != "done":
            return said[-1]
        if state == "done":
            return f"no finite {self.chosen.monitor} on val"
        return f"its process died ({self.folder / f'{trial.number}.log'})"

    def _stop(self) -> None:
        """Let jobs that still run save and end, when the sweep itself is being stopped."""
        for job in self.jobs:
            _send(job, signal.SIGINT)
        for job in self.jobs:
            if job.handle is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    job.handle.wait(timeout=60)

    def report(self) -> str:
        """The table, the winner's command and where the results lie."""
        monitor, direction = self.chosen.monitor, self.chosen.direction
        lines = [ranking.table(self.ledger.trials, self.space, monitor=monitor, direction=direction)]
        best = ranking.winner(self.ledger.trials, self.space, direction)
        lines.append(f"Best again: {best}" if best else "No trial has a score; their logs say why")
        lines.append(f"Results: {self.folder / 'results.csv'}, results.json, parallel.svg")
        return "\n".join(lines)


def _send(job: Job, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, number)


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the sweep as Ctrl-C does: its jobs save and stop."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
