"""report.html of a run folder: one file, no scripts, no link to anything, readable on a phone and on paper.

It is made from what lies in the folder (status.json, metrics.jsonl, eval/<split>/metrics.json, samples/*.png,
config.yaml, overrides.txt, env.json), each of which may be missing.
"""

import base64
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from lmsd.errors import UserError
from lmsd.evaluation.charts import Curve, draw, short
from lmsd.evaluation.verdict import ScoreRow, rows_of, sentences

Record: TypeAlias = dict[str, Any]

_TITLES = {
    "loss": "Loss",
    "grad_norm": "Gradient norm before clipping",
    "lr": "Learning rate",
    "logit_gap": "Logit gap, real − generated",
    "d_accuracy": "Discriminator's sign accuracy (0.5: fooled)",
    "accuracy": "Discriminator's sign accuracy, train and held-out",
    "r1": "R1 penalty, real side",
    "r2": "R2 penalty, generated side",
    "denoising": "Denoising loss",
    "diversity": "Diversity over z",
    "anchor": "Anchor",
    "adversary": "Adversarial term",
    "right": "Share of prompts right",
    "neighbor_ratio": "Distance to the nearest training image, over held-out's",
}
_JOINED = {"accuracy_train": "training images", "accuracy_val": "held-out images"}
"""Quantities that share the chart "accuracy", with their names in it."""
_LAST = ("lr", "skipped")
_GRIDS = 7


@dataclass(frozen=True)
class Chart:
    """A titled SVG."""

    title: str
    svg: str


@dataclass(frozen=True)
class Picture:
    """A sample grid as a data URI."""

    title: str
    uri: str


@dataclass(frozen=True)
class Evaluation:
    """The scores of one split and the settings they stand with."""

    split: str
    rows: list[ScoreRow]
    setup: list[tuple[str, str]]
    notes: list[str]


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder, whole or not at all; its path. Works before any evaluation."""
    from jinja2 import Environment
    from markupsafe import Markup

    folder = Path(run_dir)
    if not folder.is_dir():
        raise UserError(f"no run folder {run_dir}")
    records = read_records(folder / "metrics.jsonl")
    found = {path.parent.name: _json(path) for path in sorted(folder.glob("eval/*/metrics.json"))}
    template = files("lmsd.evaluation").joinpath("templates/report.html").read_text()
    charts = curves_of(records)
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        name=folder.resolve().name,
        facts=_facts(folder, records),
        verdict=sentences(found, records),
        evaluations=[_evaluation(split, content) for split, content in found.items()],
        charts=[Chart(chart.title, Markup(chart.svg)) for chart in charts],
        pictures=_pictures(folder),
        command=_command(folder),
        texts=_texts(folder),
    )
    path, partial = folder / "report.html", folder / "report.html.tmp"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def read_records(path: Path) -> list[Record]:
    """The lines of metrics.jsonl that are whole, in order of images seen."""
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed
        if isinstance(record, dict) and isinstance(record.get("images"), int | float):
            records.append(record)
    return sorted(records, key=lambda record: float(record["images"]))


def curves_of(records: Sequence[Record]) -> list[Chart]:
    """Scores over training with their intervals first, then a chart for each quantity, both players in it."""
    columns: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for record in records:
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("images", "time"):
                columns[name][0].append(float(record["images"]))
                columns[name][1].append(float(value))
    scored = {name: column for name, column in columns.items() if name.startswith(("val/", "test/"))}
    charts = _score_charts(scored)
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for name, (x, y) in columns.items():
        player, _, quantity = name.rpartition("/")
        if quantity in _JOINED:
            grouped["accuracy"].append(Curve(_JOINED[quantity], x, y))
        elif name not in scored and quantity != "updates":
            grouped[quantity].append(Curve(player or quantity, x, y))
    names = sorted(
        grouped, key=lambda name: (name in _LAST, list(_TITLES).index(name) if name in _TITLES else 99, name)
    )
    for name in names:
        if name == "skipped" and not any(any(curve.y) for curve in grouped[name]):
            continue
        charts.append(Chart(_TITLES.get(name, name.replace("_", " ")), draw(grouped[name], anchor=name)))
    return charts


def _score_charts(columns: Mapping[str, tuple[list[float], list[float]]]) -> list[Chart]:
    charts = []
    for name, (x, y) in columns.items():
        split, _, score = name.partition("/")
        kind, _, extractor = score.partition("[")
        if score.endswith(("/low", "/high")) or kind not in ("fd", "fd_ratio", "right", "neighbor_ratio"):
            continue
        low, high = (
            columns[f"{name}/{end}"][1] if f"{name}/{end}" in columns else None for end in ("low", "high")
        )
        curves = [Curve(f"{split}, 95 % interval" if low else split, x, y, low, high)]
        real = columns.get(f"{split}/right_real") if kind == "right" else None
        if real is not None:
            curves.append(Curve("real images", *real, dashed=True))
        if kind == "fd_ratio":
            curves.append(Curve("a perfect model", x, [1.0] * len(x), dashed=True))
        title = {"fd": f"{score} on {split}", "fd_ratio": f"FD over the real-vs-real floor [{extractor}"}
        charts.append(Chart(title.get(kind, _TITLES.get(kind, kind)), draw(curves, anchor=name)))
    return charts


def _evaluation(split: str, content: Record) -> Evaluation:
    seeds = ", ".join(map(str, content.get("seeds", [])))
    setup = {"images per seed (n)": content.get("n"), "seeds": seeds, "extractor": content.get("extractor")}
    setup |= content.get("setup", {})
    shown = [(name.replace("_", " "), _plain(value)) for name, value in setup.items() if value is not None]
    return Evaluation(split, rows_of(content), shown, list(content.get("notes", [])))


def _plain(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) != 64 else f"{text[:12]}…"


def _facts(folder: Path, records: Sequence[Record]) -> list[tuple[str, str]]:
    """State, images, updates, time and speed, as far as they are known."""
    status, env = _json(folder / "status.json"), _json(folder / "env.json")
    facts = [("state", str(status["state"]))] if "state" in status else []
    if records:
        facts.append(("images seen", f"{int(records[-1]['images']):,}"))
        facts += _updates({name: value for record in records for name, value in record.items()})
    timed = [record for record in records if isinstance(record.get("time"), int | float)]
    seconds = timed[-1]["time"] - timed[0]["time"] if len(timed) > 1 else 0.0
    if seconds > 0:
        speed = (timed[-1]["images"] - timed[0]["images"]) / seconds
        facts += [
            ("time", duration(seconds)),
            ("speed with evaluations", f"{short(float(f'{speed:.3g}'))} images/s"),
        ]
    facts += [("lmsd", f"{env['lmsd']} ({env.get('commit') or 'no commit'})")] if "lmsd" in env else []
    return facts


def _updates(last: Record) -> list[tuple[str, str]]:
    """Updates of both players; `last` holds the last value of everything that was logged."""
    if not last.get("updates"):
        return []
    facts = [("generator updates", f"{int(last['updates']):,}")]
    other = last.get("discriminator/updates")
    return facts + ([("discriminator updates", f"{int(other):,}")] if other is not None else [])


def duration(seconds: float) -> str:
    """3725 → "1 h 2 min"; 200 → "3 min 20 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _pictures(folder: Path) -> list[Picture]:
    """At most seven sample grids, evenly over training, the newest first."""
    paths = sorted(folder.glob("samples/step_*.png"))
    if len(paths) > _GRIDS:
        paths = [paths[round(place * (len(paths) - 1) / (_GRIDS - 1))] for place in range(_GRIDS)]
    return [Picture(_images_of(path), _uri(path)) for path in reversed(paths)]


def _images_of(path: Path) -> str:
    number = path.stem.removeprefix("step_")
    return f"after {int(number):,} images" if number.isdigit() else path.stem


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _command(folder: Path) -> str:
    path = folder / "overrides.txt"
    overrides = path.read_text().splitlines() if path.is_file() else []
    return shlex.join(["lmsd", "train", *[line for line in overrides if line.strip()]])


def _texts(folder: Path) -> list[tuple[str, str]]:
    """Title and content of the files shown folded."""
    named = (("Configuration", "config.yaml"), ("Environment", "env.json"))
    return [(title, (folder / file).read_text()) for title, file in named if (folder / file).is_file()]


def _json(path: Path) -> Record:
    content: Record = json.loads(path.read_text()) if path.is_file() else {}
    return content
