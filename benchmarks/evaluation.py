"""What an evaluation costs beyond its forward passes, and what it holds in memory.

    python benchmarks/evaluation.py SHARDS [--n 10000] [--image-size 32]

Scores n held-out images of a data set (CIFAR-10's test split, say) with a small untrained generator in one
step and lmsd-cnn: every score, the search for copies among all training images, the overlap of the splits,
nothing cached but the extractor. CPU seconds of one thread: of sampling and of the extractor's forward
passes, of everything, and their ratio. Then the peak memory of more processes: scoring n/2 and n images
without the training set, and the overlap of all held-out images with half of the training set and with the
whole, beside the size of the images that were added. Exits with 1 where the ratio is 2 or more or the growth
is that of images; results: benchmarks/results/evaluation.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmsd.cli.build.extractors import find_or_train
from lmsd.data.shardset import ShardSet
from lmsd.evaluation import Evaluator
from lmsd.evaluation.overlap import overlap
from lmsd.models.backbones import PooledUNet
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.generator import Generator
from lmsd.process import Article, Process
from lmsd.sampling import Generation, Settings, Tau
from lmsd.types import Sizes

LIMIT = 2.0
RESULTS = Path(__file__).parent / "results" / "evaluation.json"


class Timed:
    """An extractor (or a split) whose calls are timed."""

    def __init__(self, inner: Any, *methods: str) -> None:
        self.inner, self.methods, self.seconds = inner, methods, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._timed(found) if name in self.methods else found

    def __len__(self) -> int:
        return len(self.inner)

    def __call__(self, *arguments: Any) -> Any:
        return self._timed(self.inner)(*arguments)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.process_time() - began

        return call


def generator(image_size: int) -> Generator:
    torch.manual_seed(0)
    conditioner = LabelConditioner(10, 32)
    net = PooledUNet(Sizes(3, image_size, pooled_dim=32, z_dim=0), widths=(32, 64))
    return Generator(net, Process(Article(4)), prediction="x0", conditioner=conditioner)


def run(data: ShardSet, n: int, image_size: int) -> dict[str, float]:
    """CPU seconds of everything and of its parts; reading is part of the overlap too."""
    held_out, train = Timed(data.split_set("test"), "images"), Timed(data.split_set("train"), "images")
    extractor, _ = find_or_train(data, augment="shift_flip")
    sampled, features = Timed(Generation(generator(image_size), Tau(1), Settings(1))), Timed(extractor)
    began = time.process_time()
    shared = overlap(train, held_out, mirrored=True)  # type: ignore[arg-type]
    compared = time.process_time() - began
    evaluator = Evaluator(held_out, features, n=n, train=train, shared=shared, mirrored=True)  # type: ignore[arg-type]
    scores = evaluator(lambda batch, rng: sampled(batch, rng), split="test")
    whole = time.process_time() - began
    assert {"fd", "kid", "coverage", "class_score"} <= {name.partition("[")[0] for name in scores.scores}
    return {
        "sampling": round(sampled.seconds, 1),
        "extractor": round(features.seconds, 1),
        "reading": round(held_out.seconds + train.seconds, 1),
        "overlap": round(compared, 1),
        "everything": round(whole, 1),
        "ratio": round(whole / (sampled.seconds + features.seconds), 2),
    }


class First:
    """The first rows of a split."""

    hash = None

    def __init__(self, inner: Any, n: int) -> None:
        self.inner, self.n = inner, n

    def __len__(self) -> int:
        return self.n

    def images(self, indices: Any) -> Any:
        return self.inner.images(indices)


def peak(what: str, n: int, shards: str, image_size: int) -> float:
    """Peak memory in MiB of a process that scores n images, or seeks the test split in n training images."""
    command = [sys.executable, __file__, shards, f"--n={n}", f"--image-size={image_size}", f"--peak={what}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def held(what: str, data: ShardSet, n: int, image_size: int) -> float:
    """Peak memory in MiB of this process after its work."""
    if what == "overlap":
        overlap(First(data.split_set("train"), n), data.split_set("test"), mirrored=True)  # type: ignore[arg-type]
    else:
        extractor, _ = find_or_train(data, augment="shift_flip")
        made = Generation(generator(image_size), Tau(1), Settings(1))
        Evaluator(data.split_set("test"), extractor, n=n)(made, split="test")
    # VmHWM: getrusage would tell the peak of whoever started this process, where that is larger.
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def growth(what: str, n: int, shards: str, image_size: int) -> dict[str, float]:
    """Peaks in MiB at n/2 and at n, and the size of the n/2 images that were added."""
    peaks = [peak(what, each, shards, image_size) for each in (n // 2, n)]
    added = (n - n // 2) * 3 * image_size * image_size * 4 / 2**20
    return {
        f"peak at {n // 2}": round(peaks[0], 1),
        f"peak at {n}": round(peaks[1], 1),
        "grown": round(peaks[1] - peaks[0], 1),
        "images added": round(added, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--peak", choices=("scores", "overlap"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, size = options.n, options.image_size
    data = ShardSet(options.shards, image_size=size)
    if options.peak:
        print(held(options.peak, data, n, size))
        return 0
    splits = {split: len(data.split_set(split)) for split in ("train", "test")}
    find_or_train(data, augment="shift_flip")
    sizes = {"overlap": splits["train"], "scores": n}
    grown_by = {what: growth(what, each, options.shards, size) for what, each in sizes.items()}
    print(grown_by, flush=True)
    found: dict[str, Any] = {"n": n, "splits": splits, "MiB": grown_by, "seconds": run(data, n, size)}
    text = json.dumps(found, indent=1)
    print(text)
    RESULTS.write_text(text + "\n")
    grown = any(2 * each["grown"] >= each["images added"] for each in found["MiB"].values())
    return int(found["seconds"]["ratio"] >= LIMIT or grown)


if __name__ == "__main__":
    sys.exit(main())
