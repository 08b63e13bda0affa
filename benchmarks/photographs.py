"""Photographs: experiment=cifar10 against a plain script (`plain_flow`), at equal CPU time.

    python benchmarks/photographs.py SHARDS WORK [--seeds 3] [--images N] [--n 10000] [--val 1000]

Every arm trains on one thread, in turns: ours first, for `images` images (default: the recipe's), then the
plain script's arms for as many CPU seconds as ours took (extractors and scores are not counted).

    ours        lmsd train experiment=cifar10
    plain       velocity                        x0    x₀-prediction with min-SNR weights

Guidance and steps of each arm are chosen once, with the first seed, by FD of the classifier on val: ours
among settings of at most 8 net evaluations an image (guidance counts twice), the script among any of its
own. Then each seed is scored once on test. WORK holds runs, weights and ledger.jsonl, one line a cell; what
it has is not made again, so the command goes on where it was stopped. The table goes to
benchmarks/results/photographs.json, and grids of the same captions to docs/photographs_ARM.png.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain_flow import Drawer
from scipy.stats import t as student

import lmsd
from lmsd.cli.build.extractors import find_or_train
from lmsd.data.shardset import ShardSet
from lmsd.evaluation import Evaluator
from lmsd.evaluation.grid import save_grid
from lmsd.evaluation.scores import score_of
from lmsd.files import cache_folder
from lmsd.metrics import compare
from lmsd.rng import Rng

HERE = Path(__file__).resolve().parent
OURS = [(1.0, 4), (1.0, 8), (1.5, 4), (2.5, 4), (4.0, 4)]
PLAIN = [(guidance, steps) for guidance in (1.0, 1.5, 2.5, 4.0) for steps in (4, 16, 50)]
ARMS = {"ours": OURS, "velocity": PLAIN, "x0": PLAIN}
"""Guidance and steps that an arm may choose from."""


class Ledger:
    """Cells by name, one line each, made once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.cells: dict[str, Any] = {cell["cell"]: cell["found"] for cell in map(json.loads, lines)}

    def cell(self, name: str, make: Callable[[], Any]) -> Any:
        """What the cell holds; made and written down where it is not there."""
        if name not in self.cells:
            self.cells[name] = make()
            with self.path.open("a") as file:
                file.write(json.dumps({"cell": name, "found": self.cells[name]}) + "\n")
            print(f"{name}: {_short(self.cells[name])}", flush=True)
        return self.cells[name]


class Judge:
    """Scores of a trained arm by the data set's classifier."""

    def __init__(self, shards: str) -> None:
        self.data = ShardSet(shards, image_size=32)
        self.extractor = find_or_train(self.data, augment="shift_flip")[0]
        self.scorers: dict[tuple[str, int], Evaluator] = {}

    def __call__(self, draw: Any, split: str, n: int) -> dict[str, Any]:
        """FD, its floor, precision, recall and right prompts, with what a paired comparison needs."""
        if (split, n) not in self.scorers:
            held_out = self.data.split_set(split)  # type: ignore[arg-type]
            cache = cache_folder() / "features"
            self.scorers[split, n] = Evaluator(held_out, self.extractor, n=n, cache=cache)
        scores = self.scorers[split, n](draw, split=split).as_json()["scores"]
        return {name.split("[")[0]: found for name, found in scores.items() if "value" in found}

    def grid(self, draw: Any, path: Path) -> None:
        """Four images of each of the first captions of val, for one look at an arm."""
        scorer = Evaluator(self.data.split_set("val"), self.extractor, n=40)
        batch = scorer.prompts(slice(0, 40))
        images = draw(batch, Rng(0, batch.position))
        save_grid(list(images), list(batch.text or []), path, columns=8)


def _short(found: Any) -> str:
    if isinstance(found, dict) and "fd" in found:
        return f"FD {found['fd']['value']:.1f}"
    return json.dumps(found)


def train_ours(work: Path, shards: str, seed: int, images: int | None) -> dict[str, Any]:
    """Train our recipe in a process of its own; its folder, CPU seconds and images."""
    folder = work / f"ours-{seed}"
    words = [f"data.shards={shards}", f"run_dir={folder}", f"seed={seed}", "threads=1", "evaluate.n=0"]
    words += [] if images is None else [f"images={images}"]
    command = [sys.executable, "-m", "lmsd.cli", "train", "experiment=cifar10", *words, "accelerator=cpu"]
    words += ["resume=auto"] if (folder / "checkpoints").is_dir() else []
    seconds = _cpu_seconds(command)
    status = json.loads((folder / "status.json").read_text())
    return {"path": str(folder), "cpu_seconds": seconds, "images": status["images"]}


def train_plain(work: Path, shards: str, seed: int, arm: str, seconds: float) -> dict[str, Any]:
    """Train an arm of the plain script for so many CPU seconds."""
    path = work / f"{arm}-{seed}.pt"
    command = [
        sys.executable,
        str(HERE / "plain_flow.py"),
        shards,
        str(path),
        f"--arm={arm}",
        f"--seed={seed}",
    ]
    spent = _cpu_seconds([*command, f"--seconds={seconds:.0f}"])
    images = torch.load(path, weights_only=True)["images"]
    return {"path": str(path), "cpu_seconds": spent, "images": images}


def _cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drawer(arm: str, path: str, guidance: float, steps: int) -> Any:
    """(batch, rng) → images of a trained arm."""
    if arm == "ours":
        return lmsd.load(path).generation(guidance=guidance, steps=steps)
    return Drawer(Path(path), guidance=guidance, steps=steps)


def choice(ledger: Ledger, judge: Judge, arm: str, path: str, n: int) -> tuple[float, int]:
    """Guidance and steps of the lowest FD on val."""
    found = {
        (guidance, steps): ledger.cell(
            f"val {arm} guidance {guidance:g} steps {steps} n {n}",
            lambda w=guidance, k=steps: judge(drawer(arm, path, w, k), "val", n),  # type: ignore[misc]
        )["fd"]["value"]
        for guidance, steps in ARMS[arm]
    }
    return min(found, key=lambda setting: found[setting])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every cell of every seed; what the table is made of."""
    options.work.mkdir(parents=True, exist_ok=True)
    ledger, judge = Ledger(options.work / "ledger.jsonl"), Judge(options.shards)
    chosen: dict[str, tuple[float, int]] = {}
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        ours = ledger.cell(
            f"train ours {seed}",
            lambda s=seed: train_ours(options.work, options.shards, s, options.images),  # type: ignore[misc]
        )
        trained = {"ours": ours}
        for arm in ("velocity", "x0"):
            trained[arm] = ledger.cell(
                f"train {arm} {seed}",
                lambda s=seed, a=arm, b=ours["cpu_seconds"]: train_plain(  # type: ignore[misc]
                    options.work, options.shards, s, a, b
                ),
            )
        for arm, made in trained.items():
            chosen.setdefault(
                arm, choice(ledger, judge, arm, made["path"], options.val) if not seed else (1, 4)
            )
            guidance, steps = chosen[arm]
            draw = drawer(arm, made["path"], guidance, steps)
            found = ledger.cell(
                f"test {arm} {seed} n {options.n}",
                lambda d=draw: judge(d, "test", options.n),  # type: ignore[misc]
            )
            rows.append(
                {"arm": arm, "seed": seed, **made, "guidance": guidance, "steps": steps, "test": found}
            )
            if seed == 0:
                judge.grid(draw, options.pictures / f"photographs_{arm}.png")
    return {"n": options.n, "extractor": judge.extractor.name, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The comparison in Markdown."""
    lines = [
        f"CIFAR-10 on test, n = {found['n']:,}, {found['extractor']}",
        "",
        "| arm | seed | CPU s | images | guidance | steps | FD | FD − floor | recall | right, % |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        test = row["test"]
        fd, floor, right = test["fd"], test["fd_floor"]["value"], 100 * test["right"]["value"]
        lines.append(
            f"| {row['arm']} | {row['seed']} | {row['cpu_seconds']:.0f} | {row['images']:,} "
            f"| {row['guidance']:g} | {row['steps']} | {fd['value']:.1f} [{fd['low']:.1f}, {fd['high']:.1f}] "
            f"| {fd['value'] - floor:.1f} | {test['recall']['value']:.3f} | {right:.1f} |"
        )
    return "\n".join([*lines, "", *map(str, gains(found["rows"]))])


def gains(rows: list[dict[str, Any]]) -> list[str]:
    """Ours against each arm of the script: the paired difference of FD, over seeds or one seed's images."""
    said = []
    by = {(row["arm"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    for arm in ("velocity", "x0"):
        pairs = [(by["ours", seed]["test"]["fd"], by[arm, seed]["test"]["fd"]) for seed in seeds]
        gaps = [other["value"] - ours["value"] for ours, other in pairs]
        if len(gaps) > 1:
            half = float(student.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5)
            said.append(
                f"FD of {arm} − ours: {statistics.mean(gaps):.1f} ± {half:.1f} ({len(gaps)} training seeds)"
            )
            continue
        found = compare(score_of(pairs[0][1]), score_of(pairs[0][0])).interval
        said.append(
            f"FD of {arm} − ours: {found.value:.1f} [{found.low:.1f}, {found.high:.1f}] (one training "
            "seed; the interval is over test images and noise alone)"
        )
    return said


def main() -> int:
    """Run what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--val", type=int, default=1_000)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "photographs.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options)
    text = table(found)
    print(text)
    options.results.write_text(json.dumps({**found, "table": text.splitlines()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
