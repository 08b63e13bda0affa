"""Few-step methods side by side, from one shared teacher and for equal CPU time.

    python benchmarks/few_steps.py DATA SHARDS WORK [--seeds 3] [--trials 6] [--methods lmsd,dmd2] [--test]

DATA is digits, shapes or cifar10. A teacher is trained by denoising, once for each training seed; every
method then goes on from its weights for the CPU seconds that few_steps.json names, on one thread. How many
images that makes is measured before, by two short runs whose difference leaves the start out. Each method
makes one student, which is read at 1, 2 and 4 steps without guidance; denoising, the same net trained longer,
at 4, 16 and 50. MeanFlow predicts another quantity than the teacher, so it begins from scratch and gets the
teacher's time on top.

Each method has the same number of trials, scored on val with the first seed by the classifier's FD: the
lowest mean of log FD over its steps wins. With --test, which is for when no trial is left to make, the
winners are trained for every seed and scored once on test, by every family of features, with the net
evaluations and the CPU seconds of 100 images.

A method whose configuration is not there (configs/objective) is skipped, with a line. Every cell is a line of
results/few_steps_DATA.jsonl; what it has is not made again, so the same command goes on where it was stopped.
The table goes to results/few_steps_DATA.md. WORK holds the runs.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger

import lmsd
from lmsd.cli import run
from lmsd.cli.build import callbacks, experiment  # noqa: F401  imported once, for all forks
from lmsd.cli.verbs import evaluate, report, train  # noqa: F401
from lmsd.data.shardset import ShardSet
from lmsd.engine import trainer  # noqa: F401
from lmsd.rng import Rng

HERE = Path(__file__).resolve().parent
STEPS = (1, 2, 4)
SHORT = (0.05, 0.25)  # shares of a student's time that measure its speed
FAMILIES = ("lmsd-cnn", "lmsd-ssl", "random-conv")
TIMED = 100


class Course:
    """The methods of one data set: how they are trained and scored, and the cells that are there already."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.plan = json.loads((HERE / "few_steps.json").read_text())[options.data]
        self.options, self.work = options, options.work.resolve()
        self.ledger = Ledger(HERE / "results" / f"few_steps_{options.data}.jsonl")
        wanted = options.methods.split(",") if options.methods else list(self.plan["methods"])
        self.methods = [name for name in wanted if self.landed(name)]

    def landed(self, name: str) -> bool:
        """Whether the configuration of a method is there."""
        objective = self.plan["methods"][name]["objective"]
        there = (HERE.parent / "configs" / "objective" / f"{objective}.yaml").is_file()
        if not there:
            print(f"{name} is skipped: there is no objective={objective}", flush=True)
        return there

    def steps(self, method: str) -> list[int]:
        """At how many steps a method is read."""
        return self.plan["methods"][method].get("steps", list(STEPS))

    def words(self, method: str, trial: int, seed: int) -> list[str]:
        """The overrides of a student: its method's, its trial's and where it starts."""
        own = self.plan["methods"][method]
        teacher = self.work / f"teacher-{seed}"
        sources = ", ".join(f"{role}: {teacher}@ema" for role in own.get("roles", ["generator"]))
        begins = [f"init_from={{{sources}}}"] if sources else []
        named = [f"objective={own['objective']}", f"seed={seed}"]
        return [*begins, *named, *own.get("words", []), *own["trials"][trial]]

    def train(self, folder: Path, words: list[str], images: int) -> float:
        """Train a run and return its CPU seconds, start included."""
        words = [*self.plan["base"], *words, f"images={images}", f"data.shards={self.options.shards}"]
        words += [f"run_dir={folder}", "evaluate.n=0", "threads=1", "accelerator=cpu", "logger=csv"]
        words += [f"checkpoint_every={images}", f"log_every={max(1, images // 20)}"]
        if (folder / "checkpoints").is_dir():
            words.append("resume=auto")
        return forked(["train", *words], self.work / f"{folder.name}.log")

    def teacher(self, seed: int) -> None:
        """The denoiser that all start from."""
        own = self.plan["teacher"]

        def make() -> dict[str, Any]:
            words = ["objective=denoising", *own["words"], f"seed={seed}"]
            return {"cpu_seconds": self.train(self.work / f"teacher-{seed}", words, own["images"])}

        self.ledger.cell(f"teacher {seed}", make)

    def speed(self, method: str) -> float:
        """Images a CPU second."""

        def make() -> dict[str, Any]:
            words, guess = self.words(method, 0, 0), self.plan["teacher"]["images"] // 4
            counts = [round(share * guess) for share in SHORT]
            spent = [self.train(self.work / f"speed-{method}-{count}", words, count) for count in counts]
            return {"images_a_second": (counts[1] - counts[0]) / (spent[1] - spent[0])}

        return float(self.ledger.cell(f"speed {method}", make)["images_a_second"])

    def student(self, method: str, trial: int, seed: int) -> Path:
        """The folder of a student, trained for the time that all have."""
        folder = self.work / f"{method}-{trial}-{seed}"

        def make() -> dict[str, Any]:
            seconds = self.plan["seconds"]
            if self.plan["methods"][method].get("roles") == []:  # from scratch: with the teacher's time
                seconds += self.ledger.cells[f"teacher {seed}"]["cpu_seconds"]
            images = round(seconds * self.speed(method))
            return {
                "images": images,
                "cpu_seconds": self.train(folder, self.words(method, trial, seed), images),
            }

        self.ledger.cell(f"train {method} {trial} {seed}", make)
        return folder

    def scored(self, folder: Path, split: str, steps: list[int]) -> dict[str, Any]:
        """What the verb `evaluate` finds at each number of steps."""
        words = [f"run={folder}", f"split={split}", f"steps={steps}", "seeds=[0,1,2]", "guidance=1"]
        words += ["families=none"] if split == "val" else []
        forked(["evaluate", *words], self.work / f"{folder.name}.log")
        records = [
            json.loads(path.read_text()) for path in sorted((folder / "eval" / split).glob("step_*.json"))
        ]
        kept = {}
        for record in records:
            scores = {name: parts for name, parts in record["scores"].items() if "value" in parts}
            numbers = {
                name: {key: parts[key] for key in ("value", "low", "high") if key in parts}
                for name, parts in scores.items()
                if name.split("[")[0] in ("fd", "fd_floor", "right", "sw_families", "recall", "kinds")
            }
            setup = record["setup"]
            kept[str(setup["steps"])] = {"n": record["n"], "nfe": setup["nfe"], **numbers}
        return kept

    def trial(self, method: str, trial: int) -> float:
        """The mean of log FD over the steps, on val, of one trial."""

        def make() -> dict[str, Any]:
            own = self.plan["methods"][method]["trials"][trial]
            found = self.scored(self.student(method, trial, 0), "val", self.steps(method))
            return {"words": own, "scores": found}

        scores = self.ledger.cell(f"val {method} {trial}", make)["scores"]
        return statistics.mean(math.log(fd_of(row)["value"]) for row in scores.values())

    def winner(self, method: str) -> int:
        """The trial of the lowest mean of log FD; all are made first."""
        count = min(self.options.trials, len(self.plan["methods"][method]["trials"]))
        if count == 1:
            return 0
        return min(range(count), key=lambda trial: self.trial(method, trial))

    def test(self, method: str, trial: int, seed: int) -> dict[str, Any]:
        """A winner's scores on test, at each number of steps, with the CPU seconds of 100 images."""

        def make() -> dict[str, Any]:
            folder = self.student(method, trial, seed)
            found = self.scored(folder, "test", self.steps(method))
            for steps, row in found.items():
                row["seconds"] = sampling_seconds(folder, self.options, int(steps))
            return found

        found: dict[str, Any] = self.ledger.cell(f"test {method} {trial} {seed}", make)
        return found


def forked(words: list[str], log: Path) -> float:
    """Run a verb in a fork, which spares it the imports, with its output in a file; its CPU seconds."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = 1
        try:
            code = run(words)
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise RuntimeError(f"lmsd {words[0]} ended with {os.waitstatus_to_exitcode(status)}: see {log}")
    return usage.ru_utime + usage.ru_stime


def sampling_seconds(folder: Path, options: argparse.Namespace, steps: int) -> float:
    """CPU seconds for 100 images, on one thread: the median of five."""
    torch.set_num_threads(1)
    draw = lmsd.load(folder).generation(guidance=1.0, steps=steps)
    shape = draw.generator.image_shape
    batch = (
        ShardSet(str(options.shards), image_size=shape[1], channels=shape[0])
        .split_set("val")
        .batch(torch.arange(TIMED) % 50)
    )
    spent = []
    for _ in range(5):
        begun = time.process_time()
        draw(batch, Rng(0, batch.position))
        spent.append(time.process_time() - begun)
    return statistics.median(spent)


def fd_of(row: dict[str, Any], family: str = FAMILIES[0]) -> dict[str, float]:
    """The FD of a family in one row of scores; NaN where it has none."""
    found = [parts for name, parts in row.items() if name.startswith(f"fd[{family}")]
    return found[0] if found else {"value": math.nan}


def table(course: Course, winners: dict[str, int]) -> str:
    """The rows in Markdown: means over the training seeds."""
    seeds = range(course.options.seeds)
    lines = [
        f"{course.options.data}, test; students {course.plan['seconds']} CPU seconds from one teacher; "
        f"{len(seeds)} training seed(s), three sampling seeds each, guidance 1",
        "",
        "| method | net evaluations | CPU s / 100 images | FD classifier | FD self-supervised | FD random "
        "convolutions | sliced W ratio | right | trial |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, trial in winners.items():
        found = [course.test(method, trial, seed) for seed in seeds]
        for steps in found[0]:
            rows = [cell[steps] for cell in found]
            cells = [mean([fd_of(row, family)["value"] for row in rows]) for family in FAMILIES]
            cells += [
                mean([row.get(name, {"value": math.nan})["value"] for row in rows])
                for name in ("sw_families", "right")
            ]
            first = f"| {method} | {rows[0]['nfe']:g} | {mean([row['seconds'] for row in rows])}"
            words = " ".join(course.plan["methods"][method]["trials"][trial]) or "as it stands"
            lines.append(f"{first} | {' | '.join(cells)} | {words} |")
    return "\n".join(lines) + "\n"


def mean(values: list[float]) -> str:
    """Their mean, and their range if there are several."""
    told = f"{statistics.mean(values):.3g}"
    return told if len(values) == 1 else f"{told} ({min(values):.3g} to {max(values):.3g})"


def main() -> int:
    """Every trial, then every winner on test, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=["digits", "shapes", "cifar10"])
    parser.add_argument("shards", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--methods", help="comma-separated; default: all that there are")
    parser.add_argument("--test", action="store_true", help="score the winners on test")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    course = Course(options)
    for seed in range(options.seeds):
        course.teacher(seed)
    winners = {method: course.winner(method) for method in course.methods}
    if not options.test:
        return 0
    text = table(course, winners)
    (HERE / "results" / f"few_steps_{options.data}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
