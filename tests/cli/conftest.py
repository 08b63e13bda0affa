"""One tiny data set and one tiny trained run, shared by all tests of the command line."""

import shutil
from collections.abc import Callable, Iterator

import pytest
from tiny_home import TINY, Home, inside, spoken

from lmsd import cli


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    with inside(folder):
        counts = ["image_size=16", "train_count=64", "val_count=32", "test_count=32", "near_duplicates=keep"]
        built = spoken(["data", "build", "shapes", "out=data/shapes", *counts])
        trained = spoken(["train", *TINY, "data.shards=data/shapes", "run_dir=outputs/first", "name=first"])
        return Home(folder, built, trained)


@pytest.fixture
def home(made: Home) -> Iterator[Home]:
    with inside(made.folder):
        yield made


@pytest.fixture(scope="session")
def scored(made: Home) -> str:
    """What `lmsd evaluate` said of the first run on test; scored.json is its record, whatever follows."""
    with inside(made.folder):
        said = spoken(["evaluate", "run=outputs/first", "split=test", "n=32", "seeds=[0,1]"])
        shutil.copy("outputs/first/eval/test/metrics.json", "scored.json")
        return said


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
