"""report.html of a run folder: one file, no scripts, no link to anything, readable on a phone and on paper.

It is made from what lies in the folder (status.json, metrics.jsonl, eval/<split>/*.json, samples/*.png,
config.yaml, overrides.txt, env.json), each of which may be missing. What sets a run's configuration apart
from its experiment's is told by the caller, who can compose one.
"""

import base64
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG, kind_of
from lmsd.evaluation.charts import Curve, draw, short, stacked
from lmsd.evaluation.looks import spectra
from lmsd.evaluation.overfitting import overfitting
from lmsd.evaluation.records import (
    Record,
    having,
    newest_records,
    read_json,
    read_records,
    records_by_age,
    without_pauses,
)
from lmsd.evaluation.robustness import robust_charts
from lmsd.evaluation.verdict import ScoreRow, SliceTable, rows_of, sentences, slices_of
from lmsd.files import write_text

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
    "augment": "Strength of the augmentation",
    "throughput": "Throughput, images/s, evaluations included",
}
_OPTIONS = ("steps", "guidance", "autoguidance", "ema", "checkpoint")
_JOINED = {"accuracy_train": "training images", "accuracy_val": "held-out images"}
"""Quantities that share the chart "accuracy", with their names in it."""
_REWARDED = {
    "generator/reward": "reward",
    "generator/kl": "KL from the reference, nats",
    "generator/drift": "distance from the old policy",
    "generator/pull": "distance from the reference",
    "generator/diversity": "diversity",
}
"""What a run that learns from rewards shows above its held-out FD, at the same images."""
_LAST = ("throughput", "lr", "skipped")
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
    """The newest scores of one split and their settings, with pictures and charts.

    further: scores in the families beside the extractor's; pictures: `closest` (pairs), `side` (beside real
    images), `seeds` (of one caption), where they were made; charts: quality over steps.
    """

    split: str
    rows: list[ScoreRow]
    further: list[ScoreRow]
    slices: SliceTable | None
    setup: list[tuple[str, str]]
    notes: list[str]
    command: str
    pictures: dict[str, str]
    charts: list[Chart]
    spectrum: list[Chart]


def write_report(
    run_dir: str | Path,
    *,
    experiment: str | None = None,
    differences: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """Write `report.html` into a run folder, whole or not at all; its path. Works before any evaluation.

    experiment: what the run began from; differences: options it has otherwise, [the experiment's, the run's].
    """
    if not (folder := Path(run_dir)).is_dir():
        raise UserError(f"no run folder {run_dir}")
    status = read_json(folder / "status.json")
    records = read_records(folder / "metrics.jsonl")
    timed = without_pauses(records, status.get("sessions", ()))
    found = newest_records(folder)
    folded = (("Configuration", folder / "config.yaml"), ("Environment", folder / "env.json"))
    text = render(
        "report.html",
        name=folder.resolve().name,
        facts=_facts(folder, status, records, timed),
        verdict=sentences(found, records),
        evaluations=[_evaluation(folder, split, content) for split, content in found.items()],
        charts=_marked([*curves_of(records, timed), *(Chart(*each) for each in robust_charts(folder))]),
        pictures=_pictures(folder),
        command=_command(folder),
        experiment=experiment,
        differences=[(key, *map(_written, values)) for key, values in (differences or {}).items()],
        texts=[(title, path.read_text()) for title, path in folded if path.is_file()],
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def render(template: str, **content: object) -> str:
    """A page from one of our templates, everything in it escaped but charts."""
    from jinja2 import DictLoader, Environment

    folder = files("lmsd.evaluation").joinpath("templates")
    texts = {name: folder.joinpath(name).read_text() for name in (template, "style.css")}
    loader = DictLoader(texts)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    return environment.get_template(template).render(**content)


def _marked(charts: Sequence[Chart]) -> list[Chart]:
    """Charts whose SVG goes into the page as it is."""
    from markupsafe import Markup

    return [Chart(chart.title, Markup(chart.svg)) for chart in charts]


def curves_of(records: Sequence[Record], timed: Sequence[Record] | None = None) -> list[Chart]:
    """Scores over training with their intervals first, then a chart for each quantity, both players in it.

    timed: the lines without pauses between sessions, for the throughput; None: there were none.
    """
    columns = _columns(records)
    scored = {name: column for name, column in columns.items() if name.startswith(("val/", "test/"))}
    joined, knows = _reward_curves(columns), overfitting(columns)
    charts = [Chart("Is the reward hacked?", stacked(joined, anchor="hacked"))] if joined else []
    charts += [Chart("Are images learned by heart?", stacked(knows, anchor="knows"))] if knows else []
    charts += _score_charts(scored)
    if (speeds := _speeds(records if timed is None else timed)) is not None:
        columns["throughput"] = speeds
    grouped: dict[str, list[Curve]] = defaultdict(list)
    for name, (x, y) in columns.items():
        player, _, quantity = name.rpartition("/")
        if quantity in _JOINED:
            grouped["accuracy"].append(Curve(_JOINED[quantity], x, y))
        elif name not in scored and quantity != "updates" and not (joined and name in _REWARDED):
            grouped[quantity].append(Curve(player or quantity, x, y))
    for name in sorted(
        grouped, key=lambda name: (name in _LAST, list(_TITLES).index(name) if name in _TITLES else 99, name)
    ):
        if name == "skipped" and not any(any(curve.y) for curve in grouped[name]):
            continue
        charts.append(Chart(_TITLES.get(name, name.replace("_", " ")), draw(grouped[name], anchor=name)))
    return charts


def _columns(records: Sequence[Record]) -> dict[str, tuple[list[float], list[float]]]:
    """(images, values) of everything that was logged, by name."""
    columns: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for record in records:
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("images", "time"):
                columns[name][0].append(float(record["images"]))
                columns[name][1].append(float(value))
    return columns


def _reward_curves(columns: Mapping[str, tuple[list[float], list[float]]]) -> list[Curve]:
    """Reward, how far it led, diversity and held-out FD; none for a run without a reward."""
    if "generator/reward" not in columns:
        return []
    curves = [Curve(title, *columns[name]) for name, title in _REWARDED.items() if name in columns]
    for name in [name for name in columns if name.startswith("val/fd[") and name.endswith("]")]:
        low, high = _ends(columns, name)
        title = "held-out FD (val)" + (", 95 % interval" if low else "")
        curves.append(Curve(title, *columns[name], low, high))
    return curves


def _ends(columns: Mapping[str, tuple[list[float], list[float]]], name: str) -> Iterator[list[float] | None]:
    """The ends of a score's intervals; None without any."""
    yield from (columns[key][1] if (key := f"{name}/{end}") in columns else None for end in ("low", "high"))


def _speeds(records: Sequence[Record]) -> tuple[list[float], list[float]] | None:
    """Images a second between lines of training, over at most 50 stretches; None where time is unknown."""
    lines = [record for record in having(records, "time") if "updates" in record]
    lines = lines[:: max(1, len(lines) // 50)]
    spans = [(a, b) for a, b in pairwise(lines) if b["time"] > a["time"] and b["images"] > a["images"]]
    if len(spans) < 2:
        return None
    speeds = [(b["images"] - a["images"]) / (b["time"] - a["time"]) for a, b in spans]
    return [float(b["images"]) for _, b in spans], speeds


def _score_charts(columns: Mapping[str, tuple[list[float], list[float]]]) -> list[Chart]:
    charts = []
    for name, (x, y) in columns.items():
        split, _, score = name.partition("/")
        kind, _, extractor = score.partition("[")
        if score.endswith(("/low", "/high")) or kind not in ("fd", "fd_ratio", "right", "neighbor_ratio"):
            continue
        low, high = _ends(columns, name)
        curves = [Curve(f"{split}, 95 % interval" if low else split, x, y, low, high)]
        real = columns.get(f"{split}/right_real") if kind == "right" else None
        if real is not None:
            curves.append(Curve("real images", *real, dashed=True))
        if kind == "fd_ratio":
            curves.append(Curve("a perfect model", x, [1.0] * len(x), dashed=True))
        title = {"fd": f"{score} on {split}", "fd_ratio": f"FD over the real-vs-real floor [{extractor}"}
        charts.append(Chart(title.get(kind, _title(kind)), draw(curves, anchor=name)))
    return charts


def _title(name: str) -> str:
    """What a score's chart is called."""
    kind = CATALOG.get(kind_of(name))
    return name if kind is None or kind.title is None else kind.title


def _evaluation(folder: Path, split: str, content: Record) -> Evaluation:
    seeds = ", ".join(map(str, content.get("seeds", [])))
    setup = {"images per seed (n)": content.get("n"), "seeds": seeds, "extractor": content.get("extractor")}
    setup |= content.get("setup", {})
    shown = [(name.replace("_", " "), _plain(value)) for name, value in setup.items() if value is not None]
    others = records_by_age(folder, split)
    same = [path for path, other in others.items() if other == content]
    pictures = {
        name: _uri(path.with_suffix(suffix))
        for path in reversed(same)
        for name, suffix in (("closest", ".png"), ("side", ".side.png"), ("seeds", ".seeds.png"))
        if path.with_suffix(suffix).is_file()
    }
    rows = rows_of(content)
    own = f"[{content.get('extractor')}]"
    beside = [row for row in rows if "[" in row.name and not row.name.endswith(own)]
    further = [row for row in beside if not row.name.startswith("sw_ratio[")]
    return Evaluation(
        split=split,
        rows=[row for row in rows if row not in further],
        further=further,
        slices=slices_of(content),
        setup=shown,
        notes=list(content.get("notes", [])),
        command=_evaluate_command(folder, content),
        pictures=pictures,
        charts=_marked(over_steps([*others.values(), content], content)),
        spectrum=_marked([Chart(*each) for each in spectra(content.get("look"))]),
    )


def _evaluate_command(folder: Path, content: Record) -> str:
    """The command that scores these settings again; a score of training has the checkpoint of its images."""
    setup = dict(content.get("setup", {}))
    if "checkpoint" not in setup and isinstance(setup.get("images"), int):
        setup["checkpoint"] = f"step_{setup['images']:09d}.ckpt"
    seeds = str(content.get("seeds", [])).replace(" ", "")
    words = [f"run={folder.resolve().name}", f"split={setup.get('split')}", f"n={content.get('n')}"]
    words += [f"seeds={seeds}", *(f"{key}={setup[key]}" for key in _OPTIONS if key in setup)]
    if "interval" in setup:  # "0.2 to 0.8"
        words.append("interval=[{}]".format(setup["interval"].replace(" to ", ",")))
    words += shlex.split(str(setup.get("options") or ""))
    known = (setup.get("in_training_set") or 0) > 0.1 * content.get("n", 0) and "overlap=label" not in words
    return shlex.join(["lmsd", "evaluate", *words, *["overlap=label"] * known])


def over_steps(records: Sequence[Record], newest: Record) -> list[Chart]:
    """FD (else paired KID) and right prompts over the number of steps, a line a guidance, where more than one
    was scored with all else equal; records: oldest first.
    """
    free = ("steps", "guidance", "nfe")

    def fixed(record: Record) -> object:
        kept = {key: value for key, value in record.get("setup", {}).items() if key not in free}
        return kept, record.get("n"), record.get("seeds"), record.get("extractor")

    alike = [record for record in records if fixed(record) == fixed(newest)]
    charts = []
    for wanted in (("fd[", "kid_paired["), ("right",)):
        names = [n for n in newest.get("scores", {}) for start in wanted if n.startswith(start)]
        for name in [each for each in names if not each.startswith("right_")][:1]:
            curves = _steps_curves(alike, name)
            if curves:
                title = f"{_title(name)} over sampling steps"
                charts.append(Chart(title, draw(curves, anchor=f"steps {name}", over="steps")))
    return charts


def _steps_curves(records: Sequence[Record], name: str) -> list[Curve]:
    """A line for each guidance with two numbers of steps or more; the last of equal settings counts."""
    lines: dict[float, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if name in record["scores"]:
            setup = record["setup"]
            lines[setup.get("guidance", 1.0)][setup.get("steps", 0)] = record["scores"][name]
    curves = []
    for guidance, points in sorted(lines.items()):
        x = sorted(points)
        if len(x) > 1:
            y, low, high = ([points[step][end] for step in x] for end in ("value", "low", "high"))
            curves.append(Curve(f"guidance {guidance:g}, 95 % interval", x, y, low, high))
    return curves


def _written(value: object) -> str:
    """An option's value as its file would hold it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) != 64 else f"{text[:12]}…"


def _facts(
    folder: Path, status: Record, records: Sequence[Record], timed: Sequence[Record]
) -> list[tuple[str, str]]:
    """State, images, updates, time and speed, as far as they are known."""
    env = read_json(folder / "env.json")
    facts = [("state", str(status["state"]))] if "state" in status else []
    facts += [("note", str(said)) for said in status.get("notes", ())]
    if records:
        facts.append(("images seen", f"{int(records[-1]['images']):,}"))
        facts += _updates({name: value for record in records for name, value in record.items()})
    seconds = timed[-1]["time"] - timed[0]["time"] if len(timed) > 1 else 0.0
    if seconds > 0:
        speed = (timed[-1]["images"] - timed[0]["images"]) / seconds
        facts += [
            ("time", duration(seconds)),
            ("speed with evaluations", f"{short(float(f'{speed:.3g}'))} images/s"),
        ]
    if status.get("peak_memory_mb"):
        facts.append(("peak memory", f"{status['peak_memory_mb'] / 1024:.2f} GiB"))
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
    stems = (path.stem.removeprefix("step_") for path in paths)
    titles = [f"after {int(stem):,} images" if stem.isdigit() else stem for stem in stems]
    return [Picture(title, _uri(path)) for title, path in reversed(list(zip(titles, paths, strict=True)))]


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _command(folder: Path) -> str:
    path = folder / "overrides.txt"
    overrides = path.read_text().splitlines() if path.is_file() else []
    return shlex.join(["lmsd", "train", *[line for line in overrides if line.strip()]])
