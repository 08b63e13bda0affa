"""A run that diverges goes back to before that, past the data that were there, no further than allowed."""

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from harness import codes, fork_ranks
from lightning.pytorch import Callback
from test_checkpoint import assert_same_run
from test_signals import SendAt
from tiny_run import Stream, engine, run

from lmsd import checkpoints
from lmsd.data.reader import DamagedSample
from lmsd.engine import checkpoint as disk
from lmsd.engine.callbacks import Checkpoint
from lmsd.engine.divergence import Guard
from lmsd.engine.logging import read_metrics
from lmsd.engine.module import Engine
from lmsd.engine.optim import adamw
from lmsd.errors import UserError
from lmsd.objectives import Adversarial, warm_start
from lmsd.process.times import Jumps
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Players, Turn


class Poisoned(Adversarial):
    """The generator's loss is NaN where a position of `where` is in the batch."""

    def __init__(self, where: range) -> None:
        super().__init__(Jumps(4))
        self.where, self.seen = where, []

    def turns(self, players: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
        self.seen += batch.position.tolist()
        poisoned = any(int(position) in self.where for position in batch.position)
        for turn in super().turns(players, batch, clock, rng):  # type: ignore[arg-type]

            def loss(turn: Turn = turn) -> Loss:
                found = turn.loss()
                bad = poisoned and turn.player == "generator"
                return Loss(found.value * float("nan"), found.logs) if bad else found

            yield Turn(turn.player, loss)


def guarded(*more: Callback, **options: object) -> list[Callback]:
    return [Guard(skipped=3, **options), Checkpoint(every_images=8, keep_last=99), *more]


def poisoned_run(folder: Path, *more: Callback, where: range = range(24, 64), **options: object) -> Engine:
    subject = engine(objective=Poisoned(where), batches=10, ema=(20,))
    run(subject, folder, callbacks=guarded(*more), **options)
    return subject


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Engine]:
    folder = tmp_path_factory.mktemp("rolled")
    return folder, poisoned_run(folder)


def test_it_goes_back_once_and_on_with_later_data(rolled_back: tuple[Path, Engine]) -> None:
    """Three NaN batches (24..47), back to 24 images; the other two are skipped; ten count."""
    folder, subject = rolled_back
    assert subject.objective.seen == list(range(104))  # each position once, in order
    assert (subject.clock.images, subject.clock.updates, subject.run.rollbacks) == (80, 10, 1)
    assert disk.first_not_finite(subject.state_dict()) is None
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["images"] for line in lines] == [8, 16, 24, 24, 32, 40, 48, 56, 64, 72, 80]
    assert lines[3]["rollbacks"] == 1.0
    assert [line.get("generator/skipped") for line in lines[4:7]] == [1.0, 1.0, 0.0]
    names = {path.name for path in (folder / "checkpoints").glob("*.bad")}
    assert names == {f"step_{n:09d}.{kind}.bad" for n in (32, 40) for kind in ("ckpt", "json")}
    for path in checkpoints.manifests(folder / "checkpoints"):
        assert disk.first_not_finite(checkpoints.read(path)) is None


def test_a_run_that_went_back_resumes_as_any_other(tmp_path: Path, rolled_back: tuple[Path, Engine]) -> None:
    """Stopped right after the rollback, when the stream is already past the bad data."""
    with pytest.raises(SystemExit):
        poisoned_run(tmp_path, SendAt(15, 24, batch=6))
    assert checkpoints.read(tmp_path)["Stream"]["position"] == 56
    assert checkpoints.read(tmp_path)[checkpoints.KEY]["rollbacks"] == 1
    poisoned_run(tmp_path, resume_from=tmp_path)
    assert_same_run(tmp_path, rolled_back[0])


def test_it_stops_when_going_back_does_not_help(tmp_path: Path) -> None:
    """The checkpoints stay, so that the run can go on with other options."""
    subject = engine(objective=Poisoned(range(24, 10_000)), batches=10)
    with pytest.raises(UserError, match=r"diverged again at 48 images .* after 2 rollbacks: lower the learn"):
        run(subject, tmp_path, callbacks=guarded(at_most=2))
    assert max(subject.objective.seen) + 1 == 24 + 3 * 24
    assert checkpoints.read(tmp_path)[checkpoints.KEY]["clock"]["images"] == 40


def test_there_is_no_way_back_before_the_first_checkpoint(tmp_path: Path) -> None:
    """The checkpoints from after it began stay."""
    subject = engine(objective=Poisoned(range(10_000)), batches=10)
    with pytest.raises(UserError, match=r"at 24 images .*no checkpoint is from before that: lower the learn"):
        run(subject, tmp_path, callbacks=guarded())
    assert checkpoints.read(tmp_path)[checkpoints.KEY]["clock"]["images"] == 16


class Spoiled(Callback):
    """Breaks a weight in the last batch, where only the guard's own look can find it."""

    def on_train_batch_start(self, trainer: object, pl_module: Engine, batch: Batch, batch_idx: int) -> None:
        if int(batch.position[0]) == 40:
            with torch.no_grad():
                next(pl_module.players["discriminator"].parameters()).view(-1)[0] = torch.nan


def test_a_run_does_not_end_on_broken_weights(tmp_path: Path) -> None:
    subject = engine(batches=6)
    run(subject, tmp_path, callbacks=guarded(Spoiled()))
    assert (subject.clock.images, subject.run.rollbacks) == (48, 1)
    assert disk.first_not_finite(checkpoints.read(tmp_path)) is None
    assert checkpoints.read(tmp_path)["Stream"]["position"] == 56


class Sure(Adversarial):
    """The discriminator is right on everything from position `first` to 63, or to another."""

    def __init__(self, first: int = 24, last: int = 63) -> None:
        super().__init__(Jumps(4))
        self.first, self.until = first, last

    def turns(self, players: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
        sure = self.first <= int(batch.position[0]) <= self.until
        for turn in super().turns(players, batch, clock, rng):  # type: ignore[arg-type]

            def loss(turn: Turn = turn) -> Loss:
                found = turn.loss()
                return Loss(found.value, {**found.logs, "d_accuracy": torch.tensor(1.0 if sure else 0.5)})

            yield Turn(turn.player, loss)


def test_a_collapsed_discriminator_is_taken_back_to_before_that(tmp_path: Path) -> None:
    subject = engine(objective=Sure(), batches=10)
    run(subject, tmp_path, callbacks=guarded(collapsed=4))
    assert subject.run.rollbacks == 1  # at 56 images, to 24, on with position 56
    assert checkpoints.read(tmp_path)["Stream"]["position"] == 80 + 32
    again = engine(objective=Sure(), batches=10)
    run(again, tmp_path / "allowed", callbacks=guarded(collapsed=0))
    assert again.run.rollbacks == 0


def test_a_collapse_without_a_way_back_leaves_the_checkpoints_and_names_the_switch(tmp_path: Path) -> None:
    subject = engine(objective=Sure(0, 10_000), batches=10)
    with pytest.raises(UserError, match=r"at 32 images .*no checkpoint .*set rollback.collapsed=0 to allow"):
        run(subject, tmp_path, callbacks=guarded(collapsed=4))
    again = engine(objective=Sure(0, 10_000), batches=10)
    run(again, tmp_path, callbacks=guarded(collapsed=0), resume_from=tmp_path)
    assert (again.clock.images, again.run.rollbacks) == (80, 0)


def test_a_run_that_is_resumed_in_a_collapse_goes_back_where_the_unbroken_one_does(tmp_path: Path) -> None:
    """Stopped after two of four readings, by a signal in the batch that begins at 32 images."""
    run(engine(objective=Sure(), batches=10), tmp_path / "whole", callbacks=guarded(collapsed=4))
    stopped = guarded(SendAt(signal.SIGTERM, 32), collapsed=4)
    with pytest.raises(SystemExit):
        run(engine(objective=Sure(), batches=10), tmp_path / "run", callbacks=stopped)
    again = engine(objective=Sure(), batches=10)
    run(again, tmp_path / "run", callbacks=guarded(collapsed=4), resume_from=tmp_path / "run")
    assert again.run.rollbacks == 1
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_discriminator_that_plays_alone_may_be_right_on_everything(tmp_path: Path) -> None:
    """In a head start of eight batches; only the two after it count."""
    subject = engine(objective=warm_start(Sure(0, 10_000), head_start=0.8), batches=10)
    run(subject, tmp_path, callbacks=guarded(collapsed=3))
    assert (subject.clock.updates, subject.run.rollbacks) == (2, 0)


def test_ranks_go_back_alike(tmp_path: Path) -> None:
    """NaN on the second rank alone: both end with the same weights, having seen everything once."""

    def rank(own: int) -> None:
        subject = engine(objective=Poisoned(range(28, 64, 8)), batches=10)
        run(subject, tmp_path / "run", devices=2, callbacks=guarded())
        torch.save(
            [subject.state_dict(), subject.objective.seen, subject.run.rollbacks], tmp_path / f"{own}.pt"
        )

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=240) == [0, 0]
    first, second = (torch.load(tmp_path / f"{own}.pt", weights_only=False) for own in (0, 1))
    assert sorted(first[1] + second[1]) == list(range(104))
    assert first[2] == second[2] == 1
    assert all(
        torch.equal(value, second[0][name]) for name, value in first[0].items() if name[-5:] != "state"
    )
    assert disk.first_not_finite(first[0]) is None


class Damaged(Stream):
    """One sample of every `every` batches was substituted; each is another one, or the same over and over."""

    def __init__(self, every: int, *, same: bool = False) -> None:
        super().__init__(8)
        self.every, self.same = every, same

    def train_dataloader(self) -> object:
        for k, batch in enumerate(super().train_dataloader()):
            flags = torch.zeros(8, dtype=torch.int64)
            if k % self.every == 0:
                flags[3] = 1 if self.same else 1 + k
            yield Batch(batch.x, batch.position, batch.text, batch.label, {"substituted": flags})


def test_damaged_samples_are_counted_and_too_many_stop_the_run(tmp_path: Path) -> None:
    subject = engine("denoising", batches=10, log_every=16)
    run(subject, tmp_path, datamodule=Damaged(5), callbacks=[Guard(max_bad=0.1)])
    assert subject.run.damaged == {1, 6}
    shares = [line["data/substituted"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert shares == pytest.approx([1 / 16, 0, 1 / 16, 0, 0])
    with pytest.raises(UserError, match=r"1 of 16 samples were damaged, more than rollback.max_bad=0.05"):
        run(
            engine("denoising", batches=10, log_every=16),
            tmp_path / "many",
            datamodule=Damaged(5),
            callbacks=[Guard(max_bad=0.05)],
        )
    saved = tmp_path / "many" / "checkpoints" / "step_000000016.ckpt"
    assert checkpoints.read(saved)[checkpoints.KEY]["damaged"] == [1]  # who ends itself saves first


class Broken(Stream):
    """A sample that cannot be read and has no substitute, after three batches."""

    def train_dataloader(self) -> object:
        for k, batch in enumerate(super().train_dataloader()):
            if k == 3:
                raise DamagedSample("its bytes have changed")
            yield batch


def test_what_was_trained_before_a_damaged_sample_is_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its bytes have changed"):
        run(engine("denoising", batches=10, log_every=16), tmp_path, datamodule=Broken(8))
    saved = list(checkpoints.manifests(tmp_path / "checkpoints").values())
    assert [one["images"] for one in saved] == [
        8,
        16,
    ]  # the third batch was read, one ahead, and not yet used


@pytest.mark.slow
def test_where_none_may_be_damaged_all_ranks_save_and_end_together(tmp_path: Path) -> None:
    """on_error=stop: the sample came to one rank alone."""

    class Half(Damaged):
        def train_dataloader(self) -> object:
            for batch in super().train_dataloader():
                flags = batch.extra["substituted"][:4] * self.trainer.global_rank
                yield Batch(batch.x, batch.position, batch.text, batch.label, {"substituted": flags})

    def rank(own: int) -> None:
        subject = engine("denoising", batches=10, log_every=16)
        with pytest.raises(UserError, match=r"1 of 1,000 samples were damaged; .*data\.train\.on_error=skip"):
            run(subject, tmp_path, datamodule=Half(5), callbacks=[Guard(samples=1000, stop=True)], devices=2)
        assert subject.clock.images == 16

    assert codes(fork_ranks(rank, 2, tmp_path), seconds=120) == [0, 0]
    saved = checkpoints.manifests(tmp_path / "checkpoints").values()
    assert [one["images"] for one in saved] == [8, 16]


def test_a_damaged_sample_counts_once_however_often_it_comes(tmp_path: Path) -> None:
    subject = engine("denoising", batches=10, log_every=16)
    run(subject, tmp_path / "once", datamodule=Damaged(2, same=True), callbacks=[Guard(max_bad=0.1)])
    assert subject.run.damaged == {1}
    subject = engine("denoising", batches=10, log_every=16)
    run(subject, tmp_path / "set", datamodule=Damaged(2, same=True), callbacks=[Guard(samples=40)])
    assert subject.clock.done  # one of 40 is more than max_bad, and one may always be damaged
    with pytest.raises(UserError, match=r"2 of 40 samples were damaged, more than rollback.max_bad=0.001"):
        run(
            engine("denoising", batches=10, log_every=16),
            tmp_path / "two",
            datamodule=Damaged(2),
            callbacks=[Guard(samples=40)],
        )


class Rewarding(Adversarial):
    """A game that says it raises a reward."""

    @property
    def proxy(self) -> str:
        return "generator/reward"


def test_rewards_without_a_spread_end_no_run(tmp_path: Path) -> None:
    """They move nothing for a while, rightly so: the method tells of it, and has a patience of its own."""
    optimizers = {name: partial(adamw, lr=0.0) for name in ("discriminator", "generator")}
    subject = engine(objective=Rewarding(Jumps(4)), batches=10, optimizers=optimizers)
    run(subject, tmp_path, callbacks=guarded(collapsed=5))
    assert subject.clock.done
    assert not subject.run.notes


@pytest.mark.parametrize("role", ["discriminator", "generator"])
def test_a_player_that_does_not_move_is_named(
    tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rate is 0: told after three readings, and the end after five, since nothing is from before that."""
    rates = {"discriminator": 1e-3, "generator": 1e-3, role: 0.0}
    optimizers = {name: partial(adamw, lr=rate) for name, rate in rates.items()}
    subject = engine(objective=Adversarial(Jumps(4)), batches=10, optimizers=optimizers)
    said = f"the weights of the {role} have not changed for 5 lines of metrics.*optim"
    with pytest.raises(UserError, match=said):
        run(subject, tmp_path, callbacks=guarded(collapsed=5))
    assert subject.run.notes == [
        f"at 32 images: the weights of the {role} have not changed for 3 lines of metrics"
    ]
    assert f"note: {subject.run.notes[0]}" in capsys.readouterr().out


def test_what_is_no_game_is_told_at_both_ends() -> None:
    from lmsd.objectives.base import useless_discriminator

    line = {"generator/grad_norm": 1.0, "discriminator/grad_norm": 1.0, "generator/diversity": 0.2}
    assert useless_discriminator({**line, "discriminator/d_accuracy": 0.5}) is None
    assert "wrong on everything" in str(useless_discriminator({**line, "discriminator/d_accuracy": 0.0}))
    assert "right on everything" in str(useless_discriminator({**line, "discriminator/d_accuracy": 1.0}))
    assert "same of every noise" in str(useless_discriminator({**line, "generator/diversity": 0.0}))
