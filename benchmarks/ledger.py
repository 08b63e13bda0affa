"""Cells of a benchmark and their ledger: a line a cell, written when done, skipped when it is there."""

import contextlib
import fcntl
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsd import cli
from lmsd.cli.build.extractors import find_or_train
from lmsd.cli.build.trained import opened
from lmsd.cli.build.validate import checker
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.data.shardset import ShardSet
from lmsd.evaluation import Evaluator

RESULTS = Path(__file__).resolve().parent / "results"


class Ledger:
    """Cells by name, one line each, made once by whoever comes first; other processes wait for it.

    place: the file, or NAME of benchmarks/results/NAME.jsonl; short: what is printed of a cell.
    """

    def __init__(self, place: str | Path, short: Callable[[Any], str] | None = None) -> None:
        self.path = RESULTS / f"{place}.jsonl" if isinstance(place, str) else place
        self.short = short or (lambda found: json.dumps(found)[:300])

    @property
    def cells(self) -> dict[str, Any]:
        """What is written."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return {line["cell"]: line["found"] for line in map(json.loads, lines)}

    def cell(self, name: str, work: Callable[[], Mapping[str, Any]]) -> Any:
        """What a cell found, now or before."""
        code = hashlib.sha256(f"{self.path.resolve()} {name}".encode()).hexdigest()[:16]
        with (Path(tempfile.gettempdir()) / f"lmsd-cell-{code}").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if name not in self.cells:
                found = dict(work())
                with self.path.open("a") as file:
                    file.write(json.dumps({"cell": name, "found": found}) + "\n")
            found = self.cells[name]
        print(f"{name}: {self.short(found)}", flush=True)
        return found


def run(*words: str) -> str:
    """A verb of the command line; what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.run(words)
    if code:
        raise SystemExit(f"lmsd {' '.join(words)} ended with {code}")
    return said.getvalue()


class Rows:
    """Some rows of a split: what a run was trained on, where it saw a part."""

    hash = None

    def __init__(self, split: Any, rows: Sequence[int]) -> None:
        self.split, self.rows = split, list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, indices: Sequence[int]) -> Tensor:
        return self.split.images([self.rows[int(i)] for i in indices])

    def captions(self, indices: Sequence[int]) -> list[str]:
        return self.split.captions([self.rows[int(i)] for i in indices])

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        return self.split.labels([self.rows[int(i)] for i in indices])


def subset(data: ShardSet, *, seed: int, count: int) -> Rows:
    """The images that `data.train.first=count` trains on."""
    order = data.stream(seed=seed).order
    numbers = data.index("train").numbers(*order(np.arange(count)))
    return Rows(data.split_set("train", real=True), sorted(set(numbers.tolist())))


def scores(
    folder: Path,
    shards: str,
    *,
    size: int,
    channels: int,
    split: str,
    seeds: Sequence[int],
    reads: str | None = None,
    train: Any = None,
    extractor: Any = None,
) -> dict[str, Any]:
    """Scores of a run's newest checkpoint on a split: values with their intervals, copies among them."""
    data = ShardSet(shards, image_size=size, channels=channels)
    judge = extractor or find_or_train(data)[0]
    held = data.split_set(split, real=True)
    model, generate = opened(folder, SamplingOptions(run=str(folder)))
    scorer = Evaluator(held, judge, train=train, checker=checker(reads))
    found = scorer(generate, seeds=list(seeds), split=split, ema=model.ema)
    kept = {name: [score.interval.value, score.interval.low, score.interval.high]
            for name, score in found.scores.items()}  # fmt: skip
    if found.memorization is not None:
        near = found.memorization
        kept["copies"] = [near.copies.value, near.copies.low, near.copies.high]
        kept["neighbor_ratio"] = [near.near.ratio.value, near.near.ratio.low, near.near.ratio.high]
    images = store.status(folder).get("images")
    return {"n": scorer.n, "seeds": list(seeds), "split": split, "images": images, "scores": kept}


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)
