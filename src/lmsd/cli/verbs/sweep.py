"""`lmsd sweep`: many runs over some options, each its own process, ranked by their scores on val.

The folder's name is that of the command, and trials.json says what is done, so the same command continues a
sweep that was stopped in any way: finished trials are kept; those that a signal or a kill interrupted go on
from their checkpoint, and with sweep.retry=true those that failed. A trial that crashes, or whose last score
is not finite, costs itself alone.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmsd import stops
from lmsd.cli.config import options
from lmsd.cli.config.settings import Folder
from lmsd.cli.runs import store
from lmsd.cli.sweeps import ranking
from lmsd.cli.sweeps.checks import checked, each, require_data
from lmsd.cli.sweeps.jobs import Job, Placement
from lmsd.cli.sweeps.monitors import better
from lmsd.cli.sweeps.proposals import Method, hopeless, propose
from lmsd.cli.sweeps.space import Space, read
from lmsd.cli.sweeps.trials import Ledger, Trial, began
from lmsd.errors import Count, Seed, UserError
from lmsd.evaluation.catalog import Direction

HELP = """lmsd sweep OPTION=VALUE,VALUE ... [option=value ...]

  OPTION=1,2  =range(1,5)  =choice(a,b)      a grid: every combination
  OPTION=interval(0,1)                       numbers between, proposed by Optuna
         =int(interval(8,64))  =tag(log,interval(1e-5,1e-3))
  sweep.method=grid|tpe|random               default: tpe with an interval, else grid
  sweep.trials=20                            in all, none twice; default: the whole grid
  sweep.monitor=fd sweep.direction=min|max   which last score on val: fd, kid, right, ...; default: as
                                             it is better, e.g. max for right
  sweep.prune=true|false                     stop what is worse than the median; default: not on a grid
  sweep.jobs=1                               at a time; default: as many as sweep.gpus are for
  sweep.gpus=[0,1]                           each job on as many of them as its devices= asks for
  sweep.prefix='srun --gres=gpu:1'           what starts each job, for SLURM and the like
  sweep.retry=true                           train failed trials again, from their checkpoint
  sweep.seed=0 sweep.name=NAME
  --dry-run                                  list the trials, or what is proposed, and stop

The same command continues an interrupted sweep. Results: outputs/sweeps/NAME/results.csv, .json,
parallel.svg, and the command that trains the winner. A sweep never sees the test split.
"""
POLL = 0.5  # seconds between two looks at the jobs
ENDED = ("done", "stopped")
"""States of a run that was trained as far as it was to be, by itself or a callback's leave."""
OWN = ("method", "trials", "monitor", "direction", "prune", "jobs", "gpus", "prefix", "retry")
"""Options of a sweep whose names no option of a run has."""
PATIENCE = 60  # seconds that jobs which are told to stop have to save


@dataclass(frozen=True)
class SweepOptions(Placement):
    """Options of `lmsd sweep` itself, each written sweep.NAME=; see HELP."""

    method: Method | None = None
    trials: Count | None = None
    monitor: str = "fd"
    direction: Direction | None = None
    prune: bool | None = None
    retry: bool = False
    seed: Seed = 0
    name: Folder | None = None


def main(arguments: list[str]) -> int:
    """Sweep, print the table and the winner's command."""
    dry = "--dry-run" in arguments
    words = [word for word in arguments if word != "--dry-run"]
    chosen = chosen_by([word for word in words if word.startswith("sweep.")])
    told = [word for word in words if not word.startswith("sweep.")]
    for name in {word.partition("=")[0] for word in told} & set(OWN):
        raise UserError(f"{name}= is an option of the sweep, not of its trials: write sweep.{name}=")
    space = checked(read(told), monitor=chosen.monitor)
    sweep = Sweep(space, chosen, folder_of(space, chosen))
    if dry:
        print(sweep.plan())
        return 0
    if not chosen.prefix:  # what that starts may run elsewhere, with other data and devices
        with stops.preparing():
            rehearse(space, chosen.monitor)
    code = sweep.run()
    if code:
        print("lmsd: interrupted; the same command continues the sweep", file=sys.stderr)
        return code
    print(sweep.report())
    return 0 if any(trial.state == "done" for trial in sweep.ledger.trials) else 1


def rehearse(space: Space, monitor: str) -> None:
    """Build what every combination would train, and see that val gives the score; nothing is written.

    Combinations that differ in their seed alone are one.
    """
    from lmsd.cli.verbs.train import prepared

    def build(config: DictConfig, words: list[str]) -> None:
        require_data(monitor, config.evaluate, prepared(config, words).built.data.shards)

    each(space, build, apart="seed")


def chosen_by(words: list[str]) -> SweepOptions:
    """The options of words sweep.NAME=VALUE, checked. Raises UserError."""
    given = [word.partition("=")[2] for word in words if word.startswith("sweep.prefix=")]
    others = [word for word in words if not word.startswith("sweep.prefix=")]
    chosen = options.read(SweepOptions, others, verb="sweep (sweep.NAME=)", prefix="sweep.")
    better(chosen.monitor)
    return replace(chosen, prefix=command_of(given[-1])) if given else chosen


def command_of(text: str) -> tuple[str, ...]:
    """The words of a prefix, [srun, --ntasks=1] or 'srun --ntasks=1': a list of Hydra's would take no "="."""
    listed = text.startswith("[") and text.endswith("]")
    words = shlex.shlex(text[1:-1] if listed else text, posix=True)
    words.whitespace_split, words.commenters = True, ""
    words.whitespace += "," * listed
    try:
        command = tuple(words)
    except ValueError as error:
        raise UserError(f"cannot read sweep.prefix={text}: {str(error).lower()}") from None
    if command and shutil.which(command[0]) is None:
        raise UserError(f"sweep.prefix={text}: there is no program {command[0]} here; name one by its path")
    return command


def folder_of(space: Space, chosen: SweepOptions) -> Path:
    """outputs/sweeps/NAME; without a name, one made of what is swept, the same for the same command."""
    direction = chosen.direction or better(chosen.monitor)
    told = repr((space, chosen.method, chosen.monitor, direction, chosen.seed))
    experiment = next((w.partition("=")[2] for w in space.fixed if w.startswith("experiment=")), "sweep")
    name = chosen.name or f"{experiment}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    return store.OUTPUTS / "sweeps" / name


@dataclass
class Sweep:
    """The loop that keeps as many trials running as there are places, until all are finished.

    waiting: trials of earlier launches to train on; asked: the exit code that a signal asks for, or 0.
    """

    space: Space
    chosen: SweepOptions
    folder: Path
    ledger: Ledger = field(init=False)
    jobs: list[Job] = field(default_factory=list)
    waiting: list[Trial] = field(default_factory=list)
    asked: int = 0
    heard: int = 0

    def __post_init__(self) -> None:
        chosen = self.chosen
        self.ledger = Ledger(self.folder)
        self.direction: Direction = chosen.direction or better(chosen.monitor)
        intervals = any(not axis.choices for axis in self.space.axes)
        self.method: Method = chosen.method or ("tpe" if intervals else "grid")
        whole = len(self.space.grid()) if self.method == "grid" else 20
        self.total = int(min(chosen.trials or whole, self.space.size()))
        self.prunes = self.method != "grid" if chosen.prune is None else chosen.prune
        self.places = chosen.places(self.space.devices)
        told = {
            "fixed": " ".join(self.space.fixed),
            "over": " ".join(map(str, self.space.axes)),
            "monitor": chosen.monitor,
            "direction": self.direction,
        }
        for name, was in self.ledger.sweep.items():
            if was != told[name]:
                said = f"{name}: {was or 'nothing'}, not {told[name] or 'nothing'}"
                raise UserError(f"{self.folder} is another sweep ({said}): give another sweep.name=")
        self.ledger.sweep = told

    def plan(self) -> str:
        """What would run, and where."""
        tried = [trial.values for trial in self.ledger.trials if not self._open(trial)]
        first = "lowest" if self.direction == "min" else "highest"
        lines = [
            f"{self.folder}: {self._size()}, {len(tried)} of them finished",
            f"ranked by {self.chosen.monitor} on val, the {first} first",
        ]
        if self.method == "grid":
            left = [values for values in self.space.grid() if values not in tried]
            rows = [f"  lmsd train {' '.join(self.space.words(values))}" for values in left]
            return "\n".join([*lines, *rows[: max(0, self.total - len(tried))]])
        each = f"each: lmsd train {' '.join(self.space.words({}))}".rstrip()
        return "\n".join([*lines, f"{each}, and of", *(f"  {axis.shown()}" for axis in self.space.axes)])

    def _size(self) -> str:
        """How many trials there are, and whether these are all that are possible."""
        every = (self.chosen.trials or 0) > self.total
        return f"{self.total} trials by {self.method}" + ", every combination there is" * every

    def _open(self, trial: Trial) -> bool:
        """Whether an earlier launch left a trial to be trained on."""
        return trial.state in ("running", "interrupted") or (self.chosen.retry and trial.state == "failed")

    def run(self) -> int:
        """Run every trial that is not finished; 0, or the exit code that a signal asks for."""
        with self.ledger.alone(), stops.listening(self._hear):
            print(f"Sweep {self.folder}  ({self._size()}, {len(self.places)} at a time)", flush=True)
            self._take_up()
            try:
                while not self.asked and self._step():
                    time.sleep(POLL)
            finally:
                self._stop()
                self._write()
        return self.asked

    def _hear(self, code: int) -> None:
        self.asked, self.heard = max(self.asked, code), self.heard + 1

    def _take_up(self) -> None:
        """Watch jobs that outlived the sweep that started them; other unfinished trials wait for a place."""
        for trial in filter(self._open, self.ledger.trials):
            folder = self.ledger.run_dir(trial)
            done = trial.state != "failed" and store.status(folder).get("state") in ENDED
            if done or trial.lives() or store.held(folder):
                trial.state = "running"
                self.jobs.append(Job(trial, folder, self.chosen.notice))
            else:
                self.waiting.append(trial)

    def _step(self) -> bool:
        """Collect what has ended, and fill the free places; whether anything runs."""
        self._collect()
        taken = {job.trial.slot for job in self.jobs}
        free = [slot for slot in range(len(self.places)) if slot not in taken]
        for slot in free[: max(0, len(self.places) - len(self.jobs))]:
            trial = self.waiting.pop(0) if self.waiting else self._next()
            if trial is not None:
                self._start(trial, slot)
        return bool(self.jobs)

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
            direction=self.direction,
            seed=self.chosen.seed,
        )
        return None if values is None else self.ledger.add(values)

    def _start(self, trial: Trial, slot: int) -> None:
        environment = dict(os.environ)
        if self.places[slot]:
            environment["CUDA_VISIBLE_DEVICES"] = self.places[slot]
        with open(self.folder / f"{trial.number}.log", "ab") as log:
            said = log.tell()
            # In a session of its own: Ctrl-C reaches it through `_stop`, once.
            handle = subprocess.Popen(
                self.command(trial), stdout=log, stderr=log, env=environment, start_new_session=True
            )
        trial.state, trial.note, trial.slot = "running", "", slot
        trial.pid, trial.born = handle.pid, began(handle.pid)
        self.jobs.append(Job(trial, self.ledger.run_dir(trial), self.chosen.notice, handle, said))
        self.ledger.save()

    def command(self, trial: Trial) -> list[str]:
        """What trains a trial: anew, or on from the checkpoint that an interrupted sweep left."""
        folder = self.ledger.run_dir(trial)
        if any((folder / "checkpoints").glob("*.ckpt")) and store.status(folder).get("state") not in ENDED:
            words = [f"resume={folder}"]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            words = [*self.space.words(trial.values), f"run_dir={folder}"]
        return [*self.chosen.prefix, sys.executable, "-m", "lmsd.cli", "train", *words]

    def _collect(self) -> None:
        """Read what the jobs have written; close those that are done, and stop the hopeless ones."""
        for job in list(self.jobs):
            job.trial.read(job.folder, self.chosen.monitor)
            if not job.running():
                self.jobs.remove(job)
                self._finish(job)
            elif self.prunes and hopeless(job.trial, self.ledger.trials, direction=self.direction):
                job.pruned |= not job.ended
                job.end()

    def _finish(self, job: Job) -> None:
        trial, state = job.trial, store.status(job.folder).get("state")
        trial.read(job.folder, self.chosen.monitor)
        if state in ENDED and trial.result.value is not None:
            trial.state = "done"
        elif state not in ENDED and job.pruned:
            trial.state = "pruned"
        elif state not in ENDED and job.interrupted(state):
            trial.state, trial.note = "interrupted", "the same command trains it on"
            if job.handle is None:  # an earlier launch began it
                self.waiting.append(trial)
        else:
            trial.state, trial.note = "failed", self._why(job, state)
        trial.pid = None
        self.ledger.save()
        note = f": {trial.note}" if trial.note else ""
        print(f"#{trial.number}  {trial.result}  {trial.state}{note}", flush=True)
        self._write()

    def _why(self, job: Job, state: Any) -> str:
        """The reason of a failure: the sentence in its log, or that it ended without a score."""
        if state in ENDED:
            return f"no finite {self.chosen.monitor} on val{refused_score(job.folder, self.chosen.monitor)}"
        path = self.folder / f"{job.trial.number}.log"
        log = path.read_bytes()[job.said :].decode(errors="replace")
        said = [line.removeprefix("lmsd: ") for line in log.splitlines() if line.startswith("lmsd: ")]
        return said[-1] if said else f"its process died ({path})"

    def _stop(self) -> None:
        """When the sweep is interrupted, let running jobs save and end; another signal ends the wait."""
        for job in self.jobs:
            job.end()
        heard, deadline = self.heard, time.monotonic() + PATIENCE
        while self.jobs and self.heard == heard and time.monotonic() < deadline:
            self._collect()
            time.sleep(POLL)

    def _write(self) -> None:
        ranking.write(self.ledger, self.space, monitor=self.chosen.monitor, direction=self.direction)

    def report(self) -> str:
        """The table, the winner's command and where the results lie."""
        monitor, direction = self.chosen.monitor, self.direction
        table = ranking.table(self.ledger.trials, self.space, monitor=monitor, direction=direction)
        best = ranking.winner(self.ledger.trials, self.space, direction)
        said = f"Best again: {best}" if best else "No trial has a score; their logs say why"
        return f"{table}\n{said}\nResults: {self.folder / 'results.csv'}, results.json, parallel.svg"


def refused_score(folder: Path, monitor: str) -> str:
    """Why an evaluation on val left a score out, according to its record; empty if it did not."""
    try:
        notes = json.loads((folder / "eval" / "val" / "metrics.json").read_text())["notes"]
    except (OSError, ValueError, KeyError):
        return ""
    kind = monitor.partition("[")[0].partition("_")[0]
    for note in notes:
        head = re.findall(r"\w+", note.partition(":")[0])
        if head[:1] == ["no"] and {kind, "distances"} & set(head):
            return f" ({note})"
    return ""
