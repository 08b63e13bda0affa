"""A run of checkpoint version 2 resumes and scores as by the code that wrote it, on the same machine."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OLD = "82539ab"
"""The last commit before checkpoint version 3."""


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same", ROOT / "benchmarks" / "same.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


same = _script()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The code of before, unpacked."""
    cache = tmp_path_factory.mktemp("old")
    try:
        return same.Tree(OLD, cache)
    except SystemExit as missing:
        pytest.skip(f"{missing}: the history is not here")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The code at hand."""
    return same.Tree(str(ROOT), tmp_path_factory.mktemp("new"))


def case(name: str, test_data: Path, work: Path) -> None:
    """A run of LMSD_TEST_DATA in a folder of this test's own, which may be written to."""
    source = test_data / "cases" / name
    if not source.is_dir():
        pytest.skip(f"LMSD_TEST_DATA has no cases/{name}")
    for path in source.rglob("*"):
        if path.is_file():
            copy = work / name / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def at_work(tree: Any, name: str, test_data: Path) -> Any:
    """A tree with the case and its data."""
    case(name, test_data, tree.work)
    if not (tree.work / "data" / "digits").is_dir():
        assert tree.command(["data", "build", "digits", "out=data/digits"]) == ""
    return tree


@pytest.mark.slow
def test_a_run_of_before_ends_in_the_weights_that_the_code_of_before_gives_it(
    old: Any, new: Any, test_data: Path
) -> None:
    ended = []
    for tree in (old, new):
        at_work(tree, "run-v2-half", test_data)
        assert tree.command(["train", "resume=run-v2-half", "evaluate.n=0"]) == ""
        ended.append(same.weights(tree.work / "run-v2-half"))
    for kind in ("players", "averages", "optimizers"):
        assert same.other_bits(ended[0], ended[1], kind) == ""
        assert sum(len(rows) for rows in ended[1][kind].values()) >= 40  # a digest for every tensor
    begun = same.weights(test_data / "cases" / "run-v2-half")
    assert same.other_bits(begun, ended[1], "players") != ""  # it has trained


@pytest.mark.slow
def test_a_run_of_before_scores_as_the_code_of_before_scores_it(old: Any, new: Any, test_data: Path) -> None:
    """To the last digit, on the test split: kid is kid_paired today, and the class score's parts are equal.

    517 images make ten parts of 52 or 51, where the last had 49: the first seven are the same images.
    """
    found = []
    for tree in (old, new):
        at_work(tree, "run-v2", test_data)
        (tree.work / "run-v2" / "eval" / "test" / "metrics.json").unlink()
        assert tree.command(["evaluate", "run=run-v2", "split=test", "seeds=[0,1]"]) == ""
        record = json.loads((tree.work / "run-v2" / "eval" / "test" / "metrics.json").read_text())
        found.append(record["scores"])
    before, now = found
    names = {
        name: name.replace("kid", "kid_paired", 1) if same.left_out(name, ("kid",)) else name
        for name in before
    }
    assert {name.partition("[")[0] for name in names} >= {"fd", "kid", "kid_floor", "class_score_real"}
    parts = [name for name in names if same.left_out(name, ("class_score",))]
    assert len(parts) == 2
    for name in parts:
        assert now[name]["parts"][:7] == before[name]["parts"][:7]
        assert now[name]["value"] == pytest.approx(before[name]["value"], rel=0.005)
    others = {name: score for name, score in before.items() if name not in parts}
    assert {
        name: score for name, score in others.items() if not same.equal(score, now.get(names[name]))
    } == {}
