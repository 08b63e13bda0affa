"""The trials of a sweep and the file that remembers them: trials.json, written whole after every change.

waiting → running → done | failed | pruned            a killed sweep finds its running trials again
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmsd.cli import runs

State = Literal["running", "done", "failed", "pruned"]
FINISHED = ("done", "failed", "pruned")


@dataclass
class Trial:
    """One run of a sweep: the values it tries, and what came of it.

    value, low, high: the score on val with its interval; points: the score by images seen; note: why it
    failed.
    """

    number: int
    values: dict[str, Any]
    state: State = "running"
    pid: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    points: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""

    def read(self, folder: Path, monitor: str) -> None:
        """Take in the scores that its run has written so far."""
        name = f"val/{monitor}"
        for line in runs.scored(folder, f'"{name}'):
            for key, value in line.items():
                if value is not None and (key == name or key.startswith(f"{name}[")) and "/" not in key[4:]:
                    self.points[int(line["images"])] = value
                    self.value, self.low, self.high = value, line.get(f"{key}/low"), line.get(f"{key}/high")
        self.seconds = float(runs.status(folder).get("seconds", self.seconds))


class Ledger:
    """All trials of a sweep, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "trials.json"
        self.trials: list[Trial] = []
        if self.path.is_file():
            self.trials = [_trial(entry) for entry in json.loads(self.path.read_text())["trials"]]

    def run_dir(self, trial: Trial) -> Path:
        """Where a trial's run lies."""
        return self.folder / str(trial.number)

    def finished(self) -> list[Trial]:
        """The trials that need no more work."""
        return [trial for trial in self.trials if trial.state in FINISHED]

    def add(self, values: dict[str, Any]) -> Trial:
        """A new trial, remembered before its process begins."""
        trial = Trial(len(self.trials), values)
        self.trials.append(trial)
        self.save()
        return trial

    def save(self) -> None:
        """Write the file, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".tmp.{os.getpid()}")
        temporary.write_text(
            json.dumps({"trials": [asdict(trial) for trial in self.trials]}, indent=1) + "\n"
        )
        os.replace(temporary, self.path)


def _trial(entry: dict[str, Any]) -> Trial:
    points = {int(images): value for images, value in entry.pop("points").items()}
    return Trial(**entry, points=points)
