"""What `lmsd train` takes, told: `--options [group]` as a table, `--schema` as JSON Schema for editors."""

import json
from typing import Any

import yaml
from omegaconf import OmegaConf

from lmsd.cli.config import schema as known
from lmsd.cli.config.compose import chosen, composed, load
from lmsd.cli.config.signatures import (
    ANYTHING,
    DEFINED,
    NODE,
    ROOT,
    SECTIONS,
    Argument,
    Kind,
    Unread,
    parts,
    signature,
    words,
    written,
)
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.spec import targets

REFERENCE: Kind = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
"""What may stand in a file in place of any value: ${...}, and ??? for one that is to be given."""


def listing(typed: list[str]) -> str:
    """The options of the groups among the words (all without one), under the overrides among them."""
    tree = OmegaConf.to_container(load("train", [word for word in typed if "=" in word]))
    rows, groups = list(known.options(tree)), known.groups()
    names = [f"{word}." for word in typed if "=" not in word]
    tops = sorted({option.key.partition(".")[0] for option in rows})
    for name in names:
        if not any(f"{option.key}.".startswith(name) for option in rows) and name[:-1] not in groups:
            hint = nearest(name[:-1], tops)
            raise UserError(f"no options '{name[:-1]}'{hint}; groups of options: {', '.join(tops)}")
    lines = [
        f"{name}=  one of {', '.join(groups[name])}" for name in groups if not names or f"{name}." in names
    ]
    shown = [option for option in rows if not names or f"{option.key}.".startswith(tuple(names))]
    width = max((len(option.key) for option in shown), default=0)
    for option in shown:
        kind = f"{words(option.kind or ANYTHING, example=False)}; default {written(option.value)}"
        lines.append(f"{option.key:{width}}  {kind:46}  {option.about}".rstrip())
    return "\n".join(lines)


def schema() -> str:
    """The JSON Schema of the whole configuration, which a file in configs/experiment/ keeps to as well."""
    places: dict[str, str] = {}
    for group, found in sorted((group, place) for place, group in chosen().items()):
        for file in known.files(group):
            text = file.read_text(encoding="utf-8")
            for target, place in targets(yaml.safe_load(text), "" if "@package _global_" in text else found):
                places.setdefault(target, place)
    for target, place in targets(composed("train", [])):
        places.setdefault(target, place)
    nodes = [name for name in places if signature(name) is not None]
    defined: dict[str, Any] = {}
    for name, place in ((ROOT, ""), *((name, places[name]) for name in nodes)):
        _define(name, place, defined)
    named = [
        {"if": {"properties": {"_target_": {"const": name}}, "required": ["_target_"]}} for name in nodes
    ]
    rules = [{**rule, "then": _to(name)} for rule, name in zip(named, nodes, strict=True)]
    defined["node"] = {**NODE, "allOf": rules}
    defined["part"] = {**_to("node"), "type": "object", "required": ["_target_"]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lmsd train"}
    return json.dumps({**head, **known.WHOLE, "$defs": defined}, indent=1, ensure_ascii=False)


def _to(name: str) -> Kind:
    return {"$ref": f"{DEFINED}{name}"}


def _define(name: str, place: str, defined: dict[str, Any]) -> None:
    """Add the schema of a constructor, and of the classes that its annotations name."""
    found = known.taken({"_target_": name}, ANYTHING, place)
    assert found is not None
    section = name.startswith(SECTIONS)  # which may hold the nodes of further roles
    private = {"_target_": {"type": "string"}, "_partial_": {"type": "boolean"}}
    own = {key: _property(argument) for key, argument in found.arguments.items()}
    own |= {"defaults": {"type": "array"}} if section else private
    more = _to("part") if section else found.more
    defined[name] = {"type": "object", "properties": own, "additionalProperties": more}
    for part in (part for argument in found.arguments.values() for part in parts(argument.kind)):
        if "$ref" in part:
            _define(str(part["$ref"]).removeprefix(DEFINED), "", defined)


def _property(argument: Argument) -> dict[str, Any]:
    """The schema of one option, with its meaning; a word may be a number, and anything a reference."""
    kind: dict[str, Any] = {"anyOf": [*map(_editors, parts(argument.kind)), REFERENCE]}
    kind |= {"description": argument.about} if argument.about else {}
    return (
        kind
        if argument.default is Unread or "$ref" in argument.kind
        else {**kind, "default": argument.default}
    )


def _editors(kind: Kind) -> Kind:
    if kind in (NODE, {"type": "object", "additionalProperties": {}}):
        return _to("node")
    if kind.get("type") == "string":
        return {**kind, "type": ["string", "number"]}
    inner = {key: _editors(kind[key]) for key in ("items", "additionalProperties") if kind.get(key)}
    return {**kind, **inner} if inner else kind
