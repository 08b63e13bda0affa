"""precision=auto: tried once, written down, and the same run as if it had been named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_home import TINY, Home, spoken

from lmsd import cli
from lmsd.checkpoints import KEY, newest, read
from lmsd.cli.config.compose import load
from lmsd.cli.runs import store

WORDS = ["train", *TINY, "data.shards=data/shapes", "evaluate.n=0", "images=96"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lmsd.cli", *arguments]


def found(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """A run's precision, the same in config.yaml and its newest checkpoint, and its weights."""
    path = newest(folder / "checkpoints")
    assert path is not None
    content, written = read(path), store.config_of(folder).precision
    assert f"precision: {written}\n" in content[KEY]["config"]
    state = content["state_dict"]
    return written, {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def same(one: Path, other: Path) -> bool:
    (first, a), (second, b) = found(one), found(other)
    return first == second and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_it_is_tried_once_and_resumed_as_it_was(home: Home) -> None:
    auto, named = Path("outputs/auto"), Path("outputs/named")
    said = spoken([*WORDS, "precision=auto", f"run_dir={auto}", "checkpoint_every=32"])
    precision, _ = found(auto)
    assert precision in ("32-true", "bf16-mixed")
    assert said.count(f"precision={precision}, by trial: a batch of 32 takes 32-true ") == 1
    spoken([*WORDS, f"precision={precision}", f"run_dir={named}"])
    assert same(auto, named)
    for late in (auto / "checkpoints").glob("step_0000000[69]*"):
        late.unlink()
    store.set_status(auto, state="interrupted")
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[precision]
    text = (auto / "config.yaml").read_text()
    again = spoken([*WORDS, "precision=auto", f"run_dir={auto}", "checkpoint_every=32", "resume=auto"])
    assert "by trial" not in again
    assert other not in text
    assert same(auto, named)


def test_a_dry_run_tries_it_too(home: Home) -> None:
    assert "by trial: a batch of 32 takes" in spoken([*WORDS, "precision=auto", "debug=dry"])


def test_what_is_cut_over_ranks_is_not_tried(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*WORDS, "precision=auto", "fsdp=true", "devices=2"]) == 2
    assert "precision=auto tries the run in one process" in capsys.readouterr().err


def test_trainer_gpu_sets_it() -> None:
    assert load(["trainer=gpu"]).precision == "auto"


@pytest.mark.slow
def test_two_ranks_take_what_the_first_one_chose(home: Home) -> None:
    auto, named = Path("outputs/auto-two"), Path("outputs/named-two")
    words = [*WORDS, "devices=2"]
    first = command(*words, "precision=auto", f"run_dir={auto}")
    done = subprocess.run(first, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("by trial: a batch of 16 takes") == 1
    second = command(*words, f"precision={found(auto)[0]}", f"run_dir={named}")
    assert subprocess.run(second, capture_output=True, timeout=300, check=False).returncode == 0
    assert same(auto, named)
