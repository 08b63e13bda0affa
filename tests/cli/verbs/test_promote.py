"""`lmsd promote` on the command line: begin, keep, change over, go back, and mistakes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_home import Home, spoken

from lmsd import cli
from lmsd.checkpoints import newest
from lmsd.files import sha256_of


def pointed() -> str:
    content = json.loads(Path("outputs/promoted.json").read_text())
    assert content["sha256"] == sha256_of(
        Path("outputs") / content["run"] / "checkpoints" / content["checkpoint"]
    )
    return str(content["run"])


@pytest.mark.slow
def test_a_run_begins_stays_is_followed_and_comes_back(
    home: Home, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
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
