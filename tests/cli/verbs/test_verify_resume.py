"""`lmsd verify-resume`: equal runs are equal, and the first difference of others is told."""

import json
import random
import shutil
from pathlib import Path

import pytest
from harness import fork
from tiny_home import ALONE, TINY, Home

from lmsd import checkpoints, cli
from lmsd.cli.runs import store
from lmsd.cli.verbs.verify_resume import compare, shortened, verify
from lmsd.engine import checkpoint as disk
from lmsd.errors import UserError

FIRST = Path("outputs/first")
METHODS = {
    "ladd": ["steps=2", "objective.teacher.steps=2", "discriminator.width=8", "init_from=outputs/first@ema"],
    "apt": ["discriminator.width=8", "init_from=outputs/first@ema"],
    "afm": ["steps=2", "discriminator.trunk.width=16", "discriminator.trunk.depth=1"],
    "meanflow": [],
    "dmd2": [
        "steps=2",
        "objective.every=2",
        "init_from={generator: outputs/first@ema, teacher: outputs/first@ema}",
    ],
}
"""Methods whose states are more than two players: frozen ones, a fake score, averages, and their words."""


@pytest.fixture
def copied(home: Home, tmp_path: Path) -> Path:
    """The finished run once more."""
    return Path(shutil.copytree(FIRST, tmp_path / "copy"))


def changed(run: Path, change: object) -> None:
    """Write the newest checkpoint of a run again, with something else in it."""
    path = checkpoints.find(run)
    content = checkpoints.read(path)
    change(content)  # type: ignore[operator]
    disk.save(content, path)


def test_a_copy_is_equal_whatever_the_wall_clock_says(copied: Path) -> None:
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    (copied / "metrics.jsonl").write_text("".join(json.dumps({**line, "time": 1.0}) + "\n" for line in lines))
    difference, tensors = compare(FIRST, copied)
    assert difference == ""
    assert tensors == len(dict(checkpoints.tensors(checkpoints.read(FIRST)))) > 50


def test_one_bit_of_a_moment_is_told_by_its_place(copied: Path) -> None:
    def nudge(content: dict) -> None:
        moment = content["optimizers"]["generator"]["state"][0]["exp_avg_sq"]
        moment.view(-1)[0] += 1e-3

    changed(copied, nudge)
    assert compare(FIRST, copied)[0] == "optimizers.generator.state.0.exp_avg_sq differs by up to 0.001"


def test_the_place_in_the_data_and_the_counts_are_compared(copied: Path) -> None:
    def skip(content: dict) -> None:
        content[checkpoints.KEY]["clock"]["played"]["discriminator"] += 1

    changed(copied, skip)
    assert compare(FIRST, copied)[0].startswith("lmsd.clock was {")

    def shift(content: dict) -> None:
        content[checkpoints.KEY]["clock"]["played"]["discriminator"] -= 1
        content["ShardDataModule"]["position"] += 32

    changed(copied, shift)
    assert compare(FIRST, copied)[0] == "ShardDataModule.position was 224 and should be 192"


def test_a_line_of_metrics_too_many_is_told(copied: Path) -> None:
    text = (copied / "metrics.jsonl").read_text()
    (copied / "metrics.jsonl").write_text(text + text.splitlines()[-1] + "\n")
    count = len(text.splitlines())
    assert compare(FIRST, copied)[0] == f"{count + 1} lines of metrics, and there should be {count}"


def test_it_is_short_unless_told_otherwise() -> None:
    assert shortened(["batch_size=32"])[1:] == [
        "images=1536",
        "checkpoint_every=256",
        "log_every=128",
        "evaluate.n=0",
    ]
    assert shortened(["images=64", "evaluate.n=8"])[2:] == ["checkpoint_every=512", "log_every=256"]
    with pytest.raises(UserError, match="run_dir= makes no sense here"):
        shortened(["run_dir=x"])


def test_a_count_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["verify-resume", "kills=few"]) == 2
    assert "kills=few is not a whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_killed_is_equal(home: Home, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "data.shards=data/shapes", "evaluate.n=0", "images=1920", "checkpoint_every=320"]
    assert cli.run(["verify-resume", "kills=2", "out=outputs/verified", *words]) == 0
    assert ": equal: " in capfd.readouterr().out.replace("; ", ": ")
    assert store.status(Path("outputs/verified/killed"))["state"] == "done"


def launch(words: list[str], log: Path) -> int:
    """`lmsd train` in a child that has everything imported already."""

    def train() -> None:
        raise SystemExit(cli.run(["train", *words]))

    return fork(train, log)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_of_a_few_step_method_is_equal(method: str, home: Home) -> None:
    sizes = ["images=384", "batch_size=8", "log_every=16", "checkpoint_every=32", "evaluate.n=0"]
    words = [*ALONE, "data.shards=data/shapes", *sizes, f"objective={method}", *METHODS[method]]
    out = Path("outputs/methods") / method
    trial = verify(words, out, kills=3, draw=random.Random(4), launch=launch)  # at 0.24, 0.10, 0.40 of a run
    assert trial.difference == ""
    assert trial.images, "it was killed"
