"""Signals: the run ends after the batch at hand, saved, on all ranks at the same batch, and can go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import codes, fork_ranks
from lightning.pytorch import Callback
from test_checkpoint import OPTIONS, assert_same_run
from tiny_run import engine, run

from lmsd import checkpoints, stops
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.logging import append, read_metrics
from lmsd.ranks import by_chunks
from lmsd.stops import CODES, preparing


class SendAt(Callback):
    """Sends this process a signal in the batch that begins at so many images (and is the so-manieth)."""

    def __init__(self, number: int, images: int = 16, *, rank: int = 0, batch: int | None = None) -> None:
        self.number, self.images, self.rank, self.batch = number, images, rank, batch

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        here = pl_module.clock.images == self.images and pl_module.global_rank == self.rank
        if here and self.batch in (None, batch_idx):
            os.kill(os.getpid(), self.number)


class SendIn(Callback):
    """Sends one rank a signal in Lightning's set-up, before it would listen."""

    def __init__(self, number: int, *, rank: int = 0) -> None:
        self.number, self.rank = number, rank

    def setup(self, trainer: object, pl_module: object, stage: str) -> None:
        if pl_module.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def scored(seen: list[int] | None = None, number: int = 0, images: int = -1) -> Evaluate:
    """An evaluation every 16 images; the one at `images` sends a signal and is long."""

    def score(subject: object) -> dict[str, float]:
        if seen is not None:
            seen.append(subject.clock.images)
        if subject.clock.images == images:
            os.kill(os.getpid(), number)
            time.sleep(30)
        return {"val/fd": 100.0 - subject.clock.images}

    return Evaluate(score, every_images=16)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(engine(**OPTIONS), folder, callbacks=[scored()])
    return folder


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_saves_and_the_run_goes_on_as_if_there_had_been_none(
    tmp_path: Path, unbroken: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    handlers = [signal.getsignal(each) for each in CODES]
    callbacks = [SendAt(number), scored(), Checkpoint(every_images=1_000)]
    with pytest.raises(SystemExit) as stopped:
        run(engine(**OPTIONS), tmp_path, callbacks=callbacks, asynchronous=True)
    assert stopped.value.code == CODES[number]
    saved = tmp_path / "checkpoints" / "step_000000024.ckpt"
    assert f"Saved {saved}" in capfd.readouterr().err
    assert checkpoints.intact(saved)
    assert [signal.getsignal(each) for each in CODES] == handlers
    run(engine(**OPTIONS), tmp_path, resume_from=tmp_path, callbacks=[scored()])
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("images", [0, 32, 48])
def test_an_evaluation_is_broken_off_and_made_up_for(tmp_path: Path, unbroken: Path, images: int) -> None:
    began = time.monotonic()
    saving = Checkpoint(every_images=16, keep_last=9, monitor="val/fd")
    with pytest.raises(SystemExit) as stopped:
        run(engine(**OPTIONS), tmp_path, callbacks=[scored(None, signal.SIGTERM, images), saving])
    assert stopped.value.code == 143
    assert time.monotonic() - began < 25
    known = checkpoints.manifests(tmp_path / "checkpoints")
    assert [m["images"] for m in known.values()] == list(range(16, images + 1, 16))
    again: list[int] = []
    resume = tmp_path if images else None
    run(engine(**OPTIONS), tmp_path, resume_from=resume, callbacks=[scored(again), saving])
    assert again == list(range(images, 49, 16))
    assert_same_run(tmp_path, unbroken)
    scores = {m["images"]: m["metrics"] for m in checkpoints.manifests(tmp_path / "checkpoints").values()}
    assert scores == {n: {"val/fd": 100.0 - n} for n in (16, 32, 48)}


def test_a_run_that_is_stopped_where_a_score_is_due_is_saved_first(tmp_path: Path, unbroken: Path) -> None:
    """Also where the run that made up for the score was killed before it had saved it."""
    seen: list[int] = []
    with pytest.raises(SystemExit):
        run(engine(**OPTIONS), tmp_path, callbacks=[SendAt(signal.SIGTERM, 24), scored(seen)])
    assert 32 not in seen
    assert checkpoints.read(tmp_path)[checkpoints.KEY]["clock"]["images"] == 32
    append(tmp_path / "metrics.jsonl", b'{"images": 32, "time": 0, "val/fd": 68.0}\n')
    run(engine(**OPTIONS), tmp_path, resume_from=tmp_path, callbacks=[scored(seen)])
    assert seen.count(32) == 1
    assert_same_run(tmp_path, unbroken)


def test_a_signal_in_the_last_batch_of_two_ranks_costs_no_score(tmp_path: Path) -> None:
    """Ranks that are asked to end do not begin the last evaluation; the run is not done before it has one."""
    folder = tmp_path / "run"

    def score(subject: object) -> dict[str, float]:
        return {"val/fd": float(sum(by_chunks(4, 1, lambda part: part.start)))}

    def rank(own: int) -> None:
        told = SendAt(signal.SIGTERM, 40, rank=1)
        run(engine(**OPTIONS), folder, devices=2, callbacks=[told, Evaluate(score, every_images=16)])

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=60) == [143, 143]
    run(engine(**OPTIONS), folder, resume_from=folder, callbacks=[Evaluate(score, every_images=16)])
    scores = [line["images"] for line in read_metrics(folder / "metrics.jsonl") if "val/fd" in line]
    assert scores == [0, 16, 32, 48]


@pytest.mark.parametrize("to", [0, 1])
def test_two_ranks_break_an_evaluation_off_together(tmp_path: Path, unbroken: Path, to: int) -> None:
    """The one that is told, and the other at their next meeting; what takes 50 seconds is over in few."""
    folder = tmp_path / "run"

    def long(subject: object) -> dict[str, float]:
        def chunk(part: slice) -> None:
            if part.start == 4 + to:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

        if subject.clock.images == 32:
            by_chunks(1_000, 1, chunk)
        return {"val/fd": 100.0 - subject.clock.images}

    def rank(own: int) -> None:
        run(engine(**OPTIONS), folder, devices=2, callbacks=[Evaluate(long, every_images=16)])

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=30) == [143, 143]
    assert checkpoints.read(folder)[checkpoints.KEY]["clock"]["images"] == 32
    seen: list[int] = []
    run(engine(**OPTIONS), folder, resume_from=folder, callbacks=[scored(seen)])
    assert seen == [32, 48]
    scores = [line["images"] for line in read_metrics(folder / "metrics.jsonl") if "val/fd" in line]
    assert scores == [0, 16, 32, 48]


def test_the_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """Without waiting for the batch, and without a checkpoint of half of one."""

    class Twice(SendAt):
        def on_train_batch_start(self, *arguments: object) -> None:
            super().on_train_batch_start(*arguments)
            super().on_train_batch_start(*arguments)

    with pytest.raises(SystemExit):
        run(engine(batches=20), tmp_path, callbacks=[Twice(signal.SIGINT), Checkpoint(every_images=1_000)])
    assert checkpoints.manifests(tmp_path / "checkpoints") == {}


def test_a_signal_in_the_last_batch_changes_nothing(tmp_path: Path, unbroken: Path) -> None:
    run(engine(**OPTIONS), tmp_path, callbacks=[SendAt(signal.SIGTERM, 40), scored()])
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_two_ranks_stop_at_the_same_batch(tmp_path: Path, number: signal.Signals, to: int) -> None:
    """The signal goes to one rank alone, both save the same, and one process goes on from it."""

    def rank(own: int) -> None:
        subject = engine("denoising", batches=400, ema=(20,))
        try:
            run(subject, tmp_path / "run", devices=2, callbacks=[SendAt(number, 64, rank=to)])
        finally:
            (tmp_path / f"images{own}").write_text(str(subject.clock.images))

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=120) == [143, 143]
    images = [int((tmp_path / f"images{own}").read_text()) for own in (0, 1)]
    assert images[0] == images[1]
    assert 72 <= images[0] <= 96
    assert checkpoints.read(tmp_path / "run")[checkpoints.KEY]["clock"]["images"] == images[0]
    shutil.rmtree(tmp_path / "run" / "samples", ignore_errors=True)


def test_a_rank_that_dies_ends_the_other(tmp_path: Path) -> None:
    def rank(own: int) -> None:
        run(engine(batches=400), tmp_path / "run", devices=2, callbacks=[SendAt(signal.SIGKILL, 64, rank=1)])

    first, second = codes(fork_ranks(rank, 2, tmp_path), seconds=60)
    assert second == -9
    assert first == 1
    assert "Connection" in (tmp_path / "rank0.log").read_text()


def test_lightnings_own_handling_is_out_of_the_way(tmp_path: Path) -> None:
    """It broadcasts before each batch; should a version call that otherwise, this tells."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    from lmsd.engine.signals import _nothing

    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    found = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: object, *_: object) -> None:
            handlers = [signal.getsignal(number) for number in CODES]
            found.append((trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor, *handlers))

    run(engine(**OPTIONS), tmp_path, callbacks=[Look()])
    loop, *handlers = found[0]
    assert loop is _nothing
    assert {handler.__module__ for handler in handlers} == {"lmsd.stops"}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_in_the_set_up_ends_it_before_the_first_batch(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As one of SLURM's tasks, too, where Lightning would save and queue the job again by itself."""
    names = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
    names |= {"SLURM_LOCALID": "0", "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1"}
    seen: list[int] = []
    with monkeypatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as stopped:
            run(engine(**OPTIONS), tmp_path, callbacks=[SendIn(number), scored(seen)])
    assert stopped.value.code == CODES[number]
    assert seen == []
    assert not list(tmp_path.rglob("*.ckpt"))
    run(engine(**OPTIONS), tmp_path, callbacks=[scored()])
    assert_same_run(tmp_path, unbroken)


def test_two_ranks_agree_on_what_one_was_asked_in_the_set_up(tmp_path: Path) -> None:
    def rank(own: int) -> None:
        run(engine(batches=400), tmp_path / "run", devices=2, callbacks=[SendIn(signal.SIGUSR1, rank=1)])

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=60) == [143, 143]
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_process_that_is_alone_ends_at_once_and_a_rank_at_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    handlers = [signal.getsignal(each) for each in CODES]
    with pytest.raises(SystemExit) as ended, preparing():
        os.kill(os.getpid(), number)
    assert ended.value.code == CODES[number]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with preparing():
        os.kill(os.getpid(), number)
        with pytest.raises(SystemExit) as stopped:
            run(engine(**OPTIONS), tmp_path)
    assert stopped.value.code == CODES[number]
    assert [signal.getsignal(each) for each in CODES] == handlers
    with preparing():  # what was asked of one run is not asked of the next
        run(engine(**OPTIONS), tmp_path)


def test_a_forked_worker_serves_the_batch_at_hand_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C and SLURM's signals reach the whole group."""
    monkeypatch.setattr(stops, "GRACE", 1)
    with preparing():
        child = os.fork()
        if child == 0:
            for number in CODES:
                os.kill(os.getpid(), number)
            time.sleep(0.2)
            (tmp_path / "served").touch()
            time.sleep(60)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGALRM
    assert (tmp_path / "served").exists()


@pytest.mark.parametrize(("tasks", "code"), [("2", 130), ("1", -signal.SIGTERM)])
def test_a_task_that_ends_as_asked_keeps_its_code(tasks: str, code: int) -> None:
    """Once the first task of SLURM's is gone, srun sends SIGTERM to the others, however they are ending."""
    script = """
import atexit, os, signal, sys
from lmsd.stops import preparing
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
with preparing():
    sys.exit(130)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ | {"SLURM_NTASKS": tasks})
    assert ended.returncode == code
