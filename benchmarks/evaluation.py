"""What an evaluation costs beyond its forward passes, and what it holds in memory.

    python benchmarks/evaluation.py SHARDS [--n 10000] [--image-size 32]

Scores n held-out images of a data set (CIFAR-10's test split, say) with a small untrained generator in one
step and lmsd-cnn: every score, the search for copies among all training images, the overlap of the splits,
nothing cached but the extractor. CPU seconds of one thread. Prints the time of sampling, of reading images
and of the extractor's forward passes, that of everything, and their ratio; then the growth of the peak memory
when n doubles, beside the size of the features and of the images that were added. Exits with 1 where the
ratio is 2 or more or the growth is that of images.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from lmsd.cli.extractors import find_or_train
from lmsd.data.module import ShardDataModule
from lmsd.evaluation import Evaluator, make_generate
from lmsd.evaluation.overlap import overlap
from lmsd.models.backbones import unet_pooled
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.generator import Generator
from lmsd.process import Article, Process
from lmsd.sampling import FewStep

LIMIT = 2.0


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
    net = unet_pooled(3, image_size, widths=(32, 64), pooled_dim=32, z_dim=0)
    return Generator(net, Process(Article(4)), prediction="x0", conditioner=conditioner)


def run(data: ShardDataModule, extractor: Any, n: int, image_size: int) -> tuple[float, float, int]:
    """(seconds of forward passes, seconds of everything, peak memory in bytes)."""
    held_out, train = Timed(data.split_set("test"), "images"), Timed(data.split_set("train"), "images")
    sampled, features = Timed(make_generate(generator(image_size), FewStep(), steps=1)), Timed(extractor)
    began = time.process_time()
    shared = overlap(train.inner, held_out.inner)
    evaluator = Evaluator(held_out, features, n=n, train=train, shared=shared)  # type: ignore[arg-type]
    scores = evaluator(lambda batch, rng: sampled(batch, rng), split="test")
    whole = time.process_time() - began
    assert isinstance(scores["fd"].value, float)
    passes = sampled.seconds + features.seconds + held_out.seconds + train.seconds
    return passes, whole, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--image-size", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = options.image_size
    data = ShardDataModule(options.shards, batch_size=1, image_size=size)
    extractor, _ = find_or_train(data)
    _, _, before = run(data, extractor, options.n // 2, size)
    passes, whole, after = run(data, extractor, options.n, size)
    ratio = whole / passes
    added = options.n - options.n // 2
    images = added * 3 * size * size * 4
    print(f"n={options.n}: forward passes {passes:.1f} s, everything {whole:.1f} s, ratio {ratio:.2f}")
    print(
        f"{added} images more: peak memory +{(after - before) / 2**20:.1f} MiB; their features "
        f"{added * 64 * 4 / 2**20:.1f} MiB, they themselves {images / 2**20:.1f} MiB"
    )
    return int(ratio >= LIMIT or after - before >= images)


if __name__ == "__main__":
    sys.exit(main())
