"""`lmsd promote` on the command line: begin, keep, change over, go back, and mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_home import Home, spoken

from lmsd import cli
from lmsd.checkpoints import OUTPUTS, manifest_of, newest, seal
from lmsd.cli.build.trained import trained
from lmsd.cli.config.settings import SamplingOptions
from lmsd.engine.callbacks import Checkpoint
from lmsd.errors import UserError
from lmsd.evaluation import pointer
from lmsd.evaluation.pointer import Promoted
from lmsd.files import sha256_of


def pointed() -> str:
    content = json.loads(Path("outputs/promoted.json").read_text())
    assert content["sha256"] == sha256_of(
        Path("outputs") / content["run"] / "checkpoints" / content["checkpoint"]
    )
    return str(content["run"])


@pytest.mark.slow
def test_a_run_begins_stays_is_followed_and_comes_back(
    home: Home,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(shutil.copytree(".", tmp_path / "home"))  # runs are damaged here
    assert "nothing is promoted yet: begin with lmsd promote first first=true" in refused("promote", "first")
    shutil.copytree("outputs/first", "outputs/second")
    spoken(["promote", "first", "first=true"])
    assert pointed() == "first"
    assert "first is promoted already: leave first=true out" in refused("promote", "second", "first=true")
    assert "is promoted already: name another run" in refused("promote", "first")
    score = ["score=right", "seeds=[0,1]"]
    capsys.readouterr()
    assert cli.run(["promote", "second", *score]) == 3
    assert "the incumbent stays: not told apart by right" in capsys.readouterr().out
    assert pointed() == "first"
    for path in Path("outputs/first/eval/val").glob("*.json"):  # an incumbent with no right prompt
        record = json.loads(path.read_text())
        record["scores"]["right"] |= {
            "value": -1.0,
            "parts": [-1.0 for _ in record["scores"]["right"]["parts"]],
        }
        path.write_text(json.dumps(record))
    said = spoken(["promote", "second", *score])
    assert "scoring" not in said, "the records of before serve again"
    assert "promoted: better by right" in said
    assert pointed() == "second"
    checkpoint = newest(Path("outputs/first/checkpoints"))
    assert checkpoint is not None
    held = checkpoint.read_bytes()
    checkpoint.write_bytes(held[:-1])
    assert "is gone, damaged or another one by now" in refused("promote", "back")
    checkpoint.write_bytes(held)
    spoken(["promote", "back"])
    assert pointed() == "first"
    assert "there is nothing to go back to" in refused("promote", "back")


def tiny(run: str, step: int) -> Promoted:
    """A run with one checkpoint of a few bytes and its manifest."""
    path = Path("outputs") / run / "checkpoints" / f"step_{step:09d}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(run.encode())
    told = {"sha256": sha256_of(path), "bytes": path.stat().st_size, "images": step}
    manifest_of(path).write_text(json.dumps(told | {"seal": seal(told)}))
    (path.parents[1] / "config.yaml").write_text("name: tiny\n")
    return Promoted.of(path.parents[1], path)


def test_there_is_a_way_out_when_promoted_checkpoints_are_gone(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, c, d = (tiny(name, step) for step, name in enumerate("abcd"))
    pointer.point(d, [a, b, c])
    shutil.rmtree("outputs/c")
    said = spoken(["promote", "back"])
    assert "passed over: c step_000000002.ckpt" in said
    assert pointer.read() == (b, [a])
    assert "b is promoted already: leave first=true out" in refused("promote", "d", "first=true")
    shutil.rmtree("outputs/b")
    spoken(["promote", "d", "first=true"])
    assert pointer.read() == (d, [a])
    shutil.rmtree("outputs/a")
    assert "another one by now: it stays" in refused("promote", "back")
    shutil.rmtree("outputs/d")
    assert "another one by now: begin with lmsd promote RUN first=true" in refused("promote", "back")
    assert pointer.read() == (d, [a])


def test_what_is_promoted_is_not_deleted_by_the_run_that_goes_on(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [[tiny(run, step) for step in (10, 20, 30, 40)] for run in "ab"]
    pointer.point(runs[1][1], [runs[0][0]])
    said = refused("train", "resume=outputs/b/checkpoints/step_000000010.ckpt")
    assert (
        "step_000000020.ckpt is promoted, and going on from step_000000010.ckpt would write it anew" in said
    )
    for run, kept in (("a", "step_000000010"), ("b", "step_000000020")):
        folder = OUTPUTS / run / "checkpoints"
        Checkpoint(keep_last=1).prune(folder)
        assert {path.stem for path in folder.glob("*.ckpt")} == {kept, "step_000000040"}
    (OUTPUTS / "promoted.json").write_text("{")  # nobody can tell what it named
    Checkpoint(keep_last=1).prune(OUTPUTS / "b" / "checkpoints")
    assert len(list((OUTPUTS / "b" / "checkpoints").glob("*.ckpt"))) == 2


def test_a_link_to_a_run_is_promoted_by_the_run_s_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny("a", 1)
    Path("outputs/latest").symlink_to("a")
    spoken(["promote", "outputs/latest", "first=true"])
    assert pointed() == "a"


def test_another_run_s_checkpoint_is_not_taken_for_one_s_own(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny("a", 1)
    tiny("b", 1)
    theirs = "outputs/b/checkpoints/step_000000001.ckpt"
    for path in (theirs, str(Path(theirs).absolute())):
        assert "is not one of outputs/a/checkpoints" in refused(
            "promote", "a", f"checkpoint={path}", "first=true"
        )
        with pytest.raises(UserError, match="is not one of"):
            trained(Path("outputs/a"), SamplingOptions(run="a", checkpoint=path))
    spoken(["promote", "a", "checkpoint=outputs/a/checkpoints/step_000000001.ckpt", "first=true"])
    assert pointed() == "a"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["back"], "there is nothing to go back to"),
        (["back", "twice"], "lmsd promote back takes no more words, and 'twice' is one"),
        (["nothing"], "no run 'nothing' in outputs/"),
        (["last", "scores=fd"], "unknown option 'scores' of lmsd promote; did you mean score"),
        (["last", "seeds=a"], "seeds"),
        (["--back"], "lmsd promote has no option --back"),
        (["seeds=[0]"], "lmsd promote needs run="),
    ],
    ids=" ".join,
)
def test_mistakes(
    words: list[str], said: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused("promote", *words)
