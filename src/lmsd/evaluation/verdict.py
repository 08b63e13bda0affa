"""What the scores of a run say, in sentences and in table rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MEANING = {
    "fd": "Fréchet distance of generated and held-out images, same captions, same n; 0: the same moments",
    "fd_matched": "the same with half of n: generated from one half's captions, against the other half",
    "fd_floor": "the same between the two real halves: what a perfect model would get",
    "fd_ratio": "matched over floor: 1 is a perfect model",
    "right": "generated images that show what the prompt asks for",
    "right_real": "held-out real images that show what their own caption says",
}
COPY_QUANTILE = 0.5
"""Below this ratio of 5 % quantiles of nearest-training distances, the report speaks of copies."""


@dataclass(frozen=True)
class ScoreRow:
    """One line of the score table."""

    name: str
    value: str
    interval: str
    meaning: str


def rows_of(content: Mapping[str, Any]) -> list[ScoreRow]:
    """The score table of one metrics.json."""
    rows = []
    for name, score in content.get("scores", {}).items():
        if name == "neighbors":
            meaning = (
                f"distance to the nearest training image, generated over held-out; at 5 % {score['low']:.2f}"
            )
            rows.append(ScoreRow("nearest neighbor ratio", f"{score['ratio']:.2f}", "–", meaning))
            continue
        show = _percent if name.startswith("right") else _number
        interval = f"{show(score['low'])} to {show(score['high'])}"
        rows.append(ScoreRow(name, show(score["value"]), interval, _MEANING.get(name.partition("[")[0], "")))
    return rows


def sentences(found: Mapping[str, Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdict, on test before val: distance over floor, prompts, copies, the course of training."""
    split = next((name for name in ("test", "val") if name in found), next(iter(found), None))
    if split is None:
        return ["Not evaluated yet: `lmsd evaluate run=RUN` scores it on held-out data.", *_course(records)]
    scores = {name.partition("[")[0]: score for name, score in found[split].get("scores", {}).items()}
    said = []
    if "fd_ratio" in scores:
        said.append(_distance(scores["fd_ratio"], split))
    if "right" in scores:
        share = f"{_percent(scores['right']['value'])} of the prompts are right"
        said.append(f"{share} (of real images: {_percent(scores['right_real']['value'])}).")
    if "neighbors" in scores:
        said.append(_copies(scores["neighbors"]))
    return [*said, *_course(records)]


def _distance(ratio: Mapping[str, float], split: str) -> str:
    interval = f"95 % interval {ratio['low']:.2f} to {ratio['high']:.2f}"
    value = f"{ratio['value']:.2f} × the real-vs-real floor on {split} ({interval})"
    if ratio["low"] <= 1.0:
        return f"FD is {value}: at this n not told apart from held-out data."
    return f"FD is {value}: told apart from held-out data."


def _copies(near: Mapping[str, float]) -> str:
    if near["low"] < COPY_QUANTILE:
        share = f"{near['low']:.2f} × as far from the training set as held-out images"
        return f"Look for copies: the nearest samples (5 % quantile) lie {share}."
    share = f"{near['ratio']:.2f} × as far from the training set as held-out images"
    return f"Samples lie {share}: no sign of copying."


def _course(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the first score on val compares with the last, by their intervals."""
    for name in {key: None for record in records for key in record if key.startswith("val/fd[")}:
        if name.endswith(("/low", "/high")):
            continue
        points = [record for record in records if record.get(name) is not None and f"{name}/low" in record]
        if len(points) < 2:
            continue
        first, last = points[0], points[-1]
        course = (
            f"{name.removeprefix('val/')} on val went from {_number(first[name])} to {_number(last[name])}"
        )
        if last[f"{name}/high"] < first[f"{name}/low"]:
            return [f"{course}: better, beyond the intervals."]
        worse = last[f"{name}/low"] > first[f"{name}/high"]
        return [f"{course}: " + ("worse, beyond the intervals." if worse else "the intervals overlap.")]
    return []


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"
