"""Few images: LMSD with adaptive augmentation, without it, and denoising.

    python benchmarks/small_data.py digits 0 1 2 3 4          five subsets of 100 and of 300 images each
    python benchmarks/small_data.py shapes 0 1 2 3 4          of 500
    python benchmarks/small_data.py digits 0 --short          a twentieth of the updates, to try it

Subset s is what `seed=s data.train.first=N` trains on. One extractor for all sizes, trained on the full train
split; copies and neighbors are looked for in the subset; scores on test, three seeds of images. Every line of
benchmarks/results/small_data.jsonl is a cell; cells that are there are not made again.
"""

import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path

from ledger import Ledger, run, scores, subset

from lmsd.data.shardset import ShardSet

SETS = {"digits": (8, 1, (100, 300), 200_000, None), "shapes": (16, 3, (500,), 150_000, "shapes")}
AUGMENT = ["objective.game.penalty.augment.strength=sign", "objective.game.penalty.augment.span=20_000"]
SIDES = {"augmented": AUGMENT, "plain": [], "denoising": ["objective=denoising"]}


def train_and_score(
    name: str, side: str, *, count: int, seed: int, work: Path, images: int
) -> dict[str, object]:
    """One cell: a run on a subset, and its scores on test."""
    size, channels, _, _, reads = SETS[name]
    shards, folder = f"{work}/{name}", work / f"{side}-{count}-{seed}"
    words = [f"experiment={name}", f"data.shards={shards}", f"images={images}", f"seed={seed}"]
    words += [f"data.train.first={count}", f"run_dir={folder}", "evaluate.n=0", "logger=none"]
    run("train", *words, *SIDES[side])
    known = subset(ShardSet(shards, image_size=size, channels=channels), seed=seed, count=count)
    own = {"size": size, "channels": channels, "reads": reads, "train": known}
    return scores(folder, shards, split="test", seeds=(0, 1, 2), **own)


def main(words: list[str]) -> None:
    short = "--short" in words
    name, *seeds = [word for word in words if word != "--short"]
    size, _, counts, images, _ = SETS[name]
    images = images // 20 if short else images
    ledger = Ledger("small_data")
    with tempfile.TemporaryDirectory() as work:
        sized = [f"image_size={size}"] if name == "shapes" else []
        run("data", "build", name, f"out={work}/{name}", *sized)
        for seed, count, side in product(map(int, seeds), counts, SIDES):
            own = {"count": count, "seed": seed, "work": Path(work), "images": images}
            cell = f"{name} {count} {side} {seed}" + " short" * short
            ledger.cell(cell, partial(train_and_score, name, side, **own))


if __name__ == "__main__":
    main(sys.argv[1:])
