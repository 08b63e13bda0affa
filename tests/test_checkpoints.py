"""Checkpoints of every version: read in today's form, or refused in a sentence."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmsd.checkpoints import KEY, VERSION, averages, migrated, read, roles, spec_of, weights
from lmsd.errors import UserError
from lmsd.spec import plain

CONFIG = {
    "steps": 4,
    "generator": {"prediction": "v", "z_dim": 2, "precondition": "none"},
    "data": {"channels": 1, "image_size": 4},
    "schedule": {"_target_": "lmsd.process.schedules.Article", "steps": "${steps}"},
    "conditioner": {"_target_": "lmsd.models.conditioner.NullConditioner"},
    "net": {"_target_": "lmsd.models.backbones.mlp", "width": 8},
}
SECOND = {
    "state_dict": {
        "players.generator.w": torch.ones(2),
        "players.discriminator.w": torch.zeros(2),
        "ema.50.w": torch.full((2,), 3.0),
        "ema._extra_state": {"images": 8},
    },
    "optimizer_states": [{"state": "of the discriminator"}, {"state": "of the generator"}],
    KEY: {
        "version": 2,
        "players": ["discriminator", "generator"],
        "config": yaml.safe_dump(CONFIG),
        "clock": {"images": 8},
    },
}


def test_version_2_is_read_as_today_s() -> None:
    content = migrated(SECOND)
    assert content[KEY]["version"] == VERSION
    assert list(content["state_dict"])[2:] == ["ema.generator.50.w", "ema.generator._extra_state"]
    assert content["optimizers"] == {
        "discriminator": {"state": "of the discriminator"},
        "generator": {"state": "of the generator"},
    }
    assert "optimizer_states" not in content
    assert content[KEY]["line"] == {}, "the first ones had none"
    assert spec_of(content) == {
        "_target_": "lmsd.models.parts.from_parts",
        "schedule": {"_target_": "lmsd.process.schedules.Article", "steps": 4},
        "conditioner": CONFIG["conditioner"],
        "net": {"_target_": "lmsd.models.backbones.mlp", "width": 8, "_partial_": True},
        "channels": 1,
        "image_size": 4,
        "prediction": "v",
        "z_dim": 2,
        "precondition": "none",
    }
    assert content[KEY]["clock"] == {"images": 8}
    assert SECOND[KEY]["version"] == 2, "what was given stays"  # type: ignore[index]
    assert migrated(content) == content, "what is of today's version is left as it is"


def test_weights_of_version_2_without_a_configuration_are_read(tmp_path: Path) -> None:
    """Of a run that was begun from Python: nothing says how its generator is built."""
    for number, config in enumerate(({"config": ""}, {"config": "seed: 3\n"}, {})):
        path = tmp_path / str(number) / "step_000000001.ckpt"
        path.parent.mkdir()
        torch.save({**SECOND, KEY: {"version": 2, "players": SECOND[KEY]["players"], **config}}, path)  # type: ignore[index]
        content = read(path)
        assert content[KEY]["version"] == VERSION
        assert weights(content, "generator", "ema")["w"].tolist() == [3.0, 3.0]
        assert set(content["optimizers"]) == {"generator", "discriminator"}
        with pytest.raises(UserError, match="holds no spec of a generator"):
            spec_of(content)


def test_names_of_players_and_averages() -> None:
    content = migrated(SECOND)
    assert roles(content) == ("generator", "discriminator")
    assert averages(content, "generator") == {"50": "ema.generator.50."}
    assert averages(content, "discriminator") == {}
    assert weights(content, "generator", "ema")["w"].tolist() == [3.0, 3.0]
    assert weights(content, "generator", "50")["w"].tolist() == [3.0, 3.0]
    assert weights(content, "discriminator")["w"].tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="no player 'teacher'; there are generator, discriminator"):
        weights(content, "teacher")


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"version": 1}, "it is of version 1, and 2 to 3 are read here: take the lmsd that wrote it"),
        ({"version": 4}, "it is of version 4, and 2 to 3 are read here: take a later lmsd"),
        ({}, "it is of version 0, and 2 to 3 are read here"),
    ],
)
def test_other_versions_are_told(own: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.ckpt"
    torch.save({"state_dict": {"players.generator.w": torch.ones(1)}, KEY: own}, path)
    with pytest.raises(UserError, match=f"^{path}: {said}"):
        read(path)


def test_weights_from_elsewhere_have_no_version(tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.ckpt"
    torch.save({"state_dict": {"players.generator.w": torch.ones(1)}}, path)
    assert read(path)["state_dict"]["players.generator.w"].item() == 1.0
    with pytest.raises(UserError, match="holds no spec of a generator"):
        spec_of(read(path))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a: 1\nb: ${a}\nc: [{d: '${b}'}]", {"a": 1, "b": 1, "c": [{"d": 1}]}),
        ("a: {b: [1, 2]}\nc: ${a.b}", {"a": {"b": [1, 2]}, "c": [1, 2]}),
        ("a: ${b.c}\nd: ${oc.env:HOME}", {"a": "${b.c}", "d": "${oc.env:HOME}"}),
        ("a: x${b}\nb: 1", {"a": "x${b}", "b": 1}),
    ],
)
def test_a_configuration_is_read_without_omegaconf(text: str, tree: dict[str, Any]) -> None:
    assert plain(text) == tree


@pytest.mark.parametrize(
    "text", ["", "[1]", "a: [", "!!python/object/apply:os.mkdir [x]", "a: ${b}\nb: ${a}"]
)
def test_a_configuration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the configuration cannot be read"):
        plain(text)


@pytest.mark.skipif("LMSD_TEST_DATA" not in os.environ, reason="LMSD_TEST_DATA names no folder of cases")
def test_a_run_of_version_2_has_its_names() -> None:
    content = read(Path(os.environ["LMSD_TEST_DATA"], "cases", "run-v2-half"))
    assert roles(content) == ("generator", "discriminator")
    assert list(averages(content, "generator")) == ["4000"]
    assert set(content["optimizers"]) == {"generator", "discriminator"}
    weighed = {name: state["param_groups"][0]["initial_lr"] for name, state in content["optimizers"].items()}
    assert weighed == {"generator": 0.0002, "discriminator": 0.003}
