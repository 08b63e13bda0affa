"""comparison.html: several runs side by side, each score told apart from the first run's or not."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsd.errors import UserError
from lmsd.evaluation.charts import Curve, draw
from lmsd.evaluation.report import Chart, newest_records, read_records, render
from lmsd.evaluation.verdict import ComparisonRow, chosen_split, compared

_CURVES = ("val/fd[", "val/right", "val/kid[")


@dataclass(frozen=True)
class Versus:
    """The first run against another: what the comparison stands on, and its rows."""

    other: str
    basis: str
    rows: list[ComparisonRow]


def write_comparison(
    run_dirs: Sequence[str | Path], path: Path, *, differences: Mapping[str, Sequence[object]] | None = None
) -> tuple[Path, str]:
    """Write the page that compares the first run with each of the others; its path, and its words.

    differences: options that are not the same in all runs, with each run's value. Raises UserError for fewer
    than two runs and for a run without a record.
    """
    folders = [Path(each) for each in run_dirs]
    if len(folders) < 2:
        raise UserError("a comparison needs two runs or more: lmsd report A B")
    found = {folder.resolve().name: newest_records(folder) for folder in folders}
    for name, records in found.items():
        if not records:
            raise UserError(f"{name} has no scores to compare; score it first: lmsd evaluate run={name}")
    first, *others = found
    versus = [_against(found[first], found[other], other) for other in others]
    text = render(
        "comparison.html",
        names=list(found),
        first=first,
        verdict=[sentence for each in versus for sentence in _sentences(each, first)],
        versus=versus,
        charts=_charts(folders),
        differences=[(key, list(map(str, values))) for key, values in (differences or {}).items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".html.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path, "\n".join(_words(first, each) for each in versus)


def _against(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> Versus:
    shared = {split: record for split, record in one.items() if split in other}
    split = chosen_split(shared)
    if split is None:
        return Versus(name, "not comparable: scored on different splits", [])
    rows, basis = compared(one[split], other[split])
    return Versus(name, basis, rows)


def _sentences(versus: Versus, first: str) -> list[str]:
    if not versus.rows:
        return [f"{first} and {versus.other}: {versus.basis}."]
    different = [row.name for row in versus.rows if row.different]
    if not different:
        return [f"{first} and {versus.other} are not told apart by any score ({versus.basis})."]
    shown = ", ".join(f"{row.name} {row.one} against {row.other}" for row in versus.rows if row.different)
    return [f"{first} and {versus.other} differ: {shown} ({versus.basis})."]


def _words(first: str, versus: Versus) -> str:
    lines = [f"{first} against {versus.other}: {versus.basis}"]
    lines += [f"  {row.name:34} {row.one:>10} {row.other:>10}  {row.said}" for row in versus.rows]
    return "\n".join(lines)


def _charts(folders: Sequence[Path]) -> list[Chart]:
    """The scores on val over training, a line a run."""
    from markupsafe import Markup

    runs = {folder.resolve().name: read_records(folder / "metrics.jsonl") for folder in folders}
    names = {key: None for records in runs.values() for record in records for key in record}
    charts = []
    for name in (key for key in names if key.startswith(_CURVES) and not key.endswith(("/low", "/high"))):
        curves = []
        for run, records in runs.items():
            points = [record for record in records if isinstance(record.get(name), int | float)]
            if points:
                curves.append(Curve(run, [p["images"] for p in points], [p[name] for p in points]))
        charts.append(Chart(name.replace("val/", "", 1) + " on val", Markup(draw(curves, anchor=name))))
    return charts


def changed(configs: Mapping[str, Mapping[str, object]]) -> dict[str, list[object]]:
    """Options that not all runs have alike, with each run's value ("–" where it has none)."""
    keys = {key: None for config in configs.values() for key in config}
    rows = {key: [config.get(key, "–") for config in configs.values()] for key in keys}
    return {key: row for key, row in rows.items() if len({json.dumps(v, default=str) for v in row}) > 1}
