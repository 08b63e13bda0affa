"""What a checkpoint behind the training's back costs it: the time of one copy of the state, and its memory.

    python benchmarks/reliability/stall.py --n 30

A digits run with wide nets, both players (some 100 MB). After each batch, interleaved: seconds in which a
save holds training up, no other being at work, and seconds of a plain copy of the same tensors into memory
that is there already. The median of the first must be at most 1.25 times that of the second plus 20 ms, at
any size (state dicts are gathered; the thread takes the interpreter's lock), and the buffer no larger than
the file. Seed 0.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import count, report, workplace
from kills import DATA, WORDS
from lightning.pytorch import Callback, Trainer

from lmsd import cli
from lmsd.checkpoints import checkpoint_name
from lmsd.engine.callbacks import Checkpoint, engine_of, writer

WIDE = ["net.width=1024", "discriminator.trunk.width=512", "images=10_000_000", "evaluate.n=0"]
ALLOWED, SECONDS = 1.25, 0.020
Place = tuple[int, torch.Size]


def tensors(state: Any, found: dict[Place, torch.Tensor]) -> dict[Place, torch.Tensor]:
    """The tensors of a nested state by their place in memory and shape."""
    if isinstance(state, torch.Tensor):
        found[state.data_ptr(), state.shape] = state
    for item in state.values() if isinstance(state, dict) else state if isinstance(state, list) else ():
        tensors(item, found)
    return found


class Timing(Callback):
    """Saves and copies after each batch, `n` times, and ends the run."""

    def __init__(self, n: int) -> None:
        self.n, self.saves, self.copies = n + 1, list[float](), list[float]()
        self.held = self.written = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        path = Checkpoint.folder(trainer) / checkpoint_name(engine_of(pl_module).clock.images)
        writer(trainer).wait()
        began = time.perf_counter()
        trainer.save_checkpoint(path, weights_only=False)
        self.saves.append(time.perf_counter() - began)
        writer(trainer).wait()
        state = tensors(trainer._checkpoint_connector.dump_checkpoint(weights_only=False), {})
        buffers = {place: value.clone() for place, value in state.items()}
        began = time.perf_counter()
        for place, value in state.items():
            buffers[place].copy_(value)
        self.copies.append(time.perf_counter() - began)
        self.held, self.written = writer(trainer)._snapshot.bytes, path.stat().st_size
        if len(self.saves) == self.n:
            engine_of(pl_module).run.asked.stop = trainer.should_stop = True


def trial(n: int) -> tuple[int, list[str], dict[str, object]]:
    """So many saves after a first one, which allocates the buffer."""
    from lmsd.cli.build import callbacks

    assert cli.run(DATA) == 0
    timing, made = Timing(n), callbacks.standing
    callbacks.standing = lambda *arguments: [timing, *made(*arguments)]
    cli.run(["train", *WORDS, *WIDE, f"run_dir={Path('stall')}"])
    stall, copy = median(timing.saves[1:]), median(timing.copies[1:])
    failures = []
    if stall > ALLOWED * copy + SECONDS:
        failures.append(f"training stalls for {stall:.4f} s, a copy takes {copy:.4f} s")
    if timing.held > timing.written:
        failures.append(f"the buffer holds {timing.held} bytes, the file {timing.written}")
    figures = {"stall_seconds": round(stall, 4), "copy_seconds": round(copy, 4)}
    sizes = {"buffer_mb": round(timing.held / 1e6, 1), "file_mb": round(timing.written / 1e6, 1)}
    return n, failures, {**figures, "stall/copy": round(stall / copy, 2), **sizes}


if __name__ == "__main__":
    wanted = count(30)
    with workplace():
        report("saves that hold training up", *trial(wanted))
