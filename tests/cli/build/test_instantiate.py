"""Targets: only classes and functions of the allow-list are built, whatever way leads to them."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmsd.cli.build.instantiate import check, instantiate
from lmsd.errors import UserError
from lmsd.process.schedules import Cosine


def test_a_node_becomes_an_object() -> None:
    found = instantiate(OmegaConf.create({"_target_": "lmsd.process.schedules.Cosine", "steps": 12}))
    assert isinstance(found, Cosine)
    assert found.steps == 12


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
        "lmsd.data.module.os.system",
        "lmsd.data.module.ShardDataModule.load_from_checkpoint",
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
    ):
        with pytest.raises(UserError, match="_target_"):
            instantiate(OmegaConf.create(node))


def test_nothing_is_called_before_every_target_is_checked(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    inner = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(marker)]}}
    with pytest.raises(UserError, match=r"pathlib\.Path\.touch"):
        instantiate(OmegaConf.create({"_target_": "lmsd.process.Process", "schedule": inner}))
    assert not marker.exists()


def test_own_packages_are_allowed_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mypackage_of_tests.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="LMSD_ALLOW"):
        check("mypackage_of_tests.Thing")
    monkeypatch.setenv("LMSD_ALLOW", "mypackage_of_tests")
    check("mypackage_of_tests.Thing")
    monkeypatch.setenv("LMSD_ALLOW", "mypackage")  # a whole name, not its beginning
    with pytest.raises(UserError, match="LMSD_ALLOW"):
        check("mypackage_of_tests.Thing")
    sys.modules.pop("mypackage_of_tests", None)


def test_what_a_constructor_refuses_is_told_with_its_arguments() -> None:
    with pytest.raises(
        UserError, match=r"lmsd\.nets\.critics\.MLPCritic cannot be built with shape=.*depht=3"
    ):
        instantiate(
            OmegaConf.create({"_target_": "lmsd.nets.critics.MLPCritic", "shape": [1, 4, 4], "depht": 3})
        )


def test_our_own_sentences_come_through_unchanged() -> None:
    with pytest.raises(UserError, match=r"^A process needs at least one step, not 0: give steps ≥ 1\.$"):
        instantiate(OmegaConf.create({"_target_": "lmsd.process.schedules.Cosine", "steps": 0}))


@pytest.mark.parametrize(
    "words",
    [
        "${evil}",
        "${oc.create:{_target_: pathlib.Path.touch, self: {_target_: pathlib.Path}}}",
        "${oc.create:${oc.decode:${oc.env:EVIL}}}",
    ],
)
def test_a_reference_leads_to_no_other_target(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = {"_target_": "shutil.copytree", "src": str(tmp_path / "a"), "dst": str(tmp_path / "b")}
    (tmp_path / "a").mkdir()
    monkeypatch.setenv("EVIL", str(evil).replace("'", ""))
    root = OmegaConf.create({"evil": evil, "schedule": {"_target_": "torch.nn.Sequential", "odd": words}})
    with pytest.raises(UserError, match="may not be built"):
        instantiate(root.schedule)
    assert not (tmp_path / "b").exists()


def test_what_a_reference_gives_is_not_read_again() -> None:
    root = OmegaConf.create({"evil": {"_target_": "os.getpid"}, "node": {"_target_": "builtins.dict"}})
    root.node = {"_target_": "lmsd.process.schedules.Cosine", "steps": "\\${evil}"}
    with pytest.raises(UserError, match=r"steps=\$\{evil\}"):
        instantiate(root.node)


def test_secrets_are_not_told_and_options_of_hydra_are_refused() -> None:
    node = {"_target_": "lmsd.process.schedules.Cosine", "token": "canary"}
    with pytest.raises(UserError, match=r"token=\*\*\*") as caught:
        instantiate(OmegaConf.create(node))
    assert "canary" not in str(caught.value)
    with pytest.raises(UserError, match="_recursive_ is no option"):
        instantiate(OmegaConf.create({**node, "_recursive_": False}))
