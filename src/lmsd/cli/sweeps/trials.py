"""The trials of a sweep and the file that remembers them: trials.json, written whole after every change.

running → done | failed | pruned | interrupted        a killed sweep finds its running trials again
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.files import write_text

State = Literal["running", "done", "failed", "pruned", "interrupted"]


@dataclass
class Trial:
    """One run of a sweep: the values it tries, and what came of it.

    pid, born, slot: its process, when that began, and its place among those that run at a time;
    value, low, high: the last score on val with its interval, None where it is not finite; points: the finite
    scores by images seen; note: why it failed.
    """

    number: int
    values: dict[str, Any]
    state: State = "running"
    pid: int | None = None
    born: str = ""
    slot: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    points: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""

    def read(self, folder: Path, monitor: str) -> None:
        """Take in the scores that its run has written so far; the last one counts, finite or not."""
        name = f"val/{monitor}"
        for line in store.scored(folder, f'"{name}'):
            for key, value in line.items():
                if (key == name or key.startswith(f"{name}[")) and "/" not in key[4:]:
                    known = value is not None and isfinite(value)
                    self.value = value if known else None
                    self.low, self.high = line.get(f"{key}/low"), line.get(f"{key}/high")
                    self.points |= {int(line["images"]): value} if known else {}
        self.seconds = float(store.status(folder).get("seconds", self.seconds))


class Ledger:
    """All trials of a sweep, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "trials.json"
        self.trials: list[Trial] = []
        self.sweep: dict[str, str] = {}  # what is swept, and by which score
        self._load()

    def _load(self) -> int | None:
        """Read the file; the process that wrote it."""
        content = json.loads(self.path.read_text()) if self.path.is_file() else {"trials": []}
        self.trials = [_trial(entry) for entry in content["trials"]]
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
        trials = [asdict(trial) for trial in self.trials]
        content = {"pid": os.getpid(), "sweep": self.sweep, "trials": trials}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def _trial(entry: dict[str, Any]) -> Trial:
    points = {int(images): value for images, value in entry.pop("points").items()}
    return Trial(**entry, points=points)
