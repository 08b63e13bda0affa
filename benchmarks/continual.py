"""Tasks one after the other: plain fine-tuning, replay, EWC, its rank-1 form and L2, beside joint training.

    python benchmarks/continual.py digits 1 2 3 4 5      digits 0 to 4, then 5 to 9
    python benchmarks/continual.py shapes 1 2 3 4 5      shapes by color, in three tasks
    python benchmarks/continual.py digits 0 --short      a twentieth of the updates, to try it

All methods make as many updates on each task, by denoising; joint training sees all tasks for as long as all
take together. No old data are kept: replay draws own images. After each task the newest weights are scored on
test of every task, right prompts by the classifier of all tasks (digits) or the exact reader (shapes). Every
line of benchmarks/results/continual.jsonl is a cell; the table of all seeds is printed at the end.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ledger import Ledger, run, scores

from lmsd.cli.build.extractors import find_or_train
from lmsd.data.shardset import ShardSet
from lmsd.evaluation.tasks import learned, table

COLORS = ("'red' in caption or 'yellow' in caption", "'green' in caption or 'cyan' in caption")
TASKS = {
    "digits": ("cls<5", "cls>=5"),
    "shapes": (*COLORS, f"not ({' or '.join(COLORS)})"),
}
SETS = {"digits": (8, 1, 100_000, None), "shapes": (16, 3, 100_000, "shapes")}
KEEPS = {"replay": 1.0, "ewc": 1e-2, "rank1": 1.0, "l2": 1e-2}
"""λ of each method."""


def task_words(shards: list[str]) -> str:
    """The captions of tasks as objective.prompts."""
    data = ShardSet(shards, image_size=8)
    train = data.split_set("train")
    texts = sorted(set(train.captions(range(len(train)))))[:256]
    return "objective.prompts=[" + ", ".join(f"'{text}'" for text in texts) + "]"


def trained(name: str, shards: str, folder: Path, images: int, seed: int, *words: str) -> None:
    """A run of denoising, unscored."""
    own = [f"experiment={name}", f"data.shards={shards}", f"images={images}", f"seed={seed}"]
    run("train", *own, f"run_dir={folder}", "evaluate.n=0", "logger=none", *words)


def matrix(name: str, side: str, seed: int, *, work: Path, images: int) -> dict[str, Any]:
    """Scores of every task after every task, with those of an untrained net first."""
    size, channels, _, reads = SETS[name]
    tasks = [f"{work}/{name}-{number}" for number in range(len(TASKS[name]))]
    judge = find_or_train(ShardSet(tasks, image_size=size, channels=channels))[0]
    folders = [work / f"{side}-{seed}-{number}" for number in range(len(tasks) + 1)]
    trained(name, tasks[0], folders[0], 64, seed, "objective=denoising", "optim.warmup_images=1_000_000_000")
    for number, task in enumerate(tasks):
        words = ["objective=denoising"]
        if side == "joint":
            task, total = "[" + ",".join(tasks) + "]", images * len(tasks)
        else:
            total = images
            words += [f"init_from={folders[number]}"] * (number > 0)
        if side in KEEPS and number:
            words = ["objective=continual", f"objective.keep={side}", f"objective.weight={KEEPS[side]}"]
            words += [f"init_from={folders[number]}", task_words(tasks[:number])]
        if side != "joint" or number == 0:
            trained(name, task, folders[number + 1], total, seed, *words)
    own = {"size": size, "channels": channels, "reads": reads, "extractor": judge, "split": "test"}
    rows = []
    for number, folder in enumerate(folders):
        at = folders[1] if side == "joint" and number else folder
        rows.append([scores(at, task, seeds=(0, 1), **own)["scores"]["right"][0] for task in tasks])
    return {"right": rows, "images": images}


def main(words: list[str]) -> None:
    short = "--short" in words
    name, *seeds = [word for word in words if word != "--short"]
    size, _, images, _ = SETS[name]
    images = images // 20 if short else images
    ledger, found = Ledger("continual"), dict[str, list[Any]]()
    with tempfile.TemporaryDirectory() as work:
        for number, where in enumerate(TASKS[name]):
            sized = [f"image_size={size}"] if name == "shapes" else []
            run("data", "build", name, f"out={work}/{name}-{number}", f'where="{where}"', *sized)
        for seed in map(int, seeds):
            for side in ("plain", *KEEPS, "joint"):
                cell = f"{name} {side} {seed}" + " short" * short
                work_of = partial(matrix, name, side, seed, work=Path(work), images=images)
                found.setdefault(side, []).append(ledger.cell(cell, work_of)["right"])
    print(table({side: learned(rows) for side, rows in found.items()}, unit="right prompts"))


if __name__ == "__main__":
    main(sys.argv[1:])
