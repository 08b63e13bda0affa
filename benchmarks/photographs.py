"""Photographs: experiment=cifar10 against a plain script (`plain_flow`), at equal CPU time.

    python benchmarks/photographs.py SHARDS WORK [--seeds 3] [--images N] [--n 10000] [--val 1000]

Every arm trains on one thread, in turns: ours first, for `images` images (default: the recipe's), then the
plain script's arms for as many CPU seconds as ours took (extractors and scores are not counted).

    ours        lmsd train experiment=cifar10
    velocity    the script                      x0    the same with x₀-prediction and min-SNR weights

Guidance and steps of each arm are chosen once, with the first seed, by FD of the classifier on val: first the
guidance, at 16 steps (ours: 4), then the steps at that guidance. Ours may use 8 net evaluations an image
(guidance counts twice), the script any number. Then each seed is scored on test by every family of features.
WORK holds runs, weights and ledger.jsonl, one line a cell; what it has is not made again, so the same command
goes on where it was stopped. The table goes to benchmarks/results/photographs.json, and pictures of the same
captions and the chosen settings to docs/photographs_ARM.png.
"""

import argparse
import json
import resource
import shutil
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
from lmsd.errors import UserError
from lmsd.evaluation import Evaluator
from lmsd.evaluation.families import Families
from lmsd.evaluation.grid import save_grid
from lmsd.evaluation.scores import score_of
from lmsd.features.random_conv import RandomExtractor
from lmsd.files import cache_folder
from lmsd.metrics import compare
from lmsd.rng import Rng
from lmsd.types import Batch

HERE = Path(__file__).resolve().parent
GUIDANCE = (1.0, 1.5, 2.5, 4.0)
STEPS = {"ours": (4,), "velocity": (16, 4, 50), "x0": (16, 4, 50)}
"""Steps of an arm; its guidance is chosen at the first number of them."""
FAMILIES = ("lmsd-cnn", "lmsd-ssl", "random-conv")
BUDGET = 8
"""Net evaluations an image that ours may use."""


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
    """Scores by the data set's classifier and by the families that share nothing with it."""

    def __init__(self, shards: str, ssl_images: int | None) -> None:
        self.data = ShardSet(shards, image_size=32)
        self.extractor = find_or_train(self.data, augment="shift_flip")[0]
        self.ssl_images = ssl_images
        self.cache = cache_folder() / "features"

    def __call__(self, draw: Any, split: Any, n: int) -> dict[str, Any]:
        """Every score by its full name, with the parts that a paired comparison needs."""
        scorer = Evaluator(self.data.split_set(split), self.extractor, n=n, cache=self.cache)
        families = self._families() if split == "test" else None
        found: dict[str, Any] = scorer(draw, split=split, families=families).as_json()["scores"]
        return {name: score for name, score in found.items() if "value" in score}

    def _families(self) -> Families:
        ssl = find_or_train(self.data, kind="lmsd-ssl", images=self.ssl_images)[0]
        return Families([ssl, RandomExtractor(3)], self.data.split_set("train"), cache=self.cache)

    def grid(self, draw: Any, path: Path) -> None:
        """Six samples of each class, for captions of val: real images are not ours to publish."""
        held_out = self.data.split_set("val")
        labels = held_out.labels(range(len(held_out)))
        assert labels is not None  # cifar10 has labels
        rows = [row for label in range(10) for row in (labels == label).nonzero().flatten()[:6].tolist()]
        captions, like = held_out.captions(rows), torch.zeros(60, 3, 32, 32)
        batch = Batch(like, torch.arange(60), text=captions, label=labels[rows])
        save_grid(list(draw(batch, Rng(0, batch.position))), captions, path, columns=6)


def fd_of(found: dict[str, Any], kind: str = "fd", family: str = "lmsd-cnn") -> Any:
    """A family's score of this kind."""
    for name, score in found.items():
        if name.startswith(f"{kind}[{family}"):
            return score
    raise UserError(f"there is no {kind} by {family} of so few images: raise --val and --n to 1000 or more")


def _short(found: Any) -> str:
    return f"FD {fd_of(found)['value']:.1f}" if "right" in found else json.dumps(found)


def train_ours(work: Path, shards: str, seed: int, images: int | None) -> dict[str, Any]:
    """Train our recipe in a process of its own; its folder, CPU seconds and images.

    A training that was killed begins again: only a whole one has CPU seconds that are its own.
    """
    folder = work / f"ours-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    words = [f"data.shards={shards}", f"run_dir={folder}", f"seed={seed}", "threads=1", "evaluate.n=0"]
    words += ["precision=bf16-mixed"]  # as the script
    words += [] if images is None else [f"images={images}"]
    command = [sys.executable, "-m", "lmsd.cli", "train", "experiment=cifar10", *words, "accelerator=cpu"]
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

    def fd(guidance: float, steps: int) -> float:
        def make() -> dict[str, Any]:
            return judge(drawer(arm, path, guidance, steps), "val", n)

        name = f"val {arm} guidance {guidance:g} steps {steps} n {n}"
        return float(fd_of(ledger.cell(name, make))["value"])

    first = STEPS[arm][0]
    guidance = min(GUIDANCE, key=lambda guidance: fd(guidance, first))
    tried = [(guidance, steps) for steps in STEPS[arm]]
    if arm == "ours":
        tried = [(guidance, BUDGET // 2 if guidance != 1 else BUDGET), (1.0, BUDGET)]
    return min(tried, key=lambda setting: fd(*setting))


def trained(ledger: Ledger, options: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """All arms of a seed: ours, then the script's for the same CPU seconds."""

    def ours() -> dict[str, Any]:
        return train_ours(options.work, options.shards, seed, options.images)

    found = {"ours": ledger.cell(f"train ours {seed}", ours)}
    for arm in options.arms:

        def plain(arm: str = arm) -> dict[str, Any]:
            return train_plain(options.work, options.shards, seed, arm, found["ours"]["cpu_seconds"])

        found[arm] = ledger.cell(f"train {arm} {seed}", plain)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every cell of every seed; what the table is made of."""
    options.work.mkdir(parents=True, exist_ok=True)
    ledger, judge = Ledger(options.work / "ledger.jsonl"), Judge(options.shards, options.ssl_images)
    chosen: dict[str, tuple[float, int]] = {}
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for arm, made in trained(ledger, options, seed).items():
            if arm not in chosen:
                chosen[arm] = choice(ledger, judge, arm, made["path"], options.val)
            guidance, steps = chosen[arm]
            draw = drawer(arm, made["path"], guidance, steps)

            def test(draw: Any = draw) -> dict[str, Any]:
                return judge(draw, "test", options.n)

            found = ledger.cell(f"test {arm} {seed} n {options.n}", test)
            rows.append(
                {"arm": arm, "seed": seed, **made, "guidance": guidance, "steps": steps, "test": found}
            )
            if seed == 0:
                judge.grid(draw, options.pictures / f"photographs_{arm}.png")
    return {"n": options.n, "extractor": judge.extractor.name, "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The comparison in Markdown."""
    lines = [
        f"CIFAR-10 on test, n = {found['n']:,}; FD − floor in three families of features",
        "",
        f"| arm | seed | CPU s | images | guidance | steps | {' | '.join(FAMILIES)} | recall | right, % |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        test = row["test"]
        gaps = []
        for family in FAMILIES:
            fd, floor = fd_of(test, "fd", family), fd_of(test, "fd_floor", family)["value"]
            gaps.append(f"{fd['value'] - floor:.3g} [{fd['low'] - floor:.3g}, {fd['high'] - floor:.3g}]")
        recall, right = fd_of(test, "recall")["value"], 100 * test["right"]["value"]
        lines.append(
            f"| {row['arm']} | {row['seed']} | {row['cpu_seconds']:.0f} | {row['images']:,} "
            f"| {row['guidance']:g} | {row['steps']} | {' | '.join(gaps)} | {recall:.3f} | {right:.1f} |"
        )
    return "\n".join([*lines, "", *gains(found["rows"])])


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the parts of its scores and its place on this machine, which the ledger has."""
    scores = {
        name: {word: round(score[word], 4) for word in ("value", "low", "high")}
        for name, score in row["test"].items()
    }
    return {name: value for name, value in row.items() if name not in ("path", "test")} | {"test": scores}


def gains(rows: list[dict[str, Any]]) -> list[str]:
    """Ours against each arm of the script, paired: over training seeds, or one seed's images."""
    by = {(row["arm"], row["seed"]): row["test"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    over = f"{len(seeds)} training seeds" if len(seeds) > 1 else "test images and noise, one training seed"
    said = [
        f"Paired differences, 95 % intervals over {over}; above 0 ours is better",
        "",
        "| arm | family | FD, arm − ours | FD − floor: half of the arm's − ours | recall, ours − arm |",
        "|---|---|---|---|---|",
    ]
    for arm in sorted({row["arm"] for row in rows} - {"ours"}):
        for family in FAMILIES:
            gaps: list[list[tuple[Any, Any]]] = [[], [], []]
            for seed in seeds:
                ours, theirs = by["ours", seed], by[arm, seed]
                fds = [fd_of(side, "fd", family) for side in (theirs, ours)]
                recalls = [fd_of(side, "recall", family) for side in (ours, theirs)]
                half = middle(fds[0], fd_of(ours, "fd_floor", family))
                for gap, pair in zip(gaps, (fds, (half, fds[1]), recalls), strict=True):
                    gap.append((pair[0], pair[1]))
            cells = [difference(gap, places) for gap, places in zip(gaps, (".3g", ".3g", ".3f"), strict=True)]
            said.append(f"| {arm} | {family} | {' | '.join(cells)} |")
    return said


def middle(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The mean of two scores: with a floor f, (FD + f)/2 − ours is (FD − f)/2 − (ours − f)."""
    parts = [(a + b) / 2 for a, b in zip(one["parts"], other["parts"], strict=True)]
    return {**one, "value": (one["value"] + other["value"]) / 2, "parts": parts}


def difference(pairs: list[tuple[Any, Any]], places: str) -> str:
    """First less second of each pair of scores, with its interval."""
    if len(pairs) > 1:
        gaps = [one["value"] - other["value"] for one, other in pairs]
        half = float(student.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5)
        value, low, high = statistics.mean(gaps), statistics.mean(gaps) - half, statistics.mean(gaps) + half
    else:
        found = compare(*map(score_of, pairs[0])).difference
        value, low, high = found.value, found.low, found.high
    return f"{value:{places}} [{low:{places}}, {high:{places}}]"


def main() -> int:
    """Run what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--val", type=int, default=1_000)
    parser.add_argument("--arms", nargs="*", default=["velocity", "x0"], choices=["velocity", "x0"])
    parser.add_argument("--ssl-images", type=int, default=None)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "photographs.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options)
    text = table(found)
    print(text)
    kept = {**found, "rows": list(map(short, found["rows"])), "table": text.splitlines()}
    options.results.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
