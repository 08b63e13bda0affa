"""What screens say is what it is: numbers, verbs and advice, and a run without any program beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny_home import TINY, Home

from lmsd.cli.config.compose import load
from lmsd.cli.config.suggest import nearest
from lmsd.cli.runs import store
from lmsd.cli.sweeps.space import read
from lmsd.cli.verbs import runs, train, verify_resume
from lmsd.errors import UserError


def test_the_best_on_val_is_a_value_and_its_interval(tmp_path: Path) -> None:
    """Not the lower end of another one's interval: 3.1 at 200 images, though 2.0 is lower."""
    name = "val/fd[lmsd-cnn@ab12]"
    lines = [
        {"images": 100, name: 4.0, f"{name}/low": 2.0, f"{name}/high": 6.0},
        {"images": 200, name: 3.1, f"{name}/low": 2.5, f"{name}/high": 3.9},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert runs.best(tmp_path) == "fd[lmsd-cnn@ab12] 3.1 [2.5, 3.9] at 200"


def test_nothing_beside_training_needs_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty PATH the commit is null, and no device is told of."""
    from lmsd.cli.verbs.doctor import gpus

    monkeypatch.setenv("PATH", "")
    assert store.environment()["commit"] is None
    assert gpus() == []


@pytest.mark.slow
def test_every_verb_works_where_no_program_is_found(made: Home, tmp_path: Path) -> None:
    """Data, training on one process and on two, scores, samples, a sweep, a kill, with an empty PATH."""
    known = {**os.environ, "LMSD_CACHE": str(made.folder / "cache"), "PATH": ""}
    tiny = [*TINY, "data.shards=data/shapes"]
    more = ["image_size=16", "train_count=64", "val_count=32", "test_count=32", "near_duplicates=keep"]
    for words in (
        ["data", "build", "shapes", "out=data/shapes", *more],
        ["train", *tiny, "run_dir=outputs/alone"],
        ["train", *tiny, "run_dir=outputs/two", "devices=2", "logger=wandb"],
        ["sample", "run=outputs/alone", "prompts=a"],
        ["evaluate", "run=outputs/alone"],
        ["sweep", *tiny, "seed=1,2", "sweep.monitor=right"],
        ["verify-resume", *tiny, "images=1920", "kills=1"],
        ["doctor", "data/shapes"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lmsd.cli", *words],
            cwd=tmp_path,
            env=known,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr[-2000:])
    for run in ("alone", "two"):
        assert json.loads((tmp_path / "outputs" / run / "env.json").read_text())["commit"] is None


def test_a_resume_without_checkpoint_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"images": 10, "batch_size": 5, "name": "x"})
    train.announce(config, tmp_path, {}, resumed=tmp_path)
    assert capsys.readouterr().out.startswith(f"Beginning again, without a checkpoint: {tmp_path}")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000005.ckpt").touch()
    train.announce(config, tmp_path, {}, resumed=tmp_path)
    assert capsys.readouterr().out.startswith(f"Resuming {tmp_path}")


def test_a_comparison_without_a_kill_is_no_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = {"found": verify_resume.Trial([], "", "equal: 7 tensors")}
    monkeypatch.setattr(verify_resume, "verify", lambda *_, **__: trials["found"])
    with pytest.raises(UserError, match="ended before it could be killed, so nothing was resumed"):
        verify_resume.main([f"out={tmp_path}"])
    assert verify_resume.main([f"out={tmp_path}", "kills=0"]) == 0
    assert capsys.readouterr().out == "never killed; equal: 7 tensors\n"
    trials["found"] = verify_resume.Trial([0, 512], "", "equal: 7 tensors")
    assert verify_resume.main([f"out={tmp_path}"]) == 0
    assert capsys.readouterr().out == "killed 2 times, on from 0, 512 images; equal: 7 tensors\n"


def test_axes_are_told_in_words() -> None:
    words = ["experiment=digits", "optim.generator.lr=tag(log,interval(1e-5,1e-3))"]
    (axis,) = read(words).axes
    assert axis.shown() == "optim.generator.lr: 1e-05 to 0.001, by its logarithm"
    (axis,) = read(["net.width=int(interval(8,64))"]).axes
    assert axis.shown() == "net.width: 8 to 64, whole numbers"


def test_a_name_is_advised_once() -> None:
    assert nearest("imagess", ["images", "images", "seed"]) == "; did you mean images?"


def test_what_the_environment_gives_is_read_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SEED", "7")
    monkeypatch.setenv("MY_RATE", "1e-3")
    monkeypatch.setenv("MY_NAME", "12e4")
    config = load(["seed=${oc.env:MY_SEED}", "optim.generator.lr=${oc.env:MY_RATE}"])
    assert (config.seed, config.optim.generator.lr) == (7, 1e-3)
    assert load(["name=${oc.env:MY_NAME}"]).name == "12e4"
    monkeypatch.setenv("MY_SEED", "seven")
    with pytest.raises(UserError, match="seed=seven is not a whole number"):
        load(["seed=${oc.env:MY_SEED}"])


def test_another_constructor_leaves_out_what_the_first_one_took(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optim.generator.alpha=0.9", "optim.generator._target_=torch.optim.RMSprop"]
    node = load(words).optim.generator
    assert node == {"_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 2e-4, "alpha": 0.9} | {
        name: node[name] for name in ("weight_decay", "eps") if name in node
    }
    assert "which takes none: optim.generator.betas" in capsys.readouterr().err


def test_a_callbacks_folder_is_a_path() -> None:
    words = ["callbacks.my._target_=lightning.pytorch.callbacks.ModelCheckpoint", "callbacks.my.dirpath=x"]
    assert load(words).callbacks.my.dirpath == "x"


def test_compiling_without_a_compiler_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CXX", "CC"):
        monkeypatch.delenv(name, raising=False)
    config = load(["compile=true", "accelerator=cpu"])
    train.require_device(config)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler, and there is none in PATH"):
        train.require_device(config)
