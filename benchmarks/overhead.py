"""What the engine costs over a plain PyTorch loop of the same mathematics.

    python benchmarks/overhead.py [--steps 120] [--width 224]

Both train a generator and a discriminator by the same objective, from the same weights, on the same batches,
with clipping, fused AdamW and an EMA. The plain loop is a few lines and logs nothing; the engine runs on
Lightning with its default callbacks and logs at least six metrics. They take turns, one step each, in one
process and one thread: the loop's step runs while the engine waits for its next batch. At the end the weights
of both must be equal, bit for bit.
Prints the medians, n and the ratio; exits with 1 where the ratio is above 1.03 or a step is below 30 ms.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lmsd.engine.hardware import Hardware
from lmsd.engine.module import Engine
from lmsd.engine.optim import Optimization, adamw
from lmsd.engine.trainer import fit
from lmsd.models.backbones import MLPBackbone
from lmsd.models.conditioner import LabelConditioner
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.nets.critics import MLPCritic
from lmsd.objectives import Adversarial
from lmsd.process.gaussian import Process
from lmsd.process.schedules import Article
from lmsd.process.times import Jumps
from lmsd.rng import Rng
from lmsd.types import Batch, Clock, Sizes

LIMIT, SHORTEST = 1.03, 0.030
BATCH, HALF_LIFE, CLIP, SEED, WARM = 64, 5_000, 1.0, 0, 10


def build(width: int) -> dict[str, nn.Module]:
    torch.manual_seed(SEED)
    process = Process(Article(4))
    net = MLPBackbone(Sizes(1, 8, pooled_dim=32, z_dim=16), width=width, depth=4)
    generator = Generator(net, process, prediction="x0", conditioner=LabelConditioner(10, 32), z_dim=16)
    trunk = MLPCritic((2, 8, 8), width, depth=3, cond_dim=32)
    critic = Discriminator(trunk, process=process, cond_dim=32, features=width)
    return {"discriminator": critic, "generator": generator}


class PlainLoop:
    """One GAN step as one writes it."""

    def __init__(self, width: int, total: int) -> None:
        self.players = build(width)
        self.objective = Adversarial(Jumps(4))
        self.optimizers = {name: adamw(player.parameters()) for name, player in self.players.items()}
        self.average = copy.deepcopy(self.players["generator"])
        self.clock = Clock(total, "generator")

    def step(self, batch: Batch) -> None:
        turns = self.objective.turns(self.players, batch, self.clock, Rng(SEED, batch.position))
        while True:
            with torch.no_grad():
                turn = next(turns, None)
            if turn is None:
                break
            for name, player in self.players.items():
                player.requires_grad_(name == turn.player)
            turn.loss().value.backward()
            nn.utils.clip_grad_norm_(self.players[turn.player].parameters(), CLIP)
            self.optimizers[turn.player].step()
            self.optimizers[turn.player].zero_grad()
        self.clock.images += len(batch)
        self.clock.count("generator")
        beta = 0.5 ** (BATCH / min(HALF_LIFE, 0.05 * self.clock.images))
        with torch.no_grad():
            weights = list(self.players["generator"].parameters())
            torch._foreach_lerp_(list(self.average.parameters()), weights, 1.0 - beta)


class Alternating(IterableDataset[Batch]):
    """Batches; while the engine waits for one, the loop takes its step."""

    def __init__(self, loop: PlainLoop) -> None:
        self.loop = loop
        self.plain: list[tuple[float, float]] = []
        self.engine: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return 1 << 40  # endless, and known to be: nothing is fetched ahead

    def __iter__(self) -> Iterator[Batch]:
        position = 0
        while True:
            rng = Rng(1, torch.arange(position, position + BATCH))
            label = rng.integer(0, 10, (), "label")
            batch = Batch(x=rng.uniform((1, 8, 8), "x") * 2 - 1, position=rng.position, label=label)
            before = now()
            self.loop.step(batch)
            between = now()
            yield batch
            self.plain.append(passed(before, between))
            self.engine.append(passed(between, now()))
            position += BATCH


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def passed(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    return end[0] - start[0], end[1] - start[1]


class Data(LightningDataModule):
    def __init__(self, stream: Alternating) -> None:
        super().__init__()
        self.stream = stream

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.stream, batch_size=None)

    def advance(self, images: int) -> None:
        """The position does not matter here."""


def measure(width: int, steps: int) -> tuple[Alternating, Engine, int]:
    total = (steps + WARM) * BATCH
    loop = PlainLoop(width, total)
    stream = Alternating(loop)
    engine = Engine(
        build(width),
        Adversarial(Jumps(4)),
        Optimization(
            {"generator": adamw, "discriminator": adamw},
            clips={"generator": CLIP, "discriminator": CLIP},
            averages={"generator": (HALF_LIFE,)},
        ),
        total_images=total,
        batch_size=BATCH,
        seed=SEED,
    )
    with tempfile.TemporaryDirectory() as folder:
        fit(engine, Data(stream), run_dir=Path(folder), hardware=Hardware(accelerator="cpu"))
    return stream, engine, len(engine.run.line)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--width", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stream, engine, metrics = measure(options.width, options.steps)
    plain, ours = stream.plain[WARM:], stream.engine[WARM:]
    ratio = {}
    for column, kind in enumerate(("wall", "CPU")):
        a, b = ([row[column] for row in rows] for rows in (plain, ours))
        ratio[kind] = statistics.median(y / x for x, y in zip(a, b, strict=True))
        medians = f"loop {1e3 * statistics.median(a):.2f} ms, engine {1e3 * statistics.median(b):.2f} ms"
        print(f"{kind:>4}: {medians}, median ratio {ratio[kind]:.4f}, n = {len(a)}")
    print(f"metrics logged: {metrics}")
    same = all(
        torch.equal(a, b)
        for name, player in stream.loop.players.items()
        for a, b in zip(player.parameters(), engine.roles[name].parameters(), strict=True)
    )
    print(f"weights equal after {len(stream.plain)} steps: {same}")
    shortest = statistics.median(row[0] for row in plain)
    good = same and metrics >= 6 and shortest >= SHORTEST and ratio["wall"] <= LIMIT
    print("pass" if good else f"FAIL (wanted: equal weights, steps of 30 ms, ratio <= {LIMIT})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
