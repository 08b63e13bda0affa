"""What the scores of a run say, in sentences and in table rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmsd.evaluation.catalog import BESIDE, CATALOG, is_share, kind_of
from lmsd.evaluation.families import distances_said, families_of, told
from lmsd.evaluation.scores import standing_beside

_BY_LAW = "held-out images {}, by definition"
_ALONE = ("fd_floor", "right_real")
"""Rows of their own, although they stand beside another score."""
CLOSE = -3.0
"""C_T below which samples lie nearer to the training set than held-out images, all over."""


@dataclass(frozen=True)
class ScoreRow:
    """One line of the score table; beside: the same score of real images, in words."""

    name: str
    value: str
    interval: str
    beside: str
    meaning: str


def rows_of(content: Mapping[str, Any]) -> list[ScoreRow]:
    """The score table of one record."""
    scores = content.get("scores", {})
    rows = []
    for name, score in scores.items():
        if name == "neighbors":
            rows += _neighbor_rows(score)
            continue
        kind = kind_of(name)
        if kind not in _ALONE and kind.rpartition("_")[2] in BESIDE:
            continue
        show = shown(kind)
        beside = [
            f"{words} {show(scores[other]['value'])}"
            for suffix, words in BESIDE.items()
            for other in [standing_beside(scores, name, suffix)]
            if other is not None and kind_of(other) not in _ALONE
        ]
        spread = [f"σ over seeds {show(score['seed_sd'])}"] if score.get("seed_sd") is not None else []
        interval = "–" if score["low"] is None else f"{show(score['low'])} to {show(score['high'])}"
        meaning = CATALOG[kind].meaning if kind in CATALOG else ""
        rows.append(ScoreRow(name, show(score["value"]), interval, "; ".join(beside + spread), meaning))
    return rows


@dataclass(frozen=True)
class SliceTable:
    """Scores of one class or caption word a row: name, n, then value and interval of every score."""

    scores: list[str]
    rows: list[list[str]]


def slices_of(content: Mapping[str, Any]) -> SliceTable | None:
    """The table of a record's slices; None for a record without any."""
    slices = content.get("slices", {})
    names = list(dict.fromkeys(name for part in slices.values() for name in part if name != "n"))
    rows = [
        [key, str(part["n"]), *(_with_interval(name, part[name]) if name in part else "–" for name in names)]
        for key, part in slices.items()
    ]
    return SliceTable(names, rows) if rows else None


def _with_interval(name: str, score: Mapping[str, float]) -> str:
    show = shown(kind_of(name))
    return f"{show(score['value'])} ({show(score['low'])} to {show(score['high'])})"


def _neighbor_rows(near: Mapping[str, Any]) -> list[ScoreRow]:
    if near["ratio"] is None or near.get("p", 1.0) is None:
        return [ScoreRow("copies", "–", "–", "", "cannot tell: held-out images lie on training images")]
    low = "–" if near["low"] is None else _plain(near["low"]) + f" ({_ends(near, 'low', _plain)})"
    meaning = f"distance to the nearest training image, generated over held-out; at 5 % {low}"
    ends, beside = _ends(near, "ratio", _plain), _BY_LAW.format("1")
    rows = [ScoreRow("nearest neighbor ratio", _plain(near["ratio"]), ends, beside, meaning)]
    if "p" not in near:  # a record of lmsd 0.1's first days
        return rows
    found = f"p = {near['p']:.2g}; flagged below 0.001: once in 1,000 for a model of the data's law"
    ends, meaning = _ends(near, "copies", _percent), f"test for copies: {found}"
    rows.append(ScoreRow("copies", _percent(near["copies"]), ends, _BY_LAW.format(_percent(0.0)), meaning))
    if near["c_t"] is not None:
        meaning = "C_T: below −3, samples lie nearer to the training set than held-out images, all over"
        ends = _ends(near, "c_t", lambda value: f"{value:.1f}")
        rows.append(ScoreRow("C_T", f"{near['c_t']:.1f}", ends, _BY_LAW.format("0"), meaning))
    return rows


def _ends(near: Mapping[str, Any], name: str, show: Callable[[float], str]) -> str:
    """The interval of a number about neighbors; "–" in records that have none."""
    low, high = near.get("intervals", {}).get(name, (None, None))
    return "–" if low is None or high is None else f"{show(low)} to {show(high)}"


def _plain(value: float) -> str:
    return f"{value:.2f}"


def sentences(found: Mapping[str, Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdict, on test before val: leaks, distance over floor, families of features and what the run was
    tuned on, prompts, copies, course of training.
    """
    split = chosen_split(found)
    if split is None:
        return ["Not evaluated yet: `lmsd evaluate run=RUN` scores it on held-out data.", *_course(records)]
    record = found[split]
    scores = families_of(record).get(str(record.get("extractor")), {})
    said = [f"{note}." for note in flattering(record)]
    if "fd_ratio" in scores:
        said.append(_distance(scores["fd_ratio"], split))
    elif "kid_paired" in scores:
        said.append(_kernel(scores["kid_paired"], split))
    said += distances_said(record, split)
    if "right" in scores:
        share = f"{_percent(scores['right']['value'])} of the prompts are right"
        said.append(f"{share} (of real images: {_percent(scores['right_real']['value'])}).")
    if "neighbors" in record.get("scores", {}):
        said.append(_copies(record["scores"]["neighbors"]))
    return [*said, *_course(records)]


def flattering(record: Mapping[str, Any]) -> list[str]:
    """A record's notes on images that the model has been trained on."""
    return [note for note in record.get("notes", ()) if note.endswith("flatter")]


def chosen_split(found: Mapping[str, Any]) -> str | None:
    """The split that a verdict is about: test before val before any other."""
    return next((name for name in ("test", "val") if name in found), next(iter(found), None))


def shown(kind: str) -> Callable[[float], str]:
    """How values of a kind are written."""
    return _percent if is_share(kind) else _number


def _distance(ratio: Mapping[str, float], split: str) -> str:
    interval = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}"
    value = f"{ratio['value']:.2f} × the real-vs-real floor on {split} ({interval})"
    if ratio["high"] < 1.0:
        return f"FD is {value}: nearer than fresh real data, so with less variety, or trained on this split."
    if ratio["low"] <= 1.0:
        return f"FD is {value}: at this n not told apart from held-out data."
    return f"FD is {value}: told apart from held-out data."


def _kernel(kid: Mapping[str, float], split: str) -> str:
    interval = f"95 % interval {_number(kid['low'])} to {_number(kid['high'])}"
    apart = "told apart" if kid["low"] > 0.0 else "at this n not told apart"
    return f"Paired KID is {_number(kid['value'])} on {split} ({interval}): {apart} from held-out data."


def _copies(near: Mapping[str, Any]) -> str:
    if near.get("p", 1.0) is None or (near["ratio"] is None and not near.get("flagged")):
        return "Copies: cannot tell, held-out images lie on training images."
    share = f"{near['ratio'] or 0.0:.2f} × as far from the training set as held-out images"
    if "p" not in near:
        return f"Samples lie {share}."
    if near["flagged"]:
        found = f"about {_percent(near['copies'])} of the samples lie on single training images"
        return f"Copies of the training set: {found} (p = {near['p']:.1g}); see the closest pairs."
    if (near.get("c_t") or 0.0) < CLOSE:
        found = f"nearer to it all over (C_T = {near['c_t']:.1f}), though on no single images"
        return f"Samples lie {share}, {found} (test for copies: p = {near['p']:.2g})."
    return f"Samples lie {share}: no sign of copying (p = {near['p']:.2g})."


def _course(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the first FD on val compares with the last, by their intervals, in every family that has one."""
    names = {key: None for record in records for key in record if key.startswith("val/fd[")}
    votes, courses = dict[str, int](), []
    for name in names:
        points = [record for record in records if record.get(name) is not None and f"{name}/low" in record]
        if len(points) < 2:
            continue
        first, last = points[0], points[-1]
        less, more = last[f"{name}/high"] < first[f"{name}/low"], last[f"{name}/low"] > first[f"{name}/high"]
        votes[name.removeprefix("val/fd[").rstrip("]")] = more - less
        score = name.removeprefix("val/")
        courses.append(f"{score} on val went from {_number(first[name])} to {_number(last[name])}")
    return [f"{'; '.join(courses)}: {told(votes)}."] if votes else []


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"
