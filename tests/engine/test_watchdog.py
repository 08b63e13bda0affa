"""A rank that hangs ends the job and is named."""

import time
from pathlib import Path

import pytest
from harness import codes, fork, fork_ranks
from lightning.pytorch import Callback
from tiny_run import engine, run

from lmsd.engine.callbacks import Evaluate
from lmsd.engine.watchdog import HUNG, Watchdog


class Hanging(Callback):
    """Never ends the batch that begins at 24 images, on one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        if pl_module.clock.images == 24 and pl_module.global_rank == self.rank:
            time.sleep(1_000)


@pytest.mark.parametrize("hanging", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_the_rank_that_hangs_is_named_with_its_stacks(tmp_path: Path, hanging: int) -> None:
    def rank(own: int) -> None:
        callbacks = [Hanging(hanging), Watchdog(seconds=6)]
        run(engine("denoising", batches=400), tmp_path / "run", devices=2, callbacks=callbacks)

    found = codes(fork_ranks(rank, 2, tmp_path), seconds=200)
    assert found[hanging] == HUNG
    assert found[1 - hanging] in (HUNG, 1)  # 1: the other one ended a moment earlier
    told = (tmp_path / f"rank{hanging}.log").read_text()
    assert f"no batch has ended for 6 s, after 24 images; rank {hanging} hangs (" in told
    assert f"raise hang_seconds=6). Stacks of rank {hanging}:" in told
    assert "in on_train_batch_start" in told


@pytest.mark.slow
@pytest.mark.parametrize(("at_start", "images"), [(True, 0), (False, 16)])
def test_an_evaluation_that_hangs_is_ended(tmp_path: Path, at_start: bool, images: int) -> None:
    def stuck(_: object) -> dict[str, float]:
        time.sleep(1_000)
        return {}

    def training() -> None:
        callbacks = [Evaluate(stuck, every_images=16, at_start=at_start), Watchdog(seconds=1)]
        run(engine("denoising", batches=2), tmp_path, callbacks=callbacks)

    assert codes([fork(training, tmp_path / "log")], seconds=100) == [HUNG]
    told = (tmp_path / "log").read_text()
    assert f"no evaluation has ended for 10 s, after {images} images" in told
    assert "hang_seconds=1)" in told
    assert "in stuck" in told


@pytest.mark.slow
def test_a_long_evaluation_is_no_hang(tmp_path: Path) -> None:
    def slow(_: object) -> dict[str, float]:
        time.sleep(9)
        return {"val/fd": 1.0}

    def training() -> None:
        callbacks = [Evaluate(slow, every_images=16, at_start=False), Watchdog(seconds=4)]
        run(engine("denoising", batches=2), tmp_path, callbacks=callbacks)

    assert codes([fork(training, tmp_path / "log")], seconds=100) == [0]
