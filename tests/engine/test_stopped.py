"""A run that a callback of the user's ends is scored and saved, and says so: nothing of it is lost."""

from pathlib import Path
from typing import Any

import pytest
from harness import codes, fork_ranks
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as theirs
from tiny_run import Stream, engine, run

from lmsd import checkpoints
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.module import Engine
from lmsd.errors import UserError


class Enough(Callback):
    """Ends a run after so many images, as anybody's callback may; on one rank alone where `rank` is given."""

    def __init__(self, images: int, rank: int = 0) -> None:
        self.images, self.rank = images, rank

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Engine)
        if pl_module.clock.images >= self.images and trainer.global_rank == self.rank:
            trainer.should_stop = True


def worse(subject: Engine) -> dict[str, float]:
    """A score that rises from evaluation to evaluation, as lmsd-cnn's would be called."""
    return {"val/fd[lmsd-cnn@ab12]": 1.0 + subject.clock.images}


def test_it_is_scored_and_saved_where_it_ended(tmp_path: Path) -> None:
    subject, scored = engine(batches=10), []
    evaluate = Evaluate(lambda e: scored.append(e.clock.images) or {}, every_images=64, at_start=False)
    run(subject, tmp_path, callbacks=[Enough(24), evaluate, Checkpoint(every_images=80)])
    assert (subject.clock.images, scored) == (24, [24])
    assert [m["images"] for m in checkpoints.manifests(tmp_path / "checkpoints").values()] == [24]


@pytest.mark.slow
def test_what_one_rank_wants_all_hear_of(tmp_path: Path) -> None:
    def rank(own: int) -> None:
        subject = engine(batches=40)
        callbacks = [Enough(24, rank=1), Checkpoint(every_images=320)]
        run(subject, tmp_path, callbacks=callbacks, datamodule=Stream(8), devices=2)
        assert 24 < subject.clock.images <= 48

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=120) == [0, 0]
    (found,) = checkpoints.manifests(tmp_path / "checkpoints").values()
    assert 24 < found["images"] <= 48


@pytest.mark.slow
def test_early_stopping_on_two_ranks_scores_and_saves_once(tmp_path: Path) -> None:
    """It ends the run in the very evaluation that decided it, not a batch later with another one."""

    def rank(own: int) -> None:
        subject, scored = engine(batches=40), []
        early = theirs.EarlyStopping("val/fd", patience=2)
        evaluate = Evaluate(
            lambda e: scored.append(e.clock.images) or worse(e), every_images=32, at_start=False
        )
        callbacks = [early, evaluate, Checkpoint(every_images=320)]
        run(subject, tmp_path, callbacks=callbacks, datamodule=Stream(8), devices=2)
        assert (subject.clock.images, scored) == (96, [32, 64, 96])

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=120) == [0, 0]
    (found,) = checkpoints.manifests(tmp_path / "checkpoints").values()
    assert found["images"] == 96


@pytest.mark.slow
def test_what_one_rank_wants_in_an_evaluation_all_hear_of_there(tmp_path: Path) -> None:
    class Wishes(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.should_stop |= trainer.global_rank == 1

    def rank(own: int) -> None:
        subject, scored = engine(batches=40), []
        evaluate = Evaluate(lambda e: scored.append(e.clock.images) or {}, every_images=32, at_start=False)
        callbacks = [Wishes(), evaluate, Checkpoint(every_images=320)]
        run(subject, tmp_path, callbacks=callbacks, datamodule=Stream(8), devices=2)
        assert (subject.clock.images, scored) == (32, [32])

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=120) == [0, 0]


def test_lightnings_early_stopping_knows_our_scores(tmp_path: Path) -> None:
    """val/fd rises: the second of two evaluations without a lower one ends it (patience=1)."""
    subject = engine(batches=20)
    early = theirs.EarlyStopping("val/fd", patience=2)
    run(subject, tmp_path, callbacks=[early, Evaluate(worse, every_images=16), Checkpoint(every_images=160)])
    assert subject.clock.images == 48
    assert (float(early.best_score), early.wait_count) == (17.0, 2)
    assert [m["images"] for m in checkpoints.manifests(tmp_path / "checkpoints").values()] == [48]


def test_lightnings_timer_ends_it_after_the_first_batch(tmp_path: Path) -> None:
    subject = engine(batches=200)
    run(subject, tmp_path, callbacks=[theirs.Timer({"milliseconds": 1}), Checkpoint()])
    assert subject.clock.images == 8
    assert len(checkpoints.manifests(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (theirs.EarlyStopping("val_loss"), "monitor=val_loss is not measured; take val/fd, val/kid"),
        (theirs.ModelCheckpoint(), "ModelCheckpoint cannot be used here; runs save themselves"),
        (theirs.GradientAccumulationScheduler({0: 2}), "accumulated by micro_batches=2"),
        (theirs.TQDMProgressBar(), "the bar is callbacks.progress"),
        (theirs.StochasticWeightAveraging(1e-3), "averaged by optim.ema="),
        (theirs.LearningRateMonitor(), "rates are logged by images: generator/lr"),
        (theirs.DeviceStatsMonitor(), "it logs by batches, and all else by images"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_work_is_refused_with_what_there_is(
    tmp_path: Path, callback: Callback, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run(engine(batches=2), tmp_path, callbacks=[callback])
