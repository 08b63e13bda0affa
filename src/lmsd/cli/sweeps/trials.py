"""The trials of a sweep and the file that remembers them: trials.json, written whole after every change.

running → done | failed | pruned | interrupted        a killed sweep finds its running trials again
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from lmsd.cli.runs import store
from lmsd.cli.sweeps.monitors import matches
from lmsd.errors import UserError
from lmsd.evaluation.catalog import kind_of
from lmsd.files import write_text

State = Literal["running", "done", "failed", "pruned", "interrupted"]


def began(pid: int) -> str:
    """When a process began, as no other of its number did, also before a reboot; empty without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # field 22, starttime


@dataclass
class Result:
    """The last score on val with its interval, None where it is not finite; points: finite ones by images."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    points: dict[int, float] = field(default_factory=dict)

    def apart(self, other: "Result") -> bool | None:
        """Whether the intervals of two scores have nothing in common; None where one has no interval."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low > other.high or self.high < other.low

    def __str__(self) -> str:
        """The score with its interval."""
        ends = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return "-" if self.value is None else f"{self.value:.4g}{ends}"


@dataclass
class Trial:
    """One run of a sweep: the values it tries, and what came of it.

    pid, born, slot: its process, when that began, and its place among those that run at a time; note: why it
    failed.
    """

    number: int
    values: dict[str, Any]
    state: State = "running"
    pid: int | None = None
    born: str = ""
    slot: int = 0
    result: Result = field(default_factory=Result)
    seconds: float = 0.0
    note: str = ""

    def read(self, folder: Path, monitor: str) -> None:
        """Take in the scores that its run has written so far; the last one counts, finite or not."""
        found = self.result
        for line in store.scored(folder, f'"val/{kind_of(monitor)}'):
            names = [key for key in line if "/" not in key[4:] and matches(monitor, key[4:])]
            for key in names[:1]:  # the extractor's own stands before those of further families
                value = line[key]
                found.value = value if value is not None and isfinite(value) else None
                found.low, found.high = line.get(f"{key}/low"), line.get(f"{key}/high")
                found.points |= {} if found.value is None else {int(line["images"]): value}
        self.seconds = float(store.status(folder).get("seconds", self.seconds))

    def lives(self) -> bool:
        """Whether that very process is alive, and not another one that has its number now."""
        return self.pid is not None and store.alive(self.pid) and began(self.pid) == self.born

    def row(self) -> dict[str, Any]:
        """All of it by name, without another mapping inside."""
        whole = asdict(self)
        return {**whole.pop("result"), **whole}


class Ledger:
    """All trials of a sweep, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "trials.json"
        self.trials: list[Trial] = []
        self.sweep: dict[str, str] = {}  # what is swept, and by which score
        self._load()

    def _load(self) -> int | None:
        """Read the file; the process that wrote it."""
        try:
            content = json.loads(self.path.read_text()) if self.path.is_file() else {"trials": []}
            self.trials = [_trial(entry) for entry in content["trials"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path} is damaged or of another version: give another sweep.name=, or bring it back"
            ) from error
        self.sweep = content.get("sweep", self.sweep)
        pid: int | None = content.get("pid")
        return pid

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the sweep for this process, and know what others did before. Raises UserError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = store.lock(self.folder)
        except UserError:
            raise UserError(
                f"{self.folder} is being swept by another process (pid {self._load()}): wait for it, end it, "
                "or give another sweep.name="
            ) from None
        with lock:
            self._load()
            self.save()
            yield

    def run_dir(self, trial: Trial) -> Path:
        """Where a trial's run lies."""
        return self.folder / str(trial.number)

    def add(self, values: dict[str, Any]) -> Trial:
        """A new trial, remembered before its process begins."""
        trial = Trial(len(self.trials), values)
        self.trials.append(trial)
        self.save()
        return trial

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [trial.row() for trial in self.trials]
        content = {"pid": os.getpid(), "sweep": self.sweep, "trials": rows}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def _trial(row: dict[str, Any]) -> Trial:
    """The reverse of `Trial.row`."""
    row["points"] = {int(images): value for images, value in row["points"].items()}
    return Trial(result=Result(**{part.name: row.pop(part.name) for part in fields(Result)}), **row)
