"""One tiny data set and one tiny trained run, shared by all tests of the command line."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_home import TINY, Home, spoken

from lmsd import cli


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder, before = tmp_path_factory.mktemp("home"), Path.cwd()
    patch = pytest.MonkeyPatch()
    patch.setenv("LMSD_CACHE", str(folder / "cache"))
    os.chdir(folder)
    try:
        counts = ["image_size=16", "train_count=64", "val_count=32", "test_count=32", "near_duplicates=keep"]
        built = spoken(["data", "build", "shapes", "out=data/shapes", *counts])
        trained = spoken(["train", *TINY, "data.shards=data/shapes", "run_dir=outputs/first", "name=first"])
        yield Home(folder, built, trained)
    finally:
        os.chdir(before)
        patch.undo()


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb that must be refused: exit code 2, one line on stderr, no traceback; returns the line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.run(arguments) == 2, arguments
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("lmsd: ")]
        assert len(told) == 1, lines
        assert "Traceback" not in "\n".join(lines)
        return told[0]

    return run
