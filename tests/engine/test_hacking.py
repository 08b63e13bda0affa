"""Runs whose reward and held-out score part ways end."""

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import cast_for, engine, run

from lmsd import checkpoints
from lmsd.engine import checkpoint as disk
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.hacking import HackingGuard
from lmsd.engine.module import Engine
from lmsd.objectives import Denoising
from lmsd.process.times import Uniform
from lmsd.types import Batch, Loss, Players, Turn


class Climbing(Denoising):
    """Denoising that reports a reward of its own."""

    def __init__(self, rewards: list[float]) -> None:
        super().__init__(Uniform())
        self.rewards = rewards

    def turns(self, players: Players, batch: Batch, clock: object, rng: object) -> Iterator[Turn]:
        for turn in super().turns(players, batch, clock, rng):  # type: ignore[arg-type]
            reward = torch.tensor(self.rewards[clock.updates], dtype=torch.float64)
            yield Turn(
                turn.player, lambda turn=turn, reward=reward: Loss(turn.loss().value, {"reward": reward})
            )


def play(
    folder: Path,
    rewards: list[float],
    scores: list[float],
    broken: int = -1,
    *,
    half: float = 0.0,
    **options: object,
) -> object:
    """Train, with an evaluation after each batch, scores ± half; the one at `broken` images gets SIGTERM."""
    objective = Climbing(rewards)
    subject = engine(objective=objective, players=cast_for(objective), batches=6)
    guard = HackingGuard(judge="val/fd[", proxy="generator/reward", patience=2)

    def score(player: Engine) -> dict[str, float]:
        if player.clock.images == broken:
            os.kill(os.getpid(), signal.SIGTERM)
        value = scores[player.clock.updates - 1]
        return {"val/fd[x]": value, "val/fd[x]/low": value - half, "val/fd[x]/high": value + half}

    found = Evaluate(score, every_images=8, at_start=False)
    saving = Checkpoint(every_images=8, keep_last=9, monitor="val/fd[x]")
    run(subject, folder, callbacks=[found, guard, saving], **options)
    return subject


UP = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("rewards", "scores", "half", "batches"),
    [
        (UP, [5.0, 4.0, 5.0, 6.0, 7.0, 8.0], 0.0, 4),  # both ways part at the third and the fourth
        (UP, [5.0, 4.0, 5.0, 3.0, 4.0, 3.0], 0.0, 6),  # never twice in a row
        (UP, [4.0, 6.0, 5.0, 6.0, 5.0, 6.0], 0.0, 3),  # worse than the best, though not each time
        (UP, [5.0, 4.0, 4.2, 4.4, 4.6, 4.8], 1.0, 6),  # within the best one's interval
        (UP, [5.0, 4.0, 4.2, 5.4, 5.6, 5.8], 1.0, 5),  # and beyond it at the fourth and the fifth
        ([math.nan, *UP[1:]], [1.0, 4.0, 5.0, 6.0, 7.0, 8.0], 0.0, 4),  # the first counts nothing
        (UP[::-1], UP, 0.0, 6),  # the score gets worse, and the reward too: no hacking
    ],
)
def test_the_run_ends_when_proxy_and_judge_part(
    tmp_path: Path, rewards: list[float], scores: list[float], half: float, batches: int
) -> None:
    subject = play(tmp_path, rewards, scores, half=half)
    assert subject.clock.images == 8 * batches
    folder = tmp_path / "checkpoints"
    assert checkpoints.newest(folder) == folder / checkpoints.checkpoint_name(8 * batches)


def test_it_remembers_across_a_restart(tmp_path: Path) -> None:
    scores = [5.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    play(tmp_path, UP, scores)
    for path in checkpoints.manifests(tmp_path / "checkpoints"):
        if path.name > checkpoints.checkpoint_name(24):
            disk.remove(path)
    assert play(tmp_path, UP, scores, resume_from=tmp_path).clock.images == 32


@pytest.mark.parametrize("broken", [24, 32])
def test_an_evaluation_that_a_signal_broke_off_counts_where_it_is_made_up_for(
    tmp_path: Path, broken: int
) -> None:
    scores = [5.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    with pytest.raises(SystemExit):
        play(tmp_path, UP, scores, broken)
    assert play(tmp_path, UP, scores, resume_from=tmp_path).clock.images == 32
