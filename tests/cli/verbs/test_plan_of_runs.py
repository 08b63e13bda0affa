"""`lmsd plan`: what it says of a run without data, and of full-size folders from their configurations."""

import sys
from pathlib import Path

import pytest

from lmsd.cli import run

sys.path.append(str(Path(__file__).parents[2] / "models"))
from full_pipelines import WEIGHTS, write


def test_a_plan_needs_no_data_and_says_what_a_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=digits", "objective=denoising", "devices=4", "num_nodes=25", "batch_size=400"]
    assert run(["plan", *words, "plan.failures=0.02", "precision=bf16-mixed"]) == 0
    said = capsys.readouterr().out
    assert "note: no data at data/digits" in said
    assert f"generator.net{828_480:>33,}{0:>16}" in said
    assert "it fits" in said
    assert "failures: one in 48.00 hours on 25 machines" in said
    assert not list(tmp_path.iterdir())


def test_what_training_refuses_is_not_planned_and_several_sources_need_not_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["data.image_size=8", "data.channels=1", "net.width=16", "net.depth=1"]
    words = [*tiny, "data.shards=[a,b]", "data.weights=[1,2]", "data.val=c", "discriminator.trunk.width=16"]
    assert run(["plan", *words]) == 0
    assert "note: no data at ['a', 'b']" in capsys.readouterr().out
    assert run(["plan", *words, "trainer=fsdp", "devices=2", "compile=true"]) == 2
    assert "which compile=true does not see" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_full_size_folders_are_planned_from_their_configurations(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / name, name)
    words = ["experiment=pipeline_full", f"generator.path={folder}", "data.image_size=1024", "batch_size=2"]
    assert run(["plan", *words, f"data.shards={tmp_path}/none", "precision=bf16-mixed"]) == 0
    said = capsys.readouterr().out
    assert f"generator.net{WEIGHTS[name]:>33,}{0:>16}" in said
    assert ("it does not fit" in said, "trainer=fsdp devices=" in said) == (name == "flux", name == "flux")
