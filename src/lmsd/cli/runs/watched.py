"""What a page that watches runs shows: all runs and sweeps in outputs/, and all of one run, as plain data.

Everything is read anew from the files that a run writes anyway, so watching costs a run nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmsd.cli.runs import store
from lmsd.cli.verbs.runs import best
from lmsd.errors import UserError
from lmsd.evaluation.records import Record, newest_records, read_records, without_pauses

TAIL = 12_000
"""Bytes of the log that are shown."""
LATEST = 20
"""Lines of metrics that the speed of now is taken from."""
SWEEPS = store.OUTPUTS / "sweeps"


def folders(beside: Sequence[Path] = ()) -> dict[str, Path]:
    """Runs by the names that the page calls them by, newest first: `beside`, of outputs/, of sweeps."""
    found = {folder.name: folder for folder in reversed(store.by_age("*"))}
    trials = sorted(
        SWEEPS.glob("*/*/config.yaml"), key=lambda path: (path.parts[-3], len(path.parts[-2]), path)
    )
    found |= {"/".join(path.parent.parts[-2:]): path.parent for path in trials}
    known = {folder.resolve() for folder in found.values()}
    others = [folder for folder in beside if folder.resolve() not in known]
    return {str(each.resolve()) if each.name in found else each.name: each for each in others} | found


def listed(beside: Sequence[Path] = ()) -> dict[str, Any]:
    """All runs and sweeps, each in a line."""
    runs = []
    for name, folder in folders(beside).items():
        seen, total = far(folder)
        runs.append(
            {
                "name": name,
                "state": store.state(folder),
                "images": seen,
                "total": total,
                "best": _best(folder),
            }
        )
    return {"runs": runs, "sweeps": sweeps()}


def _best(folder: Path) -> str:
    try:
        return best(folder)
    except ValueError:  # a line of metrics that is damaged
        return "-"


def far(folder: Path) -> tuple[int, int]:
    """Images seen, and of how many; 0 where nobody can tell."""
    try:
        total = int(store.config_of(folder).get("images", 0))
    except UserError:
        total = 0
    status = store.status(folder)
    lines = read_records(folder / "metrics.jsonl")
    logged = int(lines[-1]["images"]) if lines else 0
    return (logged if status.get("state") == "running" else int(status.get("images", logged))), total


def sweeps() -> list[dict[str, Any]]:
    """Every sweep with its trials: values, state, last score."""
    found = []
    for path in sorted(SWEEPS.glob("*/trials.json")):
        try:
            content = json.loads(path.read_text())
            trials = [
                {
                    "run": f"{path.parent.name}/{trial['number']}",
                    "values": ", ".join(f"{key}={value}" for key, value in trial["values"].items()),
                    "state": trial["state"],
                    "score": trial.get("value"),
                }
                for trial in content["trials"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of another version, or being written
        found.append({"name": path.parent.name, "trials": trials})
    return found


def stamp(folder: Path) -> str:
    """Changes whenever anything that is shown of a run does."""
    paths = [folder / name for name in ("metrics.jsonl", "status.json", "log.txt")]
    paths += sorted(folder.glob("samples/*.png")) + sorted(folder.glob("eval/*/metrics.json"))
    told = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.is_file()]
    return f"{hash((store.state(folder), tuple(told))):x}"


def whole(name: str, folder: Path) -> dict[str, Any]:
    """All of one run: progress and time left, verdict, scores with intervals, curves, samples, log."""
    from lmsd.evaluation.report import curves_of, duration
    from lmsd.evaluation.verdict import rows_of, sentences

    records, status = read_records(folder / "metrics.jsonl"), store.status(folder)
    timed = without_pauses(records, status.get("sessions", ()))
    found, (seen, total) = newest_records(folder), far(folder)
    state = store.state(folder)
    left = time_left(timed, total) if state == "running" else None
    return {
        "name": name,
        "state": state,
        "images": seen,
        "total": total,
        "left": None if left is None else duration(left),
        "notes": [str(note) for note in status.get("notes", ())],
        "verdict": sentences(found, records),
        "scores": {split: [asdict(row) for row in rows_of(record)] for split, record in found.items()},
        "about": {split: _about(record) for split, record in found.items()},
        "charts": [asdict(chart) for chart in curves_of(records, timed)],
        "samples": [path.stem for path in sorted(folder.glob("samples/step_*.png"))],
        "log": tail(folder / "log.txt"),
        "stamp": stamp(folder),
    }


def _about(record: Record) -> str:
    setup = record["setup"]
    named = [f"{key} {setup[key]}" for key in ("images", "steps", "guidance", "ema") if key in setup]
    return ", ".join([f"n={record['n']}", f"seeds {','.join(map(str, record['seeds']))}", *named])


def time_left(timed: Sequence[Record], total: int) -> float | None:
    """Seconds to the end at the speed of the last lines; None before there are two."""
    lines = timed[-LATEST:]
    if len(lines) < 2 or lines[-1]["time"] <= lines[0]["time"]:
        return None
    speed = (lines[-1]["images"] - lines[0]["images"]) / (lines[-1]["time"] - lines[0]["time"])
    return max(0.0, total - lines[-1]["images"]) / speed if speed > 0 else None


def tail(path: Path) -> str:
    """The last lines of a log."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode("utf-8", errors="replace")
