"""The order of samples under kills, resizes and other batch sizes; what a resume costs.

    python benchmarks/reliability/order.py --n 1000

Segments of a run with world 1 to 8, 0 to 8 workers (processes, in every twentieth), micro-batches and
global batches that change, each killed after having read ahead: every rank's batches put together are the one
stream, in which each of three epochs holds every sample once (prime counts of samples and shards); a real
run goes from 2 ranks to 1 and back. Seed 0.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import codes, count, fork_ranks, report, workplace
from kills import DATA, WORDS
from torch.utils.data import DataLoader, Dataset

from lmsd import checkpoints, cli
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


def costs() -> tuple[int, list[str], dict[str, object]]:
    """A position among 1e8 samples in 1e4 shards under 50 ms; the first batch after a resume under 2 s."""
    from lmsd.data.builders import build
    from lmsd.data.shardset import ShardSet
    from lmsd.engine.datamodule import ShardDataModule

    began = time.perf_counter()
    Order(np.full(10_000, 10_000), seed=1)(np.arange(90_000_000, 90_000_064))
    lookup = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "digits"
        build("digits", folder)
        began = time.perf_counter()
        module = ShardDataModule(ShardSet(folder, image_size=8, channels=1), batch_size=64)
        module.load_state_dict(module.state_dict() | {"position": 64_000})
        next(iter(module.train_dataloader()))
        first = time.perf_counter() - began
    figures = {"lookup_ms": round(1e3 * lookup, 1), "first_batch_s": round(first, 2)}
    print(figures)
    limits = (("a lookup", lookup, 0.05), ("the first batch", first, 2.0))
    return 2, [f"{what} took {seconds:.3g} s" for what, seconds, limit in limits if seconds > limit], figures


def resized() -> tuple[int, list[str], dict[str, object]]:
    """A real run on 2 ranks, then 1, then 2 again, against one process that was never stopped."""
    assert cli.run(DATA) == 0
    words = [*WORDS, "images=1280", "evaluate.n=0", "checkpoint_every=1280"]
    failures, seen = [], []
    for folder, ranks, until in (
        ("alone", 1, 0),
        ("resized", 2, 384),
        ("resized", 1, 768),
        ("resized", 2, 0),
    ):
        options = [f"run_dir={folder}", "resume=auto", f"devices={ranks}"]
        os.environ["LMSD_RUN_DIR"] = folder  # as a launcher tells all of its ranks
        children = fork_ranks(lambda own, o=options, u=until: part(own, [*words, *o], u), ranks, Path())  # type: ignore[misc]
        found = codes(children, seconds=600)
        if found != [143 if until else 0] * ranks:
            failures.append(f"{folder} on {ranks} ranks: exit codes {found}")
        files = [Path(f"positions{own}") for own in range(ranks)]
        seen.append(sorted(int(n) for file in files for n in file.read_text().split()))
        for file in files:
            file.unlink()
    if seen[0] != list(range(1280)) or [n for part in seen[1:] for n in part] != seen[0]:
        failures.append("positions were lost, repeated or reordered")
    alone, other = (checkpoints.read(Path(name))["state_dict"] for name in ("alone", "resized"))
    own = {name: value for name, value in checkpoints.tensors(alone) if value.is_floating_point()}
    apart = sum(float((other[name] - value).square().sum()) for name, value in own.items()) ** 0.5
    apart /= sum(float(value.square().sum()) for value in own.values()) ** 0.5
    if apart > 1e-3:  # rounding, which Adam magnifies where gradients are nearly zero
        failures.append(f"weights are {apart:.1g} apart")
    segments = [len(part) for part in seen[1:]]
    return 1280, failures, {"segments": segments, "relative_distance_of_weights": float(f"{apart:.2g}")}


def part(own: int, words: list[str], until: int) -> None:
    """One rank that notes its positions, and asks for an end after so many images."""
    from lmsd.engine.module import Engine

    pieces, advance, seen = Engine._pieces, Engine._advance, []

    def taken(self: Engine, batch: Any) -> Any:
        seen.extend(batch.position.tolist())
        return pieces(self, batch)

    def advanced(self: Engine, played: set[str]) -> None:
        advance(self, played)
        self.run.asked.code = 143 if until and self.clock.images >= until else 0
        Path(f"positions{own}").write_text(" ".join(map(str, seen)))

    Engine._pieces, Engine._advance = taken, advanced  # type: ignore[method-assign]
    raise SystemExit(cli.run(["train", *words]))


if __name__ == "__main__":
    wanted = count(1000)
    report("kill-and-resize segments, lost or repeated or reordered", *elastic(wanted))
    report("epochs, not each sample once", *epochs())
    report("costs of a resume, too high", *costs())
    with workplace():
        report("samples of a run on 2, 1 and 2 ranks, not as in one process", *resized())
