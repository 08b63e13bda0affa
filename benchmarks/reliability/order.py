"""The order of samples under kills, resizes and other batch sizes; what a resume costs.

    python benchmarks/reliability/order.py --n 1000

Segments of a run with world 1 to 8, 0 to 8 workers (processes, in every twentieth), micro-batches and
global batches that change, each killed after having read ahead: every rank's batches put together are the one
stream, in which each of three epochs holds every sample once (prime counts of samples and shards). Seed 0.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from harness import count, report
from torch.utils.data import DataLoader, Dataset

from lmsd.data.order import Order
from lmsd.data.stream import Positions

SIZES = np.asarray([31, 17, 5, 40, 2, 23, 13])
"""131 samples in 7 shards, both prime."""


class Seen(Dataset[np.ndarray]):
    """Positions → (shard, sample) pairs, in a worker or not."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return np.stack(self.order(positions), 1)


def segment(order: Order, draw: np.random.Generator, start: int, workers: int) -> np.ndarray:
    """What all ranks together use from `start` on before they are killed."""
    world, micro = int(draw.integers(1, 3 if workers else 9)), int(draw.choice([1, 2, 3]))
    batch, steps = world * micro * int(draw.integers(1, 5)), int(draw.integers(1, 6))
    ranks = []
    for rank in range(world):
        places = Positions(start, batch_size=batch, world=world, rank=rank, micro_batches=micro)
        loader = iter(DataLoader(Seen(order), batch_size=None, sampler=places, num_workers=workers))
        ranks.append([np.asarray(next(loader)) for _ in range((steps + 1) * micro)][: steps * micro])
    pieces = [p for k in range(steps) for rank in ranks for p in rank[k * micro : (k + 1) * micro]]
    return np.concatenate(pieces)


def elastic(n: int) -> tuple[int, list[str]]:
    """Segments until n: what was lost, repeated or out of order."""
    draw, order, failures, position = np.random.default_rng(0), Order(SIZES, window=3, seed=7), [], 0
    for number in range(n):
        workers = int(draw.integers(1, 9)) if number % 20 == 19 else 0
        used = segment(order, draw, position, workers)
        truth = np.stack(order(np.arange(position, position + len(used))), 1)
        if not np.array_equal(used, truth):
            failures.append(f"segment {number} from position {position}")
        position += len(used)
    return n, failures


def epochs() -> tuple[int, list[str]]:
    """Three epochs of 131 samples in 7 shards: each sample once in each."""
    order, failures = Order(SIZES, window=3, seed=7), []
    for epoch in range(3):
        shard, sample = order(np.arange(epoch * 131, (epoch + 1) * 131))
        pairs = set(zip(shard.tolist(), sample.tolist(), strict=True))
        if len(pairs) != 131 or any(sample >= SIZES[shard]):
            failures.append(f"epoch {epoch}: {len(pairs)} of 131 samples")
    return 3, failures


def costs() -> tuple[int, list[str]]:
    """A position among 1e8 samples in 1e4 shards under 50 ms; the first batch after a resume under 2 s."""
    from lmsd.data.build import build
    from lmsd.data.module import ShardDataModule

    began = time.perf_counter()
    Order(np.full(10_000, 10_000), seed=1)(np.arange(90_000_000, 90_000_064))
    lookup = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "digits"
        build("digits", folder)
        began = time.perf_counter()
        module = ShardDataModule(folder, batch_size=64, image_size=8, channels=1)
        module.load_state_dict(module.state_dict() | {"position": 64_000})
        next(iter(module.train_dataloader()))
        first = time.perf_counter() - began
    print(f"position among 1e8: {1e3 * lookup:.0f} ms; first batch after a resume: {first:.2f} s")
    limits = (("a lookup", lookup, 0.05), ("the first batch", first, 2.0))
    return 2, [f"{what} took {seconds:.3g} s" for what, seconds, limit in limits if seconds > limit]


if __name__ == "__main__":
    report("kill-and-resize segments, lost or repeated or reordered", *elastic(count(1000)))
    report("epochs, not each sample once", *epochs())
    report("costs of a resume, too high", *costs())
