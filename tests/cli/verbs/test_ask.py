"""`lmsd ask` on the command line: a run that trains answers; one that does not is not asked."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_home import TINY, Home, spoken

from lmsd import cli
from lmsd.cli.runs import store


@pytest.mark.slow
def test_a_run_that_trains_answers(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("outputs/asked")
    words = [
        *TINY,
        "images=3_200_000",
        "evaluate.every=1_600_000",
        "checkpoint_every=1_600_000",
        "evaluate.n=8",
    ]
    train = [
        sys.executable,
        "-m",
        "lmsd.cli",
        "train",
        *words,
        "data.shards=data/shapes",
        f"run_dir={folder}",
    ]
    with subprocess.Popen(
        train, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as run:
        try:
            deadline = time.monotonic() + 120
            while not (folder / "metrics.jsonl").is_file() and time.monotonic() < deadline:
                time.sleep(0.2)
            told = spoken(["ask", str(folder), "sample"])
            images = int(told.split()[1].replace(",", ""))
            assert told == f"after {images:,} images: drawn in samples/\n"
            assert (folder / "samples" / f"step_{images:09d}.png").is_file()
            told = spoken(["ask", str(folder), "save"])
            assert told.rstrip().endswith("once it is written")
            assert "ends now, saved" in spoken(["ask", f"run={folder}", "what=stop"])
            assert run.wait(60) == 130
        finally:
            run.kill()
    assert store.status(folder)["state"] == "interrupted"
    capsys.readouterr()
    assert cli.run(["ask", str(folder), "save"]) == 2
    assert "does not train (it is interrupted): there is nobody to ask" in capsys.readouterr().err


def test_a_run_elsewhere_is_asked_and_waited_for(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process is not on this machine; the request stays, and another is refused until it is answered."""
    folder = Path("outputs/elsewhere")
    folder.mkdir()
    (folder / "config.yaml").write_text("name: elsewhere\n")
    store.set_status(folder, state="running", pid=0x7FFFFFFF)
    assert cli.run(["ask", str(folder), "save", "wait=0.1"]) == 3
    assert "not answered within 0.1 s" in capsys.readouterr().err
    assert cli.run(["ask", str(folder), "save"]) == 2
    assert "is still to be answered: wait, or delete it to withdraw it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["last"], "lmsd ask needs what="),
        (["last", "sav"], "ask for one of sample, evaluate, save, stop; did you mean save?"),
        (["last", "save", "now"], "'now' is one word too many: lmsd ask last save"),
        (["last", "save", "wait=-1"], "wait=-1"),
        (["last", "save"], "no run 'last' in outputs/"),
        (["--save"], "lmsd ask has no option --save"),
    ],
    ids=" ".join,
)
def test_mistakes(
    words: list[str], said: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused("ask", *words)
