"""What an evaluation found, with everything that has to stand beside a number."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from lmsd.evaluation.catalog import BESIDE, CATALOG, kind_of
from lmsd.evaluation.slices import Slice
from lmsd.files import write_text
from lmsd.metrics import Interval, Memorization, Score

Scalar: TypeAlias = str | int | float | bool | None

_SHOWN = ("split", "ema", "sampler", "steps", "nfe", "guidance")


@dataclass(frozen=True)
class Scores:
    """Scores of one model on one split, at one number of steps and one guidance.

    scores: by full name, kind[extractor] or a bare kind; memorization: distances to the training set; notes:
    what was refused and what to beware of; setup: all settings; slices: by label, or by word of the captions;
    look: what a glance tells (`looks`).
    """

    extractor: str
    n: int
    seeds: tuple[int, ...]
    scores: Mapping[str, Score]
    memorization: Memorization | None
    notes: tuple[str, ...]
    setup: Mapping[str, Scalar] = field(default_factory=dict)
    slices: Mapping[str, Slice] = field(default_factory=dict)
    look: Mapping[str, Any] | None = None

    def __contains__(self, kind: str) -> bool:
        return any(kind_of(name) == kind for name in self.scores)

    def __getitem__(self, kind: str) -> Interval:
        """The interval of a kind: scores["fd"], scores["right"]."""
        return next(score.interval for name, score in self.scores.items() if kind_of(name) == kind)

    def with_more(
        self,
        scores: Mapping[str, Score],
        notes: Sequence[str] = (),
        setup: Mapping[str, Scalar] | None = None,
    ) -> "Scores":
        """The same with further scores after its own, notes and settings."""
        return replace(
            self,
            scores={**self.scores, **scores},
            notes=(*self.notes, *notes),
            setup={**self.setup, **(setup or {})},
        )

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Numbers for metrics.jsonl: scores, neighbor ratio and copies; their ends as NAME/low, NAME/high."""
        found = {name: score.interval for name, score in self.scores.items()}
        if self.memorization is not None and math.isfinite(self.memorization.near.ratio.value):
            found |= {"neighbor_ratio": self.memorization.near.ratio, "copies": self.memorization.copies}
        numbers: dict[str, float] = {}
        for name, value in found.items():
            numbers[prefix + name] = value.value
            if not math.isnan(value.low):
                numbers |= {f"{prefix}{name}/low": value.low, f"{prefix}{name}/high": value.high}
        return numbers

    def as_json(self) -> dict[str, Any]:
        """The content of a record."""
        scores = {name: _score_json(score) for name, score in self.scores.items()}
        if self.memorization is not None:
            scores["neighbors"] = _memorization_json(self.memorization)
        slices = {
            name: {"n": part.n} | {kind: _score_json(score) for kind, score in part.scores.items()}
            for name, part in self.slices.items()
        }
        return {
            "scores": scores,
            **({"slices": slices} if slices else {}),
            **({} if self.look is None else {"look": dict(self.look)}),
            "n": self.n,
            "seeds": list(self.seeds),
            "extractor": self.extractor,
            "setup": dict(self.setup),
            "notes": list(self.notes),
        }

    def name(self) -> str:
        """What the record is called: checkpoint (or images seen), weights, sampler, steps, guidance, n."""
        setup = self.setup
        where = Path(str(setup["checkpoint"])).stem if "checkpoint" in setup else setup.get("images")
        words = [f"step_{where:09d}" if isinstance(where, int) else where, setup.get("ema")]
        words += [setup.get("sampler"), f"steps{setup.get('steps')}", f"guidance{setup.get('guidance')}"]
        words += [f"n{self.n}", f"seeds{len(self.seeds)}", self.extractor]
        return "-".join(str(word).replace("/", "_") for word in words if word is not None)

    def write(self, run_dir: Path) -> Path:
        """Write `eval/<split>/NAME.json` and, as the newest, `eval/<split>/metrics.json`; the first's path.

        A record that is there with other content is kept: the new one is called NAME-2 (3, ...). Each file is
        written whole or not at all.
        """
        folder = run_dir / "eval" / str(self.setup["split"])
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_json(), indent=1) + "\n"
        name, number = self.name(), 2
        path = folder / f"{name}.json"
        while path.is_file() and path.read_text() != text:
            path, number = folder / f"{name}-{number}.json", number + 1
        for target in (path, folder / "metrics.json"):
            write_text(target, text)
        return path

    def __str__(self) -> str:
        """The scores as lines of text, each with what belongs to it."""
        about = ", ".join(f"{name}={value}" for name, value in self.setup.items() if name in _SHOWN)
        lines = [f"n={self.n}, seeds {','.join(map(str, self.seeds))}, {about}; 95 % intervals"]
        lines += [self._line(name) for name in self.scores if _has_line(name)]
        if "fd_ratio" in self:
            matched, floor = self["fd_matched"], self["fd_floor"]
            lines.append(f"  fd of halves {matched}, real-vs-real floor {floor}, ratio {self['fd_ratio']}")
        for kind in ("clip_score", "r_precision"):
            if kind in self:
                beside = ", ".join(
                    f"{word} {self[f'{kind}_{word}'].value:.3g}"
                    for word in ("real", "shuffled")
                    if f"{kind}_{word}" in self
                )
                lines.append(f"{kind} {self[kind]} ({beside})")
        if "right" in self:
            trials = self.n * len(self.seeds)
            beside = f"real images: {_percent(self['right_real'])}"
            lines.append(f"right {_percent(self['right'])} of {trials} prompts ({beside})")
        lines += [] if self.memorization is None else [_near(self.memorization)]
        return "\n".join([*lines, *self.notes])

    def _line(self, name: str) -> str:
        kind = kind_of(name)
        beside = [
            f"{word} {self.scores[other].interval.value:.3g}"
            for word, suffix in (("halves, n/2,", "floor"), ("train", "train"), ("real", "real"))
            if (kind, suffix) not in (("fd", "floor"), ("fid", "floor"))
            for other in [standing_beside(self.scores, name, suffix)]
            if other is not None
        ]
        return f"{name} {self.scores[name].interval}" + (f" (floor: {', '.join(beside)})" if beside else "")


def _has_line(name: str) -> bool:
    kind = kind_of(name)
    found = CATALOG.get(kind)
    return found.line if found is not None else kind.rpartition("_")[2] not in BESIDE


def standing_beside(names: Iterable[str], name: str, suffix: str) -> str | None:
    """The name of a score of real images in the same features: of fd for `fid`, of class_score for `is`."""
    kind, _, features = name.partition("[")
    wanted = {"fid": "fd", "is": "class_score"}.get(kind, kind) + f"_{suffix}"
    return next((each for each in names if kind_of(each) == wanted and each.endswith(features)), None)


def _score_json(score: Score) -> dict[str, Any]:
    interval = score.interval
    found: dict[str, Any] = {
        "value": interval.value, "low": _finite(interval.low), "high": _finite(interval.high),
        "level": interval.level,
    }  # fmt: skip
    if score.by_seed:
        found |= {"by_seed": list(score.by_seed), "seed_sd": score.seed_sd}
    return found | ({"method": score.method, "parts": list(score.parts)} if score.parts else {})


def score_of(content: Mapping[str, Any]) -> Score:
    """The Score that a record's entry was written from."""
    low, high = (math.nan if content[end] is None else content[end] for end in ("low", "high"))
    interval = Interval(content["value"], low, high, content["level"])
    method = content.get("method", "jackknife")
    return Score(interval, tuple(content.get("parts", ())), method, tuple(content.get("by_seed", ())))


def _memorization_json(found: Memorization) -> dict[str, Any]:
    near = found.near
    named = {
        "ratio": near.ratio, "low": near.low, "closer": near.closer, "copies": found.copies, "c_t": found.c_t
    }  # fmt: skip
    return {
        **{name: _finite(ends.value) for name, ends in named.items()},
        "intervals": {name: [_finite(ends.low), _finite(ends.high)] for name, ends in named.items()},
        "level": near.ratio.level,
        "p": _finite(found.p),
        "flagged": found.flagged,
        "twins": found.twins,
        "pairs": [list(pair) for pair in found.pairs],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _near(found: Memorization) -> str:
    near = found.near
    if math.isnan(near.ratio.value):
        return "copies: cannot tell, every held-out image lies on a training image"
    distance = f"nearest training image {near.ratio} x as far as held-out ones' (at 5 %: {near.low})"
    tests = f"C_T {found.c_t}, test for copies p={found.p:.2g}"
    alarm = f"; COPIES: about {_percent(found.copies)} of the samples" if found.flagged else ""
    return f"{distance}; {tests}{alarm}"


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
