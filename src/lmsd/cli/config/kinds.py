"""What an option may be, as JSON Schema: read off an annotation, compared with a value, told in words.

    int                                  {"type": "integer"}
    Annotated[int, Number(1)] | None     {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    Literal["fd", "exact"]               {"enum": ["fd", "exact"]}
    Sequence[float]                      {"type": "array", "items": {"type": "number"}}

An object that the configuration describes (a mapping with `_target_`) is a NODE.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

Kind = Mapping[str, Any]
Alias = Callable[[str], ast.expr | Kind | None]
"""What a name in an annotation stands for: the value of a type alias, a kind, or nothing that is known."""

ANYTHING: Kind = {}
NULL: Kind = {"type": "null"}
NODE: Kind = {"type": ["object", "array"]}
PLAIN: dict[str, Kind] = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "str": {"type": "string"},
    "Path": {"type": "string", "format": "path"},
    "PathLike": {"type": "string", "format": "path"},
    "Any": ANYTHING,
    "None": NULL,
}
LISTS = ("sequence", "list", "tuple", "iterable")
NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "one word"}


def kind_of(node: ast.expr | None, alias: Alias) -> Kind:
    """The kind that an annotation names; a class that is none of Python's own is described by a node."""
    match node:
        case None:
            return ANYTHING
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=text):  # an annotation in quotes
            return kind_of(ast.parse(str(text), mode="eval").body, alias)
        case ast.BinOp(left=left, right=right):
            return either([kind_of(left, alias), kind_of(right, alias)])
        case ast.Subscript(value=name, slice=ast.Tuple(elts=inside)):
            return _generic(_last(name), inside, alias)
        case ast.Subscript(value=name, slice=inside):
            return _generic(_last(name), [inside], alias)
    word = _last(node)
    if word in PLAIN:
        return PLAIN[word]
    behind = alias(word)
    return kind_of(behind, alias) if isinstance(behind, ast.expr) else behind or NODE


def _last(name: ast.expr) -> str:
    return ast.unparse(name).rpartition(".")[2]


def _generic(word: str, inside: Sequence[ast.expr], alias: Alias) -> Kind:
    if word == "Literal":
        return {"enum": [ast.literal_eval(item) for item in inside]}
    if word == "Annotated":
        return {**kind_of(inside[0], alias), **{k: v for call in inside[1:] for k, v in _range(call).items()}}
    kinds = [kind_of(item, alias) for item in inside if ast.unparse(item) != "..."]
    if word in ("Optional", "Union"):
        return either([*kinds, *([NULL] * (word == "Optional"))])
    if word.lower() in LISTS:
        fixed = word.lower() == "tuple" and len(kinds) == len(inside)
        return {"type": "array", "items": either(kinds)} | (
            {"minItems": len(kinds), "maxItems": len(kinds)} if fixed else {}
        )
    if word in ("Mapping", "dict"):
        return {"type": "object", "additionalProperties": kinds[1]}
    return PLAIN.get(word, NODE)


RANGES: Mapping[str, Mapping[str, str]] = {
    "Number": {"low": "minimum", "high": "maximum"},
    "Word": {"pattern": "pattern", "said": "description"},
}
"""What the classes of `lmsd.errors` in an annotation add to its kind, by their fields."""


def _range(call: ast.expr) -> Kind:
    match call:
        case ast.Call(func=ast.Name(id=word), args=args, keywords=more) if word in RANGES:
            names = RANGES[word]
            given = [*zip(names, args, strict=False), *((item.arg, item.value) for item in more)]
            return {names[str(name)]: ast.literal_eval(value) for name, value in given}
    return {}


def either(kinds: Sequence[Kind]) -> Kind:
    """A union, flat; one that may be null says so last."""
    flat: list[Kind] = []
    for kind in (part for each in kinds for part in parts(each)):
        if kind not in flat:
            flat.append(kind)
    flat.sort(key=lambda kind: kind == NULL)
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def parts(kind: Kind) -> Sequence[Kind]:
    """The kinds that one is any of: itself, mostly."""
    return kind.get("anyOf") or [kind]


def like(default: Any) -> Kind:
    """The kind of an option that only its value describes; null takes anything."""
    if isinstance(default, list):
        return {"type": "array", "items": like(default[0]) if default else ANYTHING}
    if isinstance(default, str):
        return either([PLAIN["str"], NULL])
    return PLAIN.get(type(default).__name__, ANYTHING) if default is not None else ANYTHING


PLAINLY: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str, int, float, bool),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


def fits(kind: Kind, value: Any) -> bool:
    """Whether a plain value is of a kind; a number is read as a word, too."""
    if "anyOf" in kind:
        return any(fits(part, value) for part in kind["anyOf"])
    if "enum" in kind:
        return any(value == word and type(value) is type(word) for word in kind["enum"])
    if not kind:
        return True
    if kind == NODE or "$ref" in kind:
        return type(value) in (dict, list)
    if type(value) not in PLAINLY[kind["type"]]:
        return False
    if kind["type"] == "array":
        counted = kind.get("minItems", 0) <= len(value) <= kind.get("maxItems", inf)
        return counted and all(fits(kind["items"], item) for item in value)
    if kind["type"] in ("integer", "number"):
        return bool(kind.get("minimum", -inf) <= value <= kind.get("maximum", inf))
    return re.search(kind.get("pattern", ""), str(value)) is not None


def words(kind: Kind, *, example: bool = True) -> str:
    """What a value should be, as in "seed=abc is not ..."."""
    given = parts(kind)
    if len(given) > 1:
        plain = any(part not in (NODE, NULL) for part in given)  # then a node is a rarity
        shown = [part for part in given if not (plain and part == NODE)]
        return (
            words(shown[0], example=example)
            if len(shown) == 1
            else " or ".join(words(part, example=False) for part in shown)
        )
    if "description" in kind:
        return str(kind["description"])
    if "enum" in kind:
        return f"one of {', '.join(map(str, kind['enum']))}"
    name = kind.get("type")
    if name == "array":
        return _list(kind) + ", e.g. [1, 2]" * (
            example and kind["items"].get("type") in ("integer", "number")
        )
    if name in ("integer", "number"):
        shown_as = "1000" if name == "integer" else "1e-4"
        return f"a {NAMES[str(name)]}{_bounds(kind) or f', e.g. {shown_as}' * example}"
    if "additionalProperties" in kind:
        return f"a mapping, each {words(kind['additionalProperties'], example=False)}"
    if kind == NULL:
        return "null"
    return NAMES.get(str(name), "a node with _target_" if kind else "anything")


def _bounds(kind: Kind) -> str:
    low, high = kind.get("minimum", -inf), kind.get("maximum", inf)
    if low > -inf:
        return f" from {low:g} to {high:g}" if high < inf else f" of at least {low:g}"
    return f" of at most {high:g}" if high < inf else ""


def _list(kind: Kind) -> str:
    count, item = kind.get("minItems"), kind["items"]
    of = f"{count} " if count else ""
    if item.get("type") in ("integer", "number"):
        return f"a list of {of}{NAMES[item['type']]}s{_bounds(item)}"
    return f"a list{f' of {count}' if count else ''}, each {words(item, example=False)}"


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def textual(kind: Kind) -> bool:
    """Whether it takes words, and no number: 12e4 is one too, then."""
    names = [part.get("type", "" if part else "anything") for part in parts(kind)]
    return "string" in names and not any(
        name in names for name in ("integer", "number", "boolean", "anything")
    )
