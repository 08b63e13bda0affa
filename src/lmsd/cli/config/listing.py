"""What `lmsd train` takes: `--options [group]` as a table, `--schema` as JSON Schema for editors."""

import json
import re
from typing import Any

import yaml
from omegaconf import OmegaConf

from lmsd.cli.config.compose import composed, files, groups, load, places
from lmsd.cli.config.refusals import words, written
from lmsd.cli.config.schema import WHOLE, handed, root
from lmsd.cli.config.signatures import ANYTHING, NODE, ROOT, SECTIONS, Argument, Kind, Unread, signature
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.spec import targets

REFERENCE = Kind(type="string", pattern=r"\$\{|^\?\?\?$")
"""Allowed in a file in place of any value: a reference ${...}, or ??? for a mandatory value."""


def listing(typed: list[str]) -> str:
    """The options of the named groups (all if none is named), given the overrides among the words."""
    tree = OmegaConf.to_container(load([word for word in typed if "=" in word]))
    rows, choices = list(root(tree).leaves()), groups()
    names = [f"{word}." for word in typed if "=" not in word]
    tops = sorted({option.key.partition(".")[0] for option in rows})
    for name in names:
        if not any(f"{option.key}.".startswith(name) for option in rows) and name[:-1] not in choices:
            hint = nearest(name[:-1], tops)
            raise UserError(f"no options '{name[:-1]}'{hint}; groups of options: {', '.join(tops)}")
    lines = [
        f"{name}=  one of {', '.join(choices[name])}" for name in choices if not names or f"{name}." in names
    ]
    shown = [option for option in rows if not names or f"{option.key}.".startswith(tuple(names))]
    width = max((len(option.key) for option in shown), default=0)
    for option in shown:
        kind = f"{words(option.kind or ANYTHING, example=False)}; default {written(option.value)}"
        told = about(option.argument or (option.node.argument if option.node else None))
        lines.append(f"{option.key:{width}}  {kind:46}  {told}".rstrip())
    return "\n".join(lines)


def schema() -> str:
    """The JSON Schema of the whole configuration, which files in configs/experiment/ follow, too."""
    found_at: dict[str, str] = {}
    for group, found in sorted((group, place) for place, group in places().items()):
        for file in files(group):
            text = file.read_text(encoding="utf-8")
            for target, place in targets(yaml.safe_load(text), "" if "@package _global_" in text else found):
                found_at.setdefault(target, place)
    for target, place in targets(composed([])):
        found_at.setdefault(target, place)
    nodes = [name for name in found_at if signature(name) is not None]
    defined: dict[str, Any] = {}
    for name, place in ((ROOT, ""), *((name, found_at[name]) for name in nodes)):
        _define(name, place, defined)
    named = [
        {"if": {"properties": {"_target_": {"const": name}}, "required": ["_target_"]}} for name in nodes
    ]
    rules = [{**rule, "then": Kind.of(name)} for rule, name in zip(named, nodes, strict=True)]
    defined["node"] = {**NODE, "allOf": rules}
    defined["part"] = {**Kind.of("node"), "type": "object", "required": ["_target_"]}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lmsd train"}
    return json.dumps({**head, **WHOLE, "$defs": defined}, indent=1, ensure_ascii=False)


def _define(name: str, place: str, defined: dict[str, Any]) -> None:
    """Add the schema of a constructor, and of the classes that its annotations name."""
    found = signature(name)
    assert found is not None
    fields = name.startswith(SECTIONS)  # which may hold the nodes of further roles
    private = {"_target_": {"type": "string"}, "_partial_": {"type": "boolean"}}
    own = {k: _property(argument) for k, argument in found.arguments.items() if k not in handed(place)}
    own |= {"defaults": {"type": "array"}} if fields else private
    more = Kind.of("part") if fields else found.more
    defined[name] = {"type": "object", "properties": own, "additionalProperties": more}
    for section in (name for argument in found.arguments.values() for name in argument.kind.sections):
        _define(section, "", defined)


def _property(argument: Argument) -> dict[str, Any]:
    """The schema of one option with its description; words may be numbers, and any value a reference."""
    kind: dict[str, Any] = {"anyOf": [*map(_editors, argument.kind.parts), REFERENCE]}
    kind |= {"description": about(argument)} if about(argument) else {}
    plain = argument.default is not Unread and not argument.kind.sections
    return {**kind, "default": argument.default} if plain else kind


def _editors(kind: Kind) -> Kind:
    if kind in (NODE, {"type": "object", "additionalProperties": {}}):
        return Kind.of("node")
    if kind.get("type") == "string":
        return Kind({**kind, "type": ["string", "number"]})
    if "anyOf" in kind:
        return Kind(anyOf=[*map(_editors, kind.parts)])
    inner = {key: _editors(kind[key]) for key in ("items", "additionalProperties") if kind.get(key)}
    return Kind({**kind, **inner}) if inner else kind


def about(argument: Argument | None) -> str:
    """One line of description of an argument, or an empty string.

    It comes from the texts of its constructor and those assigned right after it: AdamW.__doc__ = ...
    """
    if argument is None or argument.said:
        return argument.said if argument else ""
    first = argument.found.match
    whole = re.split(r"^(?=class |def |@)", first.string[first.end() :], maxsplit=1, flags=re.M)[0]
    return described("".join(re.findall(r'"""(.*?)"""', whole, re.S)), argument.name)


def described(text: str, name: str) -> str:
    """What a docstring says about an argument, as in "lr: rate;" or "lr (float): rate"."""
    flat, word = " ".join(text.split()), re.escape(name)
    ours = rf"(?:^|[;.:] )(?:\w+, )*{word}(?:, \w+)*: (.+?)(?:;|[.:](?= |$)|$)"
    others = rf"(?:^| ){word} \([^)]*\): (.+?)(?: \(default|[.;:](?= |$)|$)"
    match = re.search(ours, flat) or re.search(others, flat)
    return match[1] if match else ""
