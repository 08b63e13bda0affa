"""Robustness trained: attacks and noise on the code against plain denoising; and noisy training images.

    python benchmarks/robustness.py digits 0 1 2             areas under the curves, FD and right prompts
    python benchmarks/robustness.py digits 0 --noisy         images with noise of sigma .1, .2 and .4
    python benchmarks/robustness.py digits 0 --short         a twentieth of the updates, to try it

Scores and curves are those of the test split; noise is added to the pixels once, before they are written.
Every line of benchmarks/results/robustness.jsonl is a cell.
"""

import hashlib
import io
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger, run, scores
from PIL import Image

from lmsd.cli.build.extractors import find_or_train
from lmsd.cli.build.trained import opened
from lmsd.cli.build.validate import checker
from lmsd.cli.config.settings import SamplingOptions
from lmsd.data.builders.write import write_split
from lmsd.data.shardset import ShardSet
from lmsd.evaluation import Evaluator
from lmsd.evaluation.robustness import robustness, subject
from lmsd.rng import Rng
from lmsd.types import levels

SETS = {"digits": (8, 1, 200_000, None), "shapes": (16, 3, 150_000, "shapes")}
SIDES = {
    "plain": ["objective=denoising"],
    "attack": ["objective=robust", "objective.disturb.attack=0.1"],
    "code": ["objective=robust", "objective.disturb.code=0.5"],
}
NOISES = (0.1, 0.2, 0.4)


def noisy(source: str, folder: Path, *, size: int, channels: int, sigma: float) -> str:
    """The train split with noise on its pixels, as shards."""
    train = ShardSet(source, image_size=size, channels=channels).split_set("train")
    rows = torch.arange(len(train))
    images = levels(train.images(rows) + sigma * Rng(9, rows).normal((channels, size, size), "noise"))
    captions, labels = train.captions(rows), train.labels(rows)

    def samples() -> Iterator[dict[str, str | bytes]]:
        for row, image in enumerate(images):
            pixels, target = image.permute(1, 2, 0).numpy(), io.BytesIO()
            Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(target, "PNG")
            key = f"{row:06d}{hashlib.sha256(target.getvalue()).hexdigest()[:12]}"
            kept = {"__key__": key, "png": target.getvalue(), "txt": captions[row].encode()}
            yield kept | ({} if labels is None else {"cls": str(int(labels[row])).encode()})

    folder.mkdir()
    write_split(folder, "train", samples(), size=1_000)
    return str(folder)


def trained(name: str, shards: str, folder: Path, images: int, seed: int, *words: str) -> None:
    """A run that is not scored while it trains."""
    own = [f"experiment={name}", f"data.shards={shards}", f"images={images}", f"seed={seed}"]
    run("train", *own, f"run_dir={folder}", "evaluate.n=0", "logger=none", *words)


def disturbed(name: str, side: str, seed: int, *, work: Path, images: int) -> dict[str, Any]:
    """Scores and the areas of all curves of one side."""
    size, channels, _, reads = SETS[name]
    shards, folder = f"{work}/{name}", work / f"{side}-{seed}"
    trained(name, shards, folder, images, seed, *SIDES[side])
    found = scores(folder, shards, size=size, channels=channels, split="test", seeds=(0, 1, 2), reads=reads)
    data = ShardSet(shards, image_size=size, channels=channels)
    scorer = Evaluator(data.split_set("test"), find_or_train(data)[0], checker=checker(reads))
    _, generate = opened(folder, SamplingOptions(run=str(folder)))
    curves = robustness(subject(scorer, generate, n=512, seed=0))
    return found | {"areas": {f"{curve.what}: {curve.kind}": curve.area for curve in curves}}


def from_noise(name: str, seed: int, sigma: float, side: str, *, work: Path, images: int) -> dict[str, Any]:
    """Scores of a run on clean images, on noisy ones, or on noisy ones with the time restriction."""
    size, channels, _, reads = SETS[name]
    clean, dirty, folder = f"{work}/{name}", work / f"{name}-{sigma:g}", work / f"{side}-{sigma:g}-{seed}"
    if not dirty.exists():
        noisy(clean, dirty, size=size, channels=channels, sigma=sigma)
    restricted = ["objective=robust", f"objective.disturb.noisy={sigma}"]
    words = restricted if side == "restricted" else ["objective=denoising"]
    trained(name, clean if side == "clean" else str(dirty), folder, images, seed, *words)
    return scores(folder, clean, size=size, channels=channels, split="test", seeds=(0, 1, 2), reads=reads)


def main(words: list[str]) -> None:
    short = "--short" in words
    name, *seeds = [word for word in words if not word.startswith("--")]
    size, _, images, _ = SETS[name]
    images = images // 20 if short else images
    ledger = Ledger("robustness")
    with tempfile.TemporaryDirectory() as work:
        run("data", "build", name, f"out={work}/{name}", *[f"image_size={size}"] * (name == "shapes"))
        own = {"work": Path(work), "images": images}
        for seed in map(int, seeds):
            if "--noisy" in words:
                for sigma, side in product(NOISES, ("clean", "noisy", "restricted")):
                    cell = f"{name} noisy {sigma:g} {side} {seed}" + " short" * short
                    ledger.cell(cell, partial(from_noise, name, seed, sigma, side, **own))
            else:
                for side in SIDES:
                    cell = f"{name} {side} {seed}" + " short" * short
                    ledger.cell(cell, partial(disturbed, name, side, seed, **own))


if __name__ == "__main__":
    main(sys.argv[1:])
