"""What is asked of a run: done after the batch at hand, on all ranks, and the weights stay to the bit."""

import json
import random
from pathlib import Path

import pytest
from harness import codes, fork_ranks
from lightning.pytorch import Callback
from test_checkpoint import OPTIONS, everything
from tiny_run import engine, run

from lmsd import checkpoints
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.logging import read_metrics
from lmsd.engine.requests import ANSWER, ASKED, WORDS, Asked, answered, ask

BATCHES, SIZE = 40, 8


class AskAt(Callback):
    """Asks for something in the batch that begins after so many images, and collects the answers."""

    def __init__(self, folder: Path, wishes: dict[int, str]) -> None:
        self.folder, self.wishes = folder, wishes

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        wish = self.wishes.get(pl_module.clock.images)
        if wish in WORDS and pl_module.global_rank == 0:
            ask(self.folder, wish, f"{pl_module.clock.images}")
        elif wish is not None and pl_module.global_rank == 0:
            (self.folder / ASKED).write_text(wish)

    def on_train_batch_end(
        self, trainer: object, pl_module: object, outputs: object, batch: object, batch_idx: int
    ) -> None:
        path = self.folder / ANSWER
        if path.exists() and pl_module.global_rank == 0:
            with (self.folder / "answers").open("a") as file:
                file.write(path.read_text())
            path.unlink()


def play(folder: Path, wishes: dict[int, str], *, devices: int = 1, batches: int = BATCHES) -> None:
    """Train, with a score and a picture that look at the weights."""
    folder.mkdir(exist_ok=True)

    def sample(subject: object) -> None:
        if subject.global_rank == 0:
            (folder / f"picture{subject.clock.images}").write_text("drawn")

    def score(subject: object) -> dict[str, float]:
        return {
            "val/fd": sum(float(p.detach().abs().sum()) for p in subject.players["generator"].parameters())
        }

    watching = [
        Asked(sample),
        AskAt(folder, wishes),
        Evaluate(score, every_images=160),
        Checkpoint(every_images=160),
    ]
    run(engine(batches=batches, **OPTIONS), folder, devices=devices, callbacks=watching)


def answers(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "answers").read_text().splitlines()]


def same_weights(ours: Path, theirs: Path) -> None:
    """Everything in the last checkpoints: players, averages, optimizers, clock, position."""
    a, b = everything(ours), everything(theirs)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.equal(b[name]) if hasattr(value, "equal") else value == b[name], name


def drawn(seed: int) -> dict[int, str]:
    """Ten batches of a run, four apart or more, and what is asked in each."""
    dice = random.Random(seed)
    starts = sorted(dice.sample(range(BATCHES // 4 - 1), 9))
    return {SIZE * (4 * start + dice.randrange(2)): dice.choice(WORDS[:3]) for start in starts} | {
        SIZE * (BATCHES - 4): "evaluate"
    }


def told(wishes: dict[int, str], later: int) -> list[tuple[str, int]]:
    return [(what, images + later * SIZE) for images, what in wishes.items()]


def test_a_run_answers_after_the_batch_at_hand_and_learns_what_it_would_have(tmp_path: Path) -> None:
    wishes = drawn(0)
    assert len(wishes) == 10
    assert set(wishes.values()) == set(WORDS[:3])
    play(tmp_path / "asked", wishes)
    play(tmp_path / "never", {})
    found = answers(tmp_path / "asked")
    assert [(each["what"], each["images"]) for each in found] == told(wishes, 1)
    same_weights(tmp_path / "asked", tmp_path / "never")
    scored = {
        line["images"] for line in read_metrics(tmp_path / "asked" / "metrics.jsonl") if "val/fd" in line
    }
    assert scored == {0, 160, 320} | {at for what, at in told(wishes, 1) if what == "evaluate"}
    pictures = {int(path.name.removeprefix("picture")) for path in (tmp_path / "asked").glob("picture*")}
    assert pictures == {at for what, at in told(wishes, 1) if what == "sample"}


@pytest.mark.slow
def test_two_ranks_answer_at_the_next_batch_and_learn_what_they_would_have(tmp_path: Path) -> None:
    wishes = drawn(1)
    for name, asked in (("asked", wishes), ("never", {})):
        folder = tmp_path / name
        folder.mkdir()
        ranks = fork_ranks(lambda own, f=folder, a=asked: play(f, a, devices=2), 2, folder)
        assert codes(ranks, seconds=240) == [0, 0], (folder / "rank0.log").read_text()[-2000:]
    found = answers(tmp_path / "asked")
    assert [(each["what"], each["images"]) for each in found] == told(wishes, 2)
    same_weights(tmp_path / "asked", tmp_path / "never")


def test_asked_to_save_there_is_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    play(tmp_path, {16: "save"}, batches=6)
    assert [path.name for path in checkpoints.manifests(tmp_path / "checkpoints")] == [
        "step_000000024.ckpt",
        "step_000000048.ckpt",
    ]
    assert answers(tmp_path)[0]["said"] == "saved in step_000000024.ckpt, once it is written"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_asked_to_stop_a_run_is_saved_and_goes_on(tmp_path: Path, devices: int) -> None:
    """Exit code 130, as after Ctrl-C: no scheduler queues it again."""
    folder = tmp_path / "run"
    folder.mkdir()
    ranks = fork_ranks(lambda own: play(folder, {80: "stop"}, devices=devices), devices, tmp_path)
    assert codes(ranks, seconds=240) == [130] * devices, (tmp_path / "rank0.log").read_text()[-2000:]
    at = 80 + SIZE * devices
    assert checkpoints.read(folder)[checkpoints.KEY]["clock"]["images"] == at
    assert "Interrupted. Saved" in (tmp_path / "rank0.log").read_text()
    assert json.loads((folder / "answers").read_text())["images"] == at


@pytest.mark.parametrize("bad", ['{"id": "1", "wh', '{"id": "1", "what": "dance"}', "[]", ""])
def test_what_cannot_be_read_is_ignored_with_a_line(
    tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    play(tmp_path, {16: bad, 32: "sample"}, batches=6)
    said = capsys.readouterr().err
    assert said.count("asked.json is ignored: it is none of sample, evaluate, save, stop, written whole") == 1
    assert [(each["what"], each["images"]) for each in answers(tmp_path)] == [("sample", 40)]


def test_what_an_earlier_session_was_asked_is_ignored_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(tmp_path, "stop", "1")
    play(tmp_path, {}, batches=2)
    assert "asked.json is ignored: it was asked before this session began" in capsys.readouterr().err
    assert not (tmp_path / ASKED).exists()
    assert answered(tmp_path, "1") is None
    assert checkpoints.read(tmp_path)[checkpoints.KEY]["clock"]["images"] == 16


def test_without_held_out_images_there_is_nothing_to_show(tmp_path: Path) -> None:
    run(engine(batches=3), tmp_path, callbacks=[Asked(), AskAt(tmp_path, {8: "evaluate"})])
    assert answers(tmp_path)[0]["said"] == "it has no held-out images to do that with (evaluate.n=0)"
