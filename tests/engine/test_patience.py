"""A run ends once its held-out score no longer improves, and keeps its best checkpoint."""

import math
from pathlib import Path

import pytest
from test_divergence import Poisoned
from tiny_run import engine, run

from lmsd import checkpoints
from lmsd.engine import checkpoint as disk
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.divergence import Guard
from lmsd.engine.hacking import HackingGuard
from lmsd.engine.module import Engine
from lmsd.engine.patience import Patience
from lmsd.errors import UserError


def play(folder: Path, scores: list[float], **options: object) -> Engine:
    """Train, with an evaluation after each batch."""
    subject = engine("denoising", batches=6)
    found = Evaluate(
        lambda player: {"val/fd[x]": scores[player.clock.updates - 1]}, every_images=8, at_start=False
    )
    saving = Checkpoint(every_images=8, keep_last=1, monitor="val/fd[x]")
    run(subject, folder, callbacks=[found, Patience(2), saving], **options)
    return subject


@pytest.mark.parametrize(
    ("scores", "batches", "best"),
    [
        ([5.0, 4.0, 4.5, 4.1, 1.0, 1.0], 4, 2),
        ([5.0, 4.0, 4.5, 3.0, 3.1, 3.0], 6, 4),  # an equal score is no better; and the end is the end
        ([5.0, math.nan, math.nan, 1.0, 1.0, 1.0], 3, 1),
    ],
    ids=["two worse", "better in time", "not finite"],
)
def test_a_run_ends_and_keeps_its_best(tmp_path: Path, scores: list[float], batches: int, best: int) -> None:
    subject = play(tmp_path, scores)
    assert subject.clock.images == 8 * batches
    kept = {path.name for path in checkpoints.manifests(tmp_path / "checkpoints")}
    assert kept == {checkpoints.checkpoint_name(8 * number) for number in (best, batches)}
    assert bool(subject.run.notes) == (batches < 6)


def test_it_remembers_across_a_restart(tmp_path: Path) -> None:
    scores = [5.0, 4.0, 4.5, 4.1, 1.0, 1.0]
    play(tmp_path, [5.0, 4.0, 4.5, 1.0, 1.0, 1.0])
    for path in checkpoints.manifests(tmp_path / "checkpoints"):
        disk.remove(path)
    play(tmp_path, scores)
    newest = checkpoints.newest(tmp_path / "checkpoints")
    disk.remove(newest)
    assert checkpoints.newest(tmp_path / "checkpoints").name == checkpoints.checkpoint_name(16)
    assert play(tmp_path, scores, resume_from=tmp_path).clock.images == 32


@pytest.mark.parametrize("kind", ["patience", "hacking"])
def test_the_best_is_kept_where_no_checkpoint_was_due(tmp_path: Path, kind: str) -> None:
    scores = [5.0, 4.0, 4.5, 4.1, 4.2, 4.3]
    subject = engine("denoising", batches=6)
    found = Evaluate(lambda player: {"val/fd[x]": scores[player.clock.updates - 1]}, every_images=8)
    found.at_start = False
    guard = Patience(9) if kind == "patience" else HackingGuard(judge="val/fd[", proxy="generator/loss")
    run(
        subject,
        tmp_path,
        callbacks=[found, guard, Checkpoint(keep_last=1, monitor="val/fd[x]", every_images=48)],
    )
    kept = {path.name for path in checkpoints.manifests(tmp_path / "checkpoints")}
    assert kept == {checkpoints.checkpoint_name(images) for images in (16, 48)}


def test_a_rollback_costs_no_patience(tmp_path: Path) -> None:
    """Three batches (24..47) are poisoned: back to 24 images, whose score counts once, as before."""
    subject = engine(objective=Poisoned(range(24, 48)), batches=6)
    found = Evaluate(
        lambda player: {"val/fd[x]": -float(player.clock.images)}, every_images=8, at_start=False
    )
    run(subject, tmp_path, callbacks=[Guard(skipped=3), found, Patience(1), Checkpoint(every_images=8)])
    assert (subject.run.rollbacks, subject.clock.images, subject.run.notes) == (1, 48, [])


def test_a_score_that_is_never_there_is_told(tmp_path: Path) -> None:
    subject = engine("denoising", batches=6)
    found = Evaluate(lambda player: {"val/kid[x]": 1.0}, every_images=8, at_start=False)
    with pytest.raises(UserError, match="goes by val/fd, and this evaluation has none"):
        run(subject, tmp_path, callbacks=[found, Patience(2)])


def test_no_patience_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="patience=0"):
        Patience(0)
