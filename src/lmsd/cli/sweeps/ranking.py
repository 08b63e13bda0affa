"""What a sweep found: a ranked table, results.csv, results.json, and a picture of parallel coordinates."""

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmsd.cli.sweeps.space import Space
from lmsd.cli.sweeps.trials import Ledger, Trial
from lmsd.evaluation.catalog import Direction


def ranked(trials: Sequence[Trial], direction: Direction) -> list[Trial]:
    """The done ones from best to worst, then the others by number."""
    done = [trial for trial in trials if trial.state == "done" and trial.result.value is not None]
    done.sort(key=lambda trial: (trial.result.value or 0.0) * (1 if direction == "min" else -1))
    return [*done, *(trial for trial in trials if trial not in done)]


def table(trials: Sequence[Trial], space: Space, *, monitor: str, direction: Direction) -> str:
    """One line a trial: its values, the score with its interval, its time, what became of it."""
    order = ranked(trials, direction)
    heads = ["#", *(axis.key for axis in space.axes), f"{monitor} on val [95 %]", "time", "status"]
    best = order[0] if order and order[0].state == "done" else None
    rows = [heads]
    for trial in order:
        values = [_number(trial.values[axis.key]) for axis in space.axes]
        said = [str(trial.result), clock(trial.seconds), _status(trial, best)]
        rows.append([str(trial.number), *values, *said])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join(
        "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def clock(seconds: float) -> str:
    """3m02, or 12s."""
    return f"{int(seconds // 60)}m{int(seconds % 60):02d}" if seconds >= 60 else f"{seconds:.0f}s"


def _status(trial: Trial, best: Trial | None) -> str:
    if trial is best:
        return "best"
    apart = None if best is None or trial.state != "done" else trial.result.apart(best.result)
    if apart is not None:
        return "ok (apart from the best)" if apart else "ok (intervals overlap the best's)"
    points = trial.result.points
    at = f" at {max(points):,} images" if trial.state == "pruned" and points else ""
    return f"{trial.state}{at}{f': {trial.note}' if trial.note else ''}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def winner(trials: Sequence[Trial], space: Space, direction: Direction) -> str | None:
    """The command that trains the best trial again; None when none is done."""
    order = ranked(trials, direction)
    if not order or order[0].state != "done":
        return None
    return shlex.join(["lmsd", "train", *space.words(order[0].values)])


def write(ledger: Ledger, space: Space, *, monitor: str, direction: Direction) -> None:
    """results.csv, results.json and parallel.svg in the sweep's folder."""
    order, folder = ranked(ledger.trials, direction), ledger.folder
    keys = [axis.key for axis in space.axes]
    scored = ["value", "low", "high", "seconds", "state", "note"]
    rows = [trial.row() for trial in order]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["number", *keys, monitor, *scored[1:]])
    for row in rows:
        values = [row["values"][key] for key in keys]
        writer.writerow([row["number"], *values, *(row[name] for name in scored)])
    (folder / "results.csv").write_text(lines.getvalue())
    results = {
        "monitor": monitor,
        "direction": direction,
        "split": "val",
        "fixed": list(space.fixed),
        "best": winner(ledger.trials, space, direction),
        "trials": [
            {"number": row["number"], **row["values"]} | {name: row[name] for name in (*scored, "points")}
            for row in rows
        ],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    done = [trial for trial in order if trial.state == "done" and trial.result.value is not None]
    if done:
        parallel(done, space, folder / "parallel.svg", monitor=monitor)


def parallel(trials: Sequence[Trial], space: Space, path: Path, *, monitor: str) -> None:
    """One line a trial over one axis an option, the score last; the best trial is the dark one."""
    from matplotlib.figure import Figure

    columns = [(axis.key, [trial.values[axis.key] for trial in trials], axis.log) for axis in space.axes]
    columns.append((f"{monitor} on val", [trial.result.value for trial in trials], False))
    scaled = [_scale(values, log) for _, values, log in columns]
    figure = Figure(figsize=(2.2 * len(columns) + 1, 4), layout="constrained")
    axes = figure.subplots()
    for row in reversed(range(len(trials))):
        color, width = ("#12395b", 2.5) if row == 0 else ("#7fa8cc", 1.2)
        axes.plot(range(len(columns)), [column[row] for column in scaled], color=color, linewidth=width)
    for place, ((_, values, _), column) in enumerate(zip(columns, scaled, strict=True)):
        axes.axvline(place, color="#9aa0a6", linewidth=0.8)
        for value, height in dict(zip(map(_number, values), column, strict=True)).items():
            axes.annotate(value, (place, height), textcoords="offset points", xytext=(4, 3), fontsize=8)
    axes.set_xticks(range(len(columns)), [name for name, _, _ in columns], fontsize=9)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _scale(values: Sequence[Any], log: bool) -> list[float]:
    """Places in [0, 1]: numbers by size (or its logarithm), words in order."""
    try:
        numbers = [math.log(float(value)) if log else float(value) for value in values]
    except ValueError:
        names = sorted(set(map(str, values)))
        numbers = [float(names.index(str(value))) for value in values]
    low, high = min(numbers), max(numbers)
    return [0.5 if high == low else (number - low) / (high - low) for number in numbers]
