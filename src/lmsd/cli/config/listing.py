"""What `lmsd train` takes, told: `--options [group]` as a table, `--schema` as JSON Schema for editors."""

import json
from typing import Any

import yaml
from omegaconf import OmegaConf

from lmsd.cli.config.compose import chosen, composed, load
from lmsd.cli.config.kinds import NODE, Kind, parts, words, written
from lmsd.cli.config.schema import WHOLE, files, groups, handed, options
from lmsd.cli.config.signatures import DEFINED, ROOT, Argument, Unread, signature
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.spec import targets

REFERENCE: Kind = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
"""What may stand in a file in place of any value: ${...}, and ??? for one that is to be given."""


def listing(typed: list[str]) -> str:
    """The options of the groups among the words (all without one), under the overrides among them."""
    names = [word for word in typed if "=" not in word]
    tree = OmegaConf.to_container(load("train", [word for word in typed if "=" in word]))
    rows = [
        (key, f"{words(kind, example=False)}; default {written(value)}", about)
        for key, kind, value, about in options(tree)
    ]
    tops = sorted({key.partition(".")[0] for key, _, _ in rows})
    for name in names:
        if not any(f"{key}.".startswith(f"{name}.") for key, _, _ in rows) and name not in groups():
            raise UserError(f"no options '{name}'{nearest(name, tops)}; groups of options: {', '.join(tops)}")
    shown = [row for row in rows if not names or any(f"{row[0]}.".startswith(f"{name}.") for name in names)]
    chosen = [(group, found) for group, found in groups().items() if not names or group in names]
    width = max((len(key) for key, _, _ in shown), default=0)
    return "\n".join(
        [f"{group}=  one of {', '.join(found)}" for group, found in chosen]
        + [f"{key:{width}}  {kind:46}  {about}".rstrip() for key, kind, about in shown]
    )


def schema() -> str:
    """The JSON Schema of the whole configuration, which a file in configs/experiment/ keeps to as well."""
    places: dict[str, str] = {ROOT: ""}
    for group, found in sorted((group, place) for place, group in chosen().items()):
        for file in files(group):
            text = file.read_text(encoding="utf-8")
            for target, place in targets(yaml.safe_load(text), "" if "@package _global_" in text else found):
                places.setdefault(target, place)
    for target, place in targets(composed("train", [])):
        places.setdefault(target, place)
    nodes = [name for name in places if name != ROOT and signature(name) is not None]
    defined: dict[str, Any] = {}
    for name in (ROOT, *nodes):
        _define(name, places[name], defined)
    defined["node"] = {
        "type": ["object", "array"],
        "allOf": [
            {"if": {"properties": {"_target_": {"const": name}}, "required": ["_target_"]}, "then": _to(name)}
            for name in nodes
        ],
    }
    defined["part"] = {**_to("node"), "type": "object", "required": ["_target_"]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lmsd train"}
    return json.dumps({**head, **WHOLE, "$defs": defined}, indent=1, ensure_ascii=False)


def _to(name: str) -> Kind:
    return {"$ref": f"{DEFINED}{name}"}


def _define(name: str, place: str, defined: dict[str, Any]) -> None:
    """Add the schema of a constructor, and of the classes that its annotations name."""
    found = signature(name)
    assert found is not None
    section = name.startswith(ROOT.rpartition(".")[0])  # which may hold the nodes of further roles
    more = _to("part") if section else found.more
    private: dict[str, Any] = {"_target_": {"type": "string"}, "_partial_": {"type": "boolean"}}
    taken = {key: argument for key, argument in found.arguments.items() if key not in handed(place)}
    properties = {key: _property(argument) for key, argument in taken.items()}
    own = properties | ({"defaults": {"type": "array"}} if section else private)
    defined[name] = {"type": "object", "properties": own, "additionalProperties": more}
    for part in (part for argument in taken.values() for part in parts(argument.kind) if "$ref" in part):
        _define(str(part["$ref"]).removeprefix(DEFINED), "", defined)


def _property(argument: Argument) -> dict[str, Any]:
    """The schema of one option, with its meaning; a word may be a number, and anything a reference."""
    kind: dict[str, Any] = {"anyOf": [*map(_editors, parts(argument.kind)), REFERENCE]}
    kind |= {"description": argument.about} if argument.about else {}
    return kind if argument.default is Unread else {**kind, "default": argument.default}


def _editors(kind: Kind) -> Kind:
    if kind in (NODE, {"type": "object", "additionalProperties": {}}):
        return _to("node")
    if kind.get("type") == "string":
        return {**kind, "type": ["string", "number"]}
    inner = {key: _editors(kind[key]) for key in ("items", "additionalProperties") if kind.get(key)}
    return {**kind, **inner} if inner else kind
