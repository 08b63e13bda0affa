"""Targets: only classes and functions of the allow-list are built, whatever way leads to them."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmsd.errors import UserError
from lmsd.process import Process
from lmsd.process.schedules import Cosine
from lmsd.spec import build, locate, taken

CRITIC = {"_target_": "lmsd.nets.critics.MLPCritic", "shape": [1, 4, 4]}


def test_a_node_becomes_an_object() -> None:
    found = build({"_target_": "lmsd.process.schedules.Cosine", "steps": 12})
    assert isinstance(found, Cosine)
    assert found.steps == 12


def test_nodes_in_nodes_and_in_lists_are_built_and_some_are_left_for_later() -> None:
    cosine = {"_target_": "lmsd.process.schedules.Cosine"}
    process = build({"_target_": "lmsd.process.Process"}, schedule=build(cosine, steps=3))
    assert isinstance(process, Process)
    assert process.schedule.steps == 3
    later = build({**CRITIC, "_partial_": True, "shape": [{**cosine, "steps": 5}, {"plain": [cosine]}]})
    first, second = later.keywords["shape"]
    assert first.steps == 5
    assert isinstance(second["plain"][0], Cosine)


@pytest.mark.parametrize(
    "target",
    [
        "builtins.open",
        "builtins.eval",
        "os.system",
        "subprocess.Popen",
        "pathlib.Path.write_text",
        "torch.load",
        "lmsd.cli.runs.store.os.system",
        "lmsd.cli.runs.store.subprocess.Popen",
        "lmsd.cli.runs.store.point_latest",
        "lmsd.models.conditioner.Path.write_text",
        "lmsd.features.cnn.json.loads",
        "lmsd.engine.checkpoint.remove",
        "lmsd.data.shardset.logging.getLogger",
        "lmsd.data.shardset.ShardSet.index",
        "torch.nn.Module.load_state_dict",
        "torch.optim.Adam.__init__.__globals__",
        "lmsd.nets",
        "hydra.utils.get_method",
        "lmsd.process.nothing",
        "lmsd.",
        "",
    ],
)
def test_other_targets_are_refused_wherever_they_lie(target: str) -> None:
    for node in (
        {"_target_": target},
        {"_target_": "lmsd.process.Process", "schedule": [{"_target_": target}]},
        {"_target_": "lmsd.process.Process", "schedule": {"plain": ({"_target_": target},)}},
    ):
        with pytest.raises(UserError, match="_target_"):
            build(node)


@pytest.mark.parametrize(
    "target",
    [
        "lmsd.models.codec.UserError",
        "lmsd.sampling.model.find_run",
        "lmsd.engine.callbacks.prune",
        "lmsd.rewards.pixels.levels",
        "lmsd.data.storage.ThreadPoolExecutor",
    ],
)
def test_what_an_allowed_module_merely_imports_is_refused(target: str) -> None:
    module, _, name = target.rpartition(".")
    imported = vars(importlib.import_module(module))[name]
    assert callable(imported)
    assert imported.__module__ != module
    with pytest.raises(UserError, match=rf"^_target_ '{target}' may not be built"):
        locate(target)


def test_nothing_is_called_before_every_target_is_checked(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    inner = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(marker)]}}
    with pytest.raises(UserError, match=r"pathlib\.Path\.touch"):
        build({"_target_": "lmsd.process.Process", "schedule": inner})
    assert not marker.exists()


def test_own_packages_are_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mypackage_of_tests.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="LMSD_ALLOW"):
        locate("mypackage_of_tests.Thing")
    monkeypatch.setenv("LMSD_ALLOW", "mypackage_of_tests")
    locate("mypackage_of_tests.Thing")
    monkeypatch.setenv("LMSD_ALLOW", "mypackage")  # a whole name, not its beginning
    with pytest.raises(UserError, match="LMSD_ALLOW"):
        locate("mypackage_of_tests.Thing")
    sys.modules.pop("mypackage_of_tests", None)


@pytest.mark.parametrize(
    ("node", "given", "said"),
    [
        (
            {**CRITIC, "depht": 3},
            {},
            r"^lmsd\.nets\.critics\.MLPCritic has no option depht; its options are ",
        ),
        ({"_target_": CRITIC["_target_"]}, {}, r"refuses: missing a required argument: 'shape'; its options"),
        ({**CRITIC, "_partial_": True, "depht": 3}, {}, "has no option depht; its options are shape, width"),
        (CRITIC, {"shape": (1, 4, 4)}, "MLPCritic: shape follows from other options: leave it out"),
        (
            {**CRITIC, "_recursive_": False},
            {},
            "_recursive_ is no option; beside _target_ there is _partial_",
        ),
        ({"shape": 3}, {}, "a node without _target_, with shape"),
    ],
)
def test_arguments_that_do_not_fit_are_named(node: dict[str, Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(node, **given)


def test_our_own_sentences_come_through_unchanged() -> None:
    with pytest.raises(UserError, match=r"^steps=0 is not a number of steps: give 1 to 100000$"):
        build({"_target_": "lmsd.process.schedules.Cosine", "steps": 0})


def test_a_fault_in_a_constructor_keeps_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faulty_of_tests.py").write_text(
        "class Thing:\n    def __init__(self, size):\n        self.size = size.absent\n"
        "def strict(a, **rest):\n    return [].absent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LMSD_ALLOW", "faulty_of_tests")
    for node in (
        {"_target_": "faulty_of_tests.Thing", "size": 1},
        {"_target_": "faulty_of_tests.strict", "a": 1},
    ):
        with pytest.raises(AttributeError, match="absent"):
            build(node)
    with pytest.raises(UserError, match="missing a required argument: 'a'"):
        build({"_target_": "faulty_of_tests.strict", "b": 1})
    sys.modules.pop("faulty_of_tests", None)


def test_no_value_is_told() -> None:
    with pytest.raises(UserError, match="has no option token") as caught:
        build({"_target_": "lmsd.process.schedules.Cosine", "token": "canary"})
    assert "canary" not in str(caught.value)


def test_what_a_constructor_takes() -> None:
    assert taken(CRITIC, {"shape": 1, "colour": 2}) == {"shape": 1}


def test_neither_hydra_nor_torch_is_needed() -> None:
    code = "import lmsd.spec, sys; sys.exit(any(n in sys.modules for n in ('hydra', 'omegaconf', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
