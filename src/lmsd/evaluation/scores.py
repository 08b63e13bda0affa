"""What an evaluation found, with everything that has to stand beside a number."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lmsd.evaluation.distances import Distances
from lmsd.metrics import Interval, NeighborRatio

Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Scores:
    """Scores of one model on one split, at one number of steps and one guidance.

    distances: FD against the n held-out images whose captions the samples were made from, and the same
    against the real-vs-real floor; None where n is too small for the features, as `notes` then says. right,
    right_real: share of generated (and of real) images that show what their caption asks for. neighbors:
    distance to the nearest training image. setup: all settings.
    """

    extractor: str
    n: int
    seeds: tuple[int, ...]
    distances: Distances | None
    right: Interval | None
    right_real: Interval | None
    neighbors: NeighborRatio | None
    notes: tuple[str, ...]
    setup: Mapping[str, Scalar]

    def intervals(self) -> dict[str, Interval]:
        """Every score that was taken, by its full name."""
        named: dict[str, Interval | None] = {}
        if self.distances is not None:
            far, name = self.distances, self.extractor
            named |= {f"fd[{name}]": far.fd, f"fd_matched[{name}]": far.matched}
            named |= {f"fd_floor[{name}]": far.floor, f"fd_ratio[{name}]": far.ratio}
        named |= {"right": self.right, "right_real": self.right_real}
        return {name: value for name, value in named.items() if value is not None}

    def scalars(self, prefix: str = "") -> dict[str, float]:
        """Numbers for metrics.jsonl: each score, its ends as NAME/low and NAME/high, the neighbor ratio."""
        numbers: dict[str, float] = {}
        for name, value in self.intervals().items():
            ends = {name: value.value, f"{name}/low": value.low, f"{name}/high": value.high}
            numbers |= {prefix + key: number for key, number in ends.items()}
        if self.neighbors is not None:
            numbers[f"{prefix}neighbor_ratio"] = self.neighbors.ratio
        return numbers

    def as_json(self) -> dict[str, object]:
        """The content of metrics.json."""
        scores: dict[str, object] = {
            name: {"value": i.value, "low": i.low, "high": i.high, "level": i.level}
            for name, i in self.intervals().items()
        }
        if self.neighbors is not None:
            near = self.neighbors
            scores["neighbors"] = {"ratio": near.ratio, "low": near.low, "closer": near.closer}
        return {
            "scores": scores,
            "fd_by_seed": list(self.distances.fd_by_seed) if self.distances else [],
            "n": self.n,
            "seeds": list(self.seeds),
            "extractor": self.extractor,
            "setup": dict(self.setup),
            "notes": list(self.notes),
        }

    def write(self, run_dir: Path) -> Path:
        """Write `eval/<split>/metrics.json` of a run, whole or not at all; its path."""
        path = run_dir / "eval" / str(self.setup["split"]) / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        os.replace(partial, path)
        return path

    def __str__(self) -> str:
        """The scores as lines of text, each with what belongs to it."""
        about = ", ".join(f"{name}={value}" for name, value in self.setup.items() if name in _SHOWN)
        lines = []
        if self.distances is not None:
            far, seeds = self.distances, ",".join(map(str, self.seeds))
            lines.append(
                f"fd[{self.extractor}] {far.fd}  (95 % interval; n={self.n}, seeds {seeds}, {about})"
            )
            lines.append(f"  halves: {far.matched}, real-vs-real floor {far.floor}, ratio {far.ratio}")
        if self.right is not None and self.right_real is not None:
            trials, share = self.n * len(self.seeds), _percent(self.right)
            lines.append(f"right {share} of {trials} prompts (real images: {_percent(self.right_real)})")
        if self.neighbors is not None:
            near = self.neighbors
            lines.append(
                f"nearest training image {near.ratio:.2f} x as far as held-out ones' (at 5 %: {near.low:.2f})"
            )
        return "\n".join([*lines, *self.notes])


_SHOWN = ("split", "ema", "sampler", "steps", "nfe", "guidance")


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
