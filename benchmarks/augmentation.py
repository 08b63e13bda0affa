"""Do generated images help a classifier of few real ones? Real, shifted, generated, all, on one test.

    python benchmarks/augmentation.py 0 1 2 3 4 5 6 7 8 9     ten subsets of 50, 100 and 300 digits
    python benchmarks/augmentation.py 0 --short               50 digits and a twentieth of the updates

Generator, filters and stopping see the n images alone: they are written as a data set of their own, a fifth
of them its val, and `lmsd data synthesize` takes its captions, its classifier and its copies from there. The
classifier is lmsd-cnn, the same recipe on every side; its accuracy is on all test digits. Every line of
benchmarks/results/augmentation.jsonl is a cell.
"""

import shutil
import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger, run, seeded

from lmsd.cli.verbs.synthesize import samples
from lmsd.data.builders.write import write_split
from lmsd.data.shardset import ShardSet
from lmsd.evaluation.synthesis import Drawn
from lmsd.features.cnn import train_extractor
from lmsd.types import levels

COUNTS, IMAGES, LEARNED = (50, 100, 300), 150_000, 30_000
TIMES = (1, 4, 16)
FILTERS = {"filtered": ["confidence=0.9", "near=0.01"], "unfiltered": ["confidence=0", "near=0"]}


def few(source: str, folder: Path, *, count: int, seed: int) -> str:
    """A subset as a data set of its own, a fifth of it val."""
    train = ShardSet(source, image_size=8, channels=1).split_set("train")
    rows = torch.randperm(len(train), generator=seeded(seed))[:count].tolist()
    folder.mkdir()
    for split, own in (("val", rows[: count // 5]), ("train", rows[count // 5 :])):
        labels = train.labels(own)
        assert labels is not None
        drawn = Drawn(levels(train.images(own)), train.captions(own), labels.tolist(), len(own))
        write_split(folder, split, samples(drawn), size=1_000)
    return str(folder)


def accuracy(source: str, shards: list[str], *, shifts: bool, seed: int) -> float:
    """Of lmsd-cnn, learned from shards, on the test digits."""
    learned = ShardSet(shards, image_size=8, channels=1).split_set("train")
    test = ShardSet(source, image_size=8, channels=1).split_set("test")
    judge = train_extractor(
        learned, augment="shift" if shifts else "none", images=LEARNED, seed=seed, data="benchmark"
    )
    rows = range(len(test))
    right = judge.right(judge(test.images(rows))[1], test.labels(rows), None)
    assert right is not None
    return float(right.float().mean())


def cell_of(count: int, seed: int, *, work: Path, images: int) -> dict[str, Any]:
    """The accuracies of all sides on one subset."""
    source, folder = f"{work}/digits", work / f"run-{count}-{seed}"
    small = few(source, work / f"few-{count}-{seed}", count=count, seed=seed)
    words = ["experiment=digits", f"data.shards={small}", f"images={images}", f"seed={seed}", "logger=none"]
    run("train", *words, f"run_dir={folder}", "evaluate.n=0", "objective=denoising")
    found = {
        "real": accuracy(source, [small], shifts=False, seed=seed),
        "real + shifts": accuracy(source, [small], shifts=True, seed=seed),
    }
    for (name, own), times in product(FILTERS.items(), TIMES):
        made = work / f"made-{name}-{times}-{count}-{seed}"
        run("data", "synthesize", f"run={folder}", f"out={made}", f"n={times * count}", "balanced=true", *own)
        both = [small, str(made)]
        found[f"real + {times}n {name}"] = accuracy(source, both, shifts=False, seed=seed)
        found[f"all, {times}n {name}"] = accuracy(source, both, shifts=True, seed=seed)
        shutil.rmtree(made)
    return {"accuracy": found, "test": "all test digits"}


def main(words: list[str]) -> None:
    short = "--short" in words
    seeds = [int(word) for word in words if word != "--short"]
    ledger, images = Ledger("augmentation"), IMAGES // 20 if short else IMAGES
    with tempfile.TemporaryDirectory() as work:
        run("data", "build", "digits", f"out={work}/digits")
        for seed, count in product(seeds, COUNTS[:1] if short else COUNTS):
            own = {"work": Path(work), "images": images}
            ledger.cell(f"digits {count} {seed}" + " short" * short, partial(cell_of, count, seed, **own))


if __name__ == "__main__":
    main(sys.argv[1:])
