"""The JSON Schema: every experiment keeps to it as a whole and as a file, and what is wrong is refused."""

import json
import re
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from lmsd.cli.config.compose import config_dir, groups, load
from lmsd.cli.config.listing import schema

TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
SCHEMA: dict[str, Any] = json.loads(schema())


def faults(rule: Any, value: Any, path: str = "") -> list[str]:
    """Where a value breaks a rule of JSON Schema, as far as ours goes: written for this test alone."""
    if rule in (True, False):
        return [] if rule else [f"{path} is unknown"]
    found: list[str] = []
    if "$ref" in rule:
        found += faults(SCHEMA["$defs"][rule["$ref"].removeprefix("#/$defs/")], value, path)
    if "anyOf" in rule and all(faults(part, value, path) for part in rule["anyOf"]):
        found.append(f"{path} fits none of {len(rule['anyOf'])} kinds")
    for part in rule.get("allOf", ()):
        if not faults(part["if"], value, path):
            found += faults(part["then"], value, path)
    if "const" in rule and value != rule["const"]:
        found.append(f"{path} is another")
    if "enum" in rule and value not in rule["enum"]:
        found.append(f"{path} is none of {rule['enum']}")
    names = [rule["type"]] if isinstance(rule.get("type"), str) else rule.get("type", ())
    if names and not any(typed(name, value) for name in names):
        found.append(f"{path} is no {names}")
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        found.append(f"{path} has another form")
    if isinstance(value, int | float) and not (
        rule.get("minimum", value) <= value <= rule.get("maximum", value)
    ):
        found.append(f"{path} is out of range")
    for item in value if isinstance(value, list) else ():
        found += faults(rule.get("items", True), item, path)
    if isinstance(value, dict):
        found += [f"{path}.{name} is missing" for name in rule.get("required", ()) if name not in value]
        known = rule.get("properties", {})
        for name, item in value.items():
            inner = known.get(name, rule.get("additionalProperties", True))
            found += faults(inner, item, f"{path}.{name}")
    return found


def typed(name: str, value: Any) -> bool:
    """Whether a value is of one of JSON's types."""
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


@pytest.mark.parametrize("name", groups()["experiment"])
def test_every_experiment_keeps_to_the_schema(name: str) -> None:
    assert faults(SCHEMA, OmegaConf.to_container(load([f"experiment={name}"]))) == []
    assert faults(SCHEMA, yaml.safe_load((config_dir() / "experiment" / f"{name}.yaml").read_text())) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"imags": 3}, ".imags"),
        ({"seed": "abc"}, ".seed"),
        ({"batch_size": 0}, ".batch_size"),
        ({"evaluate": {"evry": 3}}, ".evaluate"),
        ({"evaluate": {"extractor": {"kind": "incep"}}}, ".evaluate"),
        ({"net": {"_target_": "lmsd.models.backbones.MLPBackbone", "width": 0}}, ".net"),
        ({"net": {"_target_": "lmsd.models.backbones.MLPBackbone", "channels": 3}}, ".net"),
        ({"objective": {"_target_": "lmsd.objectives.denoising.Denoising", "wighting": 3}}, ".objective"),
    ],
)
def test_what_is_wrong_is_refused(words: dict[str, Any], said: str) -> None:
    assert any(fault.startswith(said) for fault in faults(SCHEMA, words))


def test_a_reference_may_stand_anywhere() -> None:
    assert (
        faults(SCHEMA, {"steps": "${evaluate.steps}", "conditioner": {"_target_": "x.Y", "path": "???"}})
        == []
    )
