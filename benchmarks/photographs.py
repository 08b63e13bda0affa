"""Photographs: experiment=cifar10 against a plain script (`plain_flow`), at equal CPU time.

    python benchmarks/photographs.py SHARDS WORK [--seeds 3] [--images N] [--n 10000] [--val 500]
                                     [--trials] [--train ARM-SEED ...]

Every arm trains on one thread: ours for `images` images (default: the recipe's), then the plain script's arms
for as many CPU seconds as ours took (extractors and scores are not counted).

    ours        lmsd train experiment=cifar10
    velocity    the script                      x0    the same with x₀-prediction and min-SNR weights

Each arm of the script has four short trials of its rate and average first (TRIAL seconds each, FD on val);
the best ones are what it trains with. Guidance and steps of each arm are chosen once, with seed 0, by FD of
the classifier on val: first the guidance, at 16 steps (ours: 4), then the steps at that guidance. Ours may
use 8 net evaluations an image (guidance counts twice), the script as many as it likes. The arm of the script
that is better on val goes on with ours to the other seeds, and each is scored on test by every family of
features.

WORK holds runs, weights and ledger.jsonl, one line a cell; what it has is not made again, so the same command
goes on where it was stopped. Two processes share the cells (--trials and --train make some of them): one
waits for a cell that the other makes. Both sides use bfloat16 where the CPU has it (AVX512-BF16), float32
otherwise. The table goes to benchmarks/results/photographs.json, and pictures of the same captions and the
chosen settings to docs/photographs_ARM.png.
"""

import argparse
import fcntl
import json
import resource
import shutil
import statistics
import subprocess
import sys
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger
from plain_flow import Drawer
from scipy.stats import t as student

import lmsd
from lmsd.checkpoints import images_of, manifests
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
GUIDANCE = (1.0, 2.5, 4.0)
STEPS = {"ours": (4,), "velocity": (16, 4), "x0": (16, 4)}
"""Steps of an arm; its guidance is chosen at the first number of them."""
TRIAL = 100.0
"""CPU seconds of a trial of the script's rate and average."""
RATES = (5e-4, 1e-3, 2e-3)
AVERAGES = (0.995, 0.98)
GAME = 10_000
"""Images with the adversary, as in the recipe, however many come before."""
HALF = torch.cpu._is_avx512_bf16_supported()
FAMILIES = ("lmsd-cnn", "lmsd-ssl", "random-conv")
BUDGET = 8
"""Net evaluations an image that ours may use."""


class Judge:
    """Scores by the data set's classifier and by the families that share nothing with it."""

    def __init__(self, shards: str, ssl_images: int | None) -> None:
        self.data = ShardSet(shards, image_size=32)
        self.ssl_images = ssl_images
        self.cache = cache_folder() / "features"

    @cached_property
    def extractor(self) -> Any:
        """The classifier, trained on the train split by whoever needs it first."""
        with (self.cache.parent / "judge.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            return find_or_train(self.data, augment="shift_flip")[0]

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
    words += ["precision=bf16-mixed" if HALF else "precision=32-true"]
    words += [] if images is None else [f"images={images}", f"objective.warmup={1 - GAME / images:.3f}"]
    command = [sys.executable, "-m", "lmsd.cli", "train", "experiment=cifar10", *words, "accelerator=cpu"]
    seconds = _cpu_seconds(command)
    status = json.loads((folder / "status.json").read_text())
    return {"path": str(folder), "cpu_seconds": seconds, "images": status["images"]}


def train_plain(path: Path, shards: str, seconds: float, **words: object) -> dict[str, Any]:
    """Train an arm of the plain script for so many CPU seconds."""
    command = [sys.executable, str(HERE / "plain_flow.py"), shards, str(path), f"--seconds={seconds:.0f}"]
    command += ["--half"] * HALF + [f"--{name}={value}" for name, value in words.items()]
    spent = _cpu_seconds(command)
    images = torch.load(path, weights_only=True)["images"]
    return {"path": str(path), "cpu_seconds": spent, "images": images, **words}


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


def tried(ledger: Ledger, judge: Judge, options: argparse.Namespace, arm: str) -> dict[str, float]:
    """The rate and average of an arm of the script with the lowest FD on val after a short training."""

    def fd(rate: float, average: float) -> float:
        name = f"{arm} rate {rate:g} average {average:g}"

        def make() -> dict[str, Any]:
            path = options.work / f"trial-{arm}-{rate:g}-{average:g}.pt"
            return train_plain(path, options.shards, TRIAL, arm=arm, rate=rate, average=average, seed=0)

        path = ledger.cell(f"trial {name}", make)["path"]
        found = ledger.cell(f"val trial {name}", lambda: judge(drawer(arm, path, 2.5, 8), "val", 400))
        return float(fd_of(found)["value"])

    rate = min(RATES, key=lambda rate: fd(rate, AVERAGES[0]))
    return {"rate": rate, "average": min(AVERAGES, key=lambda average: fd(rate, average))}


def trained(ledger: Ledger, judge: Judge, options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """A trained arm of a seed; the script's takes the CPU seconds of ours."""
    name = f"train {arm} {seed}"
    if arm == "ours":
        return dict(ledger.cell(name, lambda: train_ours(options.work, options.shards, seed, options.images)))
    seconds = trained(ledger, judge, options, "ours", seed)["cpu_seconds"]
    words = tried(ledger, judge, options, arm)
    path = options.work / f"{arm}-{seed}.pt"
    return dict(
        ledger.cell(name, lambda: train_plain(path, options.shards, seconds, arm=arm, seed=seed, **words))
    )


def settled(ledger: Ledger, judge: Judge, options: argparse.Namespace, arm: str) -> tuple[float, int, float]:
    """Guidance and steps of an arm, and its FD there, on val with seed 0."""
    guidance, steps = choice(ledger, judge, arm, trained(ledger, judge, options, arm, 0)["path"], options.val)
    name = f"val {arm} guidance {guidance:g} steps {steps} n {options.val}"
    return guidance, steps, float(fd_of(ledger.cells[name])["value"])


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every cell that is wanted; what the table is made of."""
    options.work.mkdir(parents=True, exist_ok=True)
    ledger, judge = Ledger(options.work / "ledger.jsonl", _short), Judge(options.shards, options.ssl_images)
    if options.trials:
        return {arm: tried(ledger, judge, options, arm) for arm in options.arms}
    if options.train:
        pairs = [word.rsplit("-", 1) for word in options.train]
        return {f"{arm}-{seed}": trained(ledger, judge, options, arm, int(seed)) for arm, seed in pairs}
    chosen = {arm: settled(ledger, judge, options, arm) for arm in ("ours", *options.arms)}
    better = min(options.arms, key=lambda arm: chosen[arm][2])
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for arm in ("ours", *options.arms) if seed == 0 else ("ours", better):
            made, (guidance, steps, _) = trained(ledger, judge, options, arm, seed), chosen[arm]
            draw = drawer(arm, made["path"], guidance, steps)
            name = f"test {arm} {seed} n {options.n}"
            found = ledger.cell(name, lambda draw=draw: judge(draw, "test", options.n))
            rows.append(
                {**made, "arm": arm, "seed": seed, "guidance": guidance, "steps": steps, "test": found}
            )
            if seed == 0:
                judge.grid(draw, options.pictures / f"photographs_{arm}.png")
    rows += beside(ledger, judge, options)
    return {"n": options.n, "extractor": judge.extractor.name, "better": better, "rows": rows}


def beside(ledger: Ledger, judge: Judge, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two rows of seed 0 that nothing was chosen for: the recipe's own guidance, and before the adversary.

    CPU seconds of the latter are those of the whole run, more than it took.
    """
    made = trained(ledger, judge, options, "ours", 0)
    model, found = lmsd.load(made["path"]), list[dict[str, Any]]()
    own = float(model.config["evaluate"]["guidance"])
    kept = [path for path in manifests(Path(made["path"]) / "checkpoints") if images_of(path) < model.images]
    early = max((path for path in kept if images_of(path) <= made["images"] - GAME), key=images_of)
    for arm, place, guidance, steps in (
        ("ours, own guidance", Path(made["path"]), own, 4),
        ("ours, before the adversary", early, 2.5, 16),
    ):
        at = f" at {images_of(early)}" if place == early else ""
        name = f"test ours 0{at} guidance {guidance:g} steps {steps} n {options.n}"
        draw = lmsd.load(place).generation(guidance=guidance, steps=steps)
        scores = ledger.cell(name, lambda draw=draw: judge(draw, "test", options.n))
        images = images_of(early) if place == early else made["images"]
        told = {"arm": arm, "seed": 0, "images": images, "guidance": guidance, "steps": steps}
        found.append({**made, **told, "test": scores})
    return found


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
    said = [
        "Paired differences with 95 % intervals over training seeds (of one seed: over test images and",
        "noise); above 0 ours is better",
        "",
        "| ours | arm | seeds | family | FD, arm − ours | half its FD − floor, less ours | recall gained |",
        "|---|---|---|---|---|---|---|",
    ]
    own = sorted({row["arm"] for row in rows if row["arm"].startswith("ours")})
    scripts = sorted({row["arm"] for row in rows} - set(own))
    for mine, arm in product(own, scripts):
        seeds = [seed for other, seed in by if other == arm and (mine, seed) in by]
        for family in FAMILIES:
            gaps: list[list[tuple[Any, Any]]] = [[], [], []]
            for seed in seeds:
                ours, theirs = by[mine, seed], by[arm, seed]
                fds = [fd_of(side, "fd", family) for side in (theirs, ours)]
                recalls = [fd_of(side, "recall", family) for side in (ours, theirs)]
                half = middle(fds[0], fd_of(ours, "fd_floor", family))
                for gap, pair in zip(gaps, (fds, (half, fds[1]), recalls), strict=True):
                    gap.append((pair[0], pair[1]))
            cells = [difference(gap, places) for gap, places in zip(gaps, (".3g", ".3g", ".3f"), strict=True)]
            said.append(f"| {mine} | {arm} | {len(seeds)} | {family} | {' | '.join(cells)} |")
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
    parser.add_argument("--val", type=int, default=500)
    parser.add_argument("--trials", action="store_true")
    parser.add_argument("--train", nargs="*", default=[], metavar="ARM-SEED")
    parser.add_argument("--arms", nargs="*", default=["velocity", "x0"], choices=["velocity", "x0"])
    parser.add_argument("--ssl-images", type=int, default=None)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "photographs.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = run(options)
    if options.trials or options.train:
        print(json.dumps(found))
        return 0
    text = table(found)
    print(text)
    kept = {**found, "rows": list(map(short, found["rows"])), "table": text.splitlines()}
    options.results.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
