"""`lmsd export` on the command line: every way to name a run, formats and their options, and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_home import Home, spoken

import lmsd
from lmsd.checkpoints import newest
from lmsd.cli.config.completion import candidates

Refused = Callable[..., str]


def test_a_run_leaves_and_comes_back(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    spoken(["evaluate", "run=outputs/first", "split=val", "n=24"])  # others may have scored others
    capsys.readouterr()
    words = ["export", "run=outputs/first", "format=safetensors", "to=out/first", "license=mit", "steps=2"]
    assert spoken(words).strip() == "out/first"
    assert "note: PSNR of the worst image, dB 100 (at least 100)" in capsys.readouterr().err
    run, folder = lmsd.load("outputs/first"), lmsd.load("out/first")
    one, two = run.sample(["a red circle"], steps=2), folder.sample(["a red circle"])
    assert np.array_equal(one, two)
    assert "license: mit" in Path("out/first/README.md").read_text()
    card = Path("out/first/README.md").read_text()
    scored = [
        json.loads(path.read_text())["scores"] for path in Path("outputs/first/eval").glob("*/metrics.json")
    ]
    assert any(f"| {name} |" in card for scores in scored for name in scores), "its own scores"
    manifest = json.loads(Path("out/first/lmsd.json").read_text())
    assert (manifest["format"], manifest["steps"], len(manifest["knots"])) == ("safetensors", 2, 3)


def test_a_card_names_no_folders_of_this_machine(home: Home) -> None:
    run = Path("outputs/first").absolute()
    spoken(["export", f"run={run}", "format=safetensors", "to=out/public"])
    card = Path("out/public/README.md").read_text()
    assert "`lmsd export run=first format=safetensors to=out/public`" in card
    assert str(run.parent) not in card + Path("out/public/lmsd.json").read_text()


def test_a_checkpoint_and_an_exported_folder_are_runs_too(home: Home) -> None:
    path = newest(Path("outputs/first/checkpoints"))
    spoken(["export", f"run={path}", "format=safetensors", "to=out/of_file", "ema=raw", "sampler=dpmpp"])
    spoken(["export", "run=out/of_file", "format=safetensors", "to=out/again", "guidance=1"])
    first, second = (lmsd.load(f"out/{name}") for name in ("of_file", "again"))
    assert (first.ema, second.ema) == ("raw", "raw")
    assert first.config["sampler"] == second.config["sampler"] == {"_target_": "lmsd.sampling.DPMSolverPP2M"}
    assert np.array_equal(first.sample(["a ring"], seed=2), second.sample(["a ring"], seed=2))
    own = lmsd.load(path, ema="raw").sample(["a ring"], seed=2)
    assert not np.array_equal(first.sample(["a ring"], seed=2), own), "another sampler than the run's"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=outputs/first", "to=x"], "lmsd export needs format=NAME: safetensors"),
        (["run=outputs/first", "to=x", "format=safetensor"], "did you mean safetensors?"),
        (["run=outputs/first", "format=safetensors"], "lmsd export needs to="),
        (["to=x", "format=safetensors"], "lmsd export needs run="),
        (["run=outputs/none", "to=x", "format=safetensors"], "no run 'outputs/none'"),
        (["run=outputs/first", "to=data", "format=safetensors"], "to=data exists: name a new folder"),
        (["run=outputs/first", "to=x", "format=safetensors", "ema=7"], "holds no EMA '7'"),
        (["run=outputs/first", "to=x", "format=safetensors", "steps=99"], "steps=99 on a chain of 4"),
        (["run=outputs/first", "to=x", "format=safetensors", "opset=1"], "unknown option 'opset'"),
        (["run=outputs/first", "to=x", "format=safetensors", "checkpoint=a.ckpt"], "no checkpoint a.ckpt"),
        (["run=outputs/first", "to=x", "format=safetensors", "hub=a/b/c"], "the export itself lies in x"),
    ],
)
def test_mistakes(home: Home, refused: Refused, words: list[str], said: str) -> None:
    assert said in refused("export", *words)


def test_other_verbs_say_what_an_exported_folder_is_for(home: Home, refused: Refused) -> None:
    spoken(["export", "run=outputs/first", "format=safetensors", "to=out/named"])
    assert "out/named is an exported folder, which lmsd.load opens" in refused(
        "sample", "run=out/named", "n=1"
    )
    assert "out/named is an exported folder" in refused("evaluate", "run=out/named")


def test_what_tab_offers() -> None:
    assert "format=safetensors" in candidates("lmsd export format=")
    assert candidates("lmsd export run=last licen") == ["license="]
