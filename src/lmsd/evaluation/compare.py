"""comparison.html: several runs side by side, each score told apart from the first run's or not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmsd.errors import UserError
from lmsd.evaluation.charts import Curve, draw
from lmsd.evaluation.records import Record, having, newest_records, read_records, records_by_age
from lmsd.evaluation.report import Chart, render
from lmsd.evaluation.verdict import chosen_split
from lmsd.evaluation.versus import Versus, versus
from lmsd.files import write_text

_CURVES = ("val/fd[", "val/right", "val/kid[", "val/kid_paired[")


def write_comparison(
    run_dirs: Sequence[str | Path], path: Path, *, differences: Mapping[str, Sequence[object]] | None = None
) -> tuple[Path, str]:
    """Write the page that compares the first run with each of the others; its path, and its words.

    differences: options that are not the same in all runs, with each run's value. Raises UserError for fewer
    than two runs, for one given twice, for a run without a record and for a damaged one.
    """
    folders = [Path(each) for each in run_dirs]
    if len(folders) < 2:
        raise UserError("a comparison needs two runs or more: lmsd report A B")
    names = labels(folders)
    for folder, name in zip(folders, names, strict=True):
        if not newest_records(folder):
            raise UserError(f"{name} has no scores to compare; score it first: lmsd evaluate run={name}")
    first, *others = names
    pairs = [_against(folders[0], folder, name) for folder, name in zip(folders[1:], others, strict=True)]
    text = render(
        "comparison.html",
        names=names,
        first=first,
        verdict=[_sentence(each, first) for each in pairs],
        versus=pairs,
        charts=_charts(dict(zip(names, folders, strict=True))),
        differences=[(key, list(map(str, values))) for key, values in (differences or {}).items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path, "\n".join(_words(first, each) for each in pairs)


def labels(folders: Sequence[Path]) -> list[str]:
    """What each run is called: its folder's name, with the parents' where names are equal.

    Raises UserError for a folder that is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise UserError(f"{folders[place]} is given twice: a comparison is of different runs")

    def tail(path: Path, depth: int) -> str:
        return "/".join(path.parts[-depth:])

    def needed(path: Path) -> int:
        others = [other for other in paths if other != path]
        depths = range(1, len(path.parts) + 1)
        return next(depth for depth in depths if all(tail(path, depth) != tail(o, depth) for o in others))

    return [tail(path, needed(path)) for path in paths]


def _against(one: Path, other: Path, name: str) -> Versus:
    found = newest_records(other)
    shared = {split: record for split, record in newest_records(one).items() if split in found}
    split = chosen_split(shared)
    if split is None:
        return Versus(name, "not comparable: scored on different splits", (), [], [])
    return versus(_newest_first(one, split), _newest_first(other, split), name)


def _newest_first(folder: Path, split: str) -> list[Record]:
    """The records of a split, each once."""
    newest = newest_records(folder)[split]
    older = [record for record in records_by_age(folder, split).values() if record != newest]
    return [newest, *reversed(older)]


def _sentence(pair: Versus, first: str) -> str:
    said = f"{first} and {pair.other}"
    if not pair.rows:
        return f"{said}: {pair.basis}."
    basis = "; ".join([pair.basis, *pair.notes])
    shown = ", ".join(f"{row.name} {row.one} against {row.other}" for row in pair.rows if row.different)
    claim = "" if pair.claim is None else f" {first} is {pair.claim}."
    return (
        f"{said} differ: {shown} ({basis}).{claim}"
        if shown
        else f"{said} are not told apart by any score ({basis}).{claim}"
    )


def _words(first: str, pair: Versus) -> str:
    lines = [f"{first} against {pair.other}: {pair.basis}"]
    sides = zip((first, pair.other), pair.settings, strict=False)
    lines += [f"  {name}: {setting}" for name, setting in sides]
    lines += [f"  note: {note}" for note in pair.notes]
    lines += [f"  {row.name:34} {row.one:>10} {row.other:>10}  {row.said}" for row in pair.rows]
    lines += [] if pair.claim is None else [f"  {first} is {pair.claim}"]
    return "\n".join(lines)


def _charts(folders: Mapping[str, Path]) -> list[Chart]:
    """The scores on val over training, a line a run."""
    from markupsafe import Markup

    runs = {name: read_records(folder / "metrics.jsonl") for name, folder in folders.items()}
    names = {key: None for records in runs.values() for record in records for key in record}
    charts = []
    for name in (key for key in names if key.startswith(_CURVES) and not key.endswith(("/low", "/high"))):
        curves = []
        for run, records in runs.items():
            points = having(records, name)
            if points:
                curves.append(Curve(run, [p["images"] for p in points], [p[name] for p in points]))
        charts.append(Chart(name.replace("val/", "", 1) + " on val", Markup(draw(curves, anchor=name))))
    return charts


def changed(configs: Mapping[str, Mapping[str, object]]) -> dict[str, list[object]]:
    """Options that not all runs have alike, with each run's value ("–" where it has none)."""
    keys = {key: None for config in configs.values() for key in config}
    rows = {key: [config.get(key, "–") for config in configs.values()] for key in keys}
    return {key: row for key, row in rows.items() if len({json.dumps(v, default=str) for v in row}) > 1}
