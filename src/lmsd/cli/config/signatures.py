"""What values options take, read from the source of the constructors: nothing is imported or run.

A node names a constructor (`_target_`) and its arguments. Their types, ranges and defaults are written once,
next to the code that uses them, and their meaning in its docstring ("width: of the stream; depth: blocks").
Parsing that source takes milliseconds; importing it, with torch, would take seconds. A kind is JSON Schema:

    int                                  {"type": "integer"}
    Annotated[int, Number(1)] | None     {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    Literal["fd", "exact"]               {"enum": ["fd", "exact"]}
    Sequence[float]                      {"type": "array", "items": {"type": "number"}}

An object that the configuration describes (a mapping with `_target_`) is a NODE.
"""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec, resolve_name
from math import inf
from pathlib import Path
from typing import Any

from lmsd.spec import RENAMED

ROOT = "lmsd.cli.config.settings.Train"
"""The class whose fields are the options of the configuration itself."""
SECTIONS = ROOT.rpartition(".")[0]
DEFINED = "#/$defs/"
"""The prefix by which a kind refers to a class: {"$ref": "#/$defs/lmsd.cli.config.settings.Optim"}."""
LARGE = ("torch", "lightning", "torchmetrics")
"""Libraries whose defaults are not copied and whose type aliases are not looked up, to avoid parsing them."""

NUMBERS = {"integer": "whole number", "number": "number"}
NAMES = {"boolean": "true or false", "string": "one word", "null": "null"}
TAKES: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str, int, float, bool),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


class Kind(dict[str, Any]):
    """The values that an option takes, as JSON Schema."""

    @property
    def parts(self) -> "Sequence[Kind]":
        """The alternatives of a union; otherwise the kind itself."""
        return self.get("anyOf") or [self]

    @classmethod
    def of(cls, name: str) -> "Kind":
        """A node whose options are the fields of a class."""
        return cls({"$ref": f"{DEFINED}{name}"})

    @classmethod
    def like(cls, default: Any) -> "Kind":
        """The kind of an option of which only the value is known; null allows anything."""
        match default:
            case str():
                return either([PLAIN["str"], NULL])
            case [*items]:
                return cls(type="array", items=cls.like(items[0]) if items else ANYTHING)
        return PLAIN.get(type(default).__name__, ANYTHING)

    @property
    def sections(self) -> list[str]:
        """The classes whose fields are the options of a node without a constructor."""
        return [str(part["$ref"]).removeprefix(DEFINED) for part in self.parts if "$ref" in part]

    @property
    def holds(self) -> bool:
        """Whether a node with options of its own is allowed."""
        return any(not part or "$ref" in part or "object" in part.get("type", ()) for part in self.parts)

    @property
    def only_nodes(self) -> bool:
        """Whether only a node with options of its own, or null, is allowed."""
        return all(part.holds or part == NULL for part in self.parts)

    def takes(self, *types: str) -> bool:
        """Whether any of these JSON Schema types is allowed."""
        return any(part.get("type") in types for part in self.parts)

    def fits(self, value: Any) -> bool:
        """Whether a plain value is allowed; numbers also count as words."""
        if "anyOf" in self:
            return any(part.fits(value) for part in self.parts)
        if "enum" in self:
            return any(value == word and type(value) is type(word) for word in self["enum"])
        if not self or self == NODE or "$ref" in self:
            return not self or type(value) in (dict, list)
        if type(value) not in TAKES[self["type"]]:
            return False
        if self["type"] == "array":
            counted = self.get("minItems", 0) <= len(value) <= self.get("maxItems", inf)
            return counted and all(map(self["items"].fits, value))
        if self["type"] in NUMBERS:
            return bool(self.get("minimum", -inf) <= value <= self.get("maximum", inf))
        return re.search(self.get("pattern", ""), str(value)) is not None

    def read(self, value: Any, text: str) -> Any:
        """Convert a parsed value: to its text where only words are allowed, 1e6 to a whole number."""
        words = not (ANYTHING in self.parts or self.takes("integer", "number", "boolean"))
        if words and self.takes("string"):
            return text if isinstance(value, int | float) else value
        whole = isinstance(value, float) and value.is_integer() and not self.fits(value)
        return int(value) if whole and self.fits(int(value)) else value

    def words(self, *, example: bool = True) -> str:
        """The description of allowed values, as in "seed=abc is not ..."."""
        if len(self.parts) > 1:
            plain = any(part not in (NODE, NULL) for part in self.parts)  # then a node is a rarity
            shown = [part for part in self.parts if not (plain and part == NODE)]
            return " or ".join(part.words(example=example and len(shown) == 1) for part in shown)
        if "description" in self:
            return str(self["description"])
        if "enum" in self:
            return f"one of {', '.join(map(str, self['enum']))}"
        name, low, high = str(self.get("type")), self.get("minimum", -inf), self.get("maximum", inf)
        if name in NUMBERS:
            ends = f" of at least {low:g}" if low > -inf else f" of at most {high:g}" if high < inf else ""
            ends = f" from {low:g} to {high:g}" if -inf < low and high < inf else ends
            shown_as = "1000" if name == "integer" else "1e-4"
            return f"a {NUMBERS[name]}{ends or f', e.g. {shown_as}' * example}"
        if name == "array":
            count = f" of {self['minItems']}" if "minItems" in self else ""
            item = self["items"].words(example=False)
            if self["items"].get("type") not in NUMBERS:
                return f"a list{count}, each {item}"
            many = item.removeprefix("a ").replace("number", "numbers", 1)
            return f"a list{count or ' of'} {many}{', e.g. [1, 2]' * example}"
        if "additionalProperties" in self:
            return f"a mapping, each {self['additionalProperties'].words(example=False)}"
        return NAMES.get(name, "a node with _target_" if self else "anything")


ANYTHING, NULL, NODE = Kind(), Kind(type="null"), Kind(type=["object", "array"])
PATH = Kind(type="string", format="path")
PLAIN = {
    "int": Kind(type="integer"),
    "float": Kind(type="number"),
    "bool": Kind(type="boolean"),
    "str": Kind(type="string"),
    "timedelta": Kind(type="string"),
    **dict.fromkeys(("Path", "PathLike", "_PATH"), PATH),  # the last is an alias of Lightning's
    **{"Any": ANYTHING, "None": NULL},
}
RANGES = {
    "Number": {"low": "minimum", "high": "maximum"},
    "Word": {"pattern": "pattern", "said": "description"},
    "When": {"option": "when", "values": "among", "unless": "unless", "told": "told"},
}
"""JSON Schema keywords for the fields of the annotation classes in `lmsd.errors`."""

Alias = Callable[[str], Any]
"""Resolves a name in an annotation: the value of a type alias, a kind, or None."""


def kind_of(node: ast.expr | None, alias: Alias) -> Kind:
    """The kind for an annotation; a class other than the built-in ones becomes a node."""
    match node:
        case None:
            return ANYTHING
        case ast.Constant(value=None):
            return NULL
        case ast.Constant(value=text):  # an annotation in quotes
            return kind_of(ast.parse(str(text), mode="eval").body, alias)
        case ast.BinOp(left=left, right=right):
            return either([kind_of(left, alias), kind_of(right, alias)])
        case ast.Subscript(value=name, slice=inner):
            return _generic(_last(name), inner.elts if isinstance(inner, ast.Tuple) else [inner], alias)
    word = _last(node)
    match PLAIN.get(word) if word in PLAIN else alias(word):
        case ast.expr() as behind:
            return kind_of(behind, alias)
        case Kind() as known:
            return known
    return NODE


def _last(name: ast.expr) -> str:
    return ast.unparse(name).rpartition(".")[2]


def _generic(word: str, inside: Sequence[ast.expr], alias: Alias) -> Kind:
    if word == "Literal":
        return Kind(enum=[ast.literal_eval(item) for item in inside])
    kinds = [kind_of(item, alias) for item in inside if ast.unparse(item) != "..."]
    match word.lower():
        case "annotated":
            return Kind({**kinds[0], **dict(pair for call in inside[1:] for pair in _range(call))})
        case "optional" | "union":
            return either([*kinds, *([NULL] * (word == "Optional"))])
        case "sequence" | "list" | "tuple" | "iterable" as name:
            fixed = name == "tuple" and len(kinds) == len(inside)
            count = {"minItems": len(kinds), "maxItems": len(kinds)} if fixed else {}
            return Kind(type="array", items=either(kinds), **count)
        case "mapping" | "dict":
            return Kind(type="object", additionalProperties=kinds[1])
    return PLAIN.get(word, NODE)


def _range(call: ast.expr) -> Iterable[tuple[str, Any]]:
    match call:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=more) if name in RANGES:
            given = [*zip(RANGES[name], args, strict=False), *((str(item.arg), item.value) for item in more)]
            return [(RANGES[name][key], ast.literal_eval(value)) for key, value in given]
    return ()


def either(kinds: Iterable[Kind]) -> Kind:
    """A flat union, with null last."""
    flat: list[Kind] = []
    for part in (part for kind in kinds for part in kind.parts):
        if part not in flat:
            flat.append(part)
    flat.sort(key=NULL.__eq__)
    return flat[0] if len(flat) == 1 else Kind(anyOf=flat)


class Unread:
    """Marks a missing default, or one that is not a plain value."""


@dataclass(frozen=True)
class Found:
    """A definition and the module that contains it."""

    node: ast.stmt
    module: str

    @cached_property
    def doc(self) -> str:
        """Its docstring, including one assigned later: AdamW.__doc__ = ..."""
        match self.node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) as node:
                own, later = ast.get_docstring(node), f"{name}.__doc__"
                for other in parsed(self.module)[1] if not own else ():
                    match other:
                        case ast.Assign(targets=[target], value=value) if ast.unparse(target) == later:
                            texts = (part for part in ast.walk(value) if isinstance(part, ast.Constant))
                            return "".join(str(part.value) for part in texts)
                return own or ""
        return ""

    def behind(self, name: str) -> Any:
        """What a name in its module refers to: the value of an alias, or the kind of a section."""
        match find(self.module, name, ours=True):
            case Found(node=ast.ClassDef(), module=module) if module == SECTIONS:
                return Kind.of(f"{module}.{name}")
            case Found(node=ast.AnnAssign(value=value) | ast.Assign(value=value)):
                return value
        return None


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: its name, annotation and default, and where it is defined.

    said: the docstring line below a field.
    """

    name: str
    annotation: ast.expr | None
    value: ast.expr | None
    found: Found
    said: str = ""

    @cached_property
    def kind(self) -> Kind:
        """The values that it takes."""
        return kind_of(self.annotation, self.found.behind)

    @cached_property
    def default(self) -> Any:
        """The default as plain data, {} for a section; Unread if missing or not a plain value."""
        match self.value:
            case None:
                return {} if "$ref" in self.kind else Unread
            case ast.Name(id=name):
                value = self.found.behind(name)
            case value:
                pass
        try:
            plain = ast.literal_eval(value)
        except ValueError:
            return Unread
        return list(plain) if isinstance(plain, tuple) else plain

    @property
    def filled(self) -> bool:
        """Whether a completed configuration contains its default, which is not so for large libraries."""
        return self.found.module.partition(".")[0] not in LARGE and self.default is not Unread

    @property
    def about(self) -> str:
        """One line of description, or an empty string."""
        return self.said or described(self.found.doc, self.name)


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor by name; more: whether it has **kwargs."""

    arguments: Mapping[str, Argument]
    more: bool = False


@cache
def parsed(module: str) -> tuple[str, list[ast.stmt]]:
    """The package of a module, for relative imports, and its statements; none without a source file."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = [Path(folder, *rest) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    files += [Path(spec.origin)] if spec and spec.origin and not rest else []
    for file in files:
        if file.suffix == ".py" and file.is_file():
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            return package, ast.parse(file.read_text(encoding="utf-8")).body
    return "", []


@cache
def find(module: str, name: str, *, ours: bool = False) -> Found | None:
    """Find the definition of a name through re-exports; ours: do not look into large libraries."""
    package, body = ("", []) if ours and module.split(".")[0] in LARGE else parsed(module)
    for node in body:
        match node:
            case (
                ast.ClassDef(name=said)
                | ast.FunctionDef(name=said)
                | ast.AnnAssign(target=ast.Name(id=said))
                | ast.Assign(targets=[ast.Name(id=said)])
            ) if said == name:
                return Found(node, module)
            case ast.ImportFrom(names=names, module=origin, level=level):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        there = resolve_name("." * level + (origin or ""), package)
                        return find(there, alias.name, ours=ours)
    return None


@cache
def signature(target: str) -> Signature | None:
    """The signature of a constructor; None if its source is not available."""
    module, _, name = RENAMED.get(target, target).rpartition(".")
    found = find(module, name) if module else None
    match found:
        case Found(node=ast.FunctionDef() as function):
            return _of(function, found)
        case Found(node=ast.ClassDef() as made):
            own, fields = (
                {},
                found.module == SECTIONS or "dataclass" in " ".join(map(ast.unparse, made.decorator_list)),
            )
        case _:
            return None
    for node, below in zip(made.body, [*made.body[1:], ast.Pass()], strict=True):
        match node, below:
            case ast.FunctionDef(name="__init__"), _:
                return _of(node, found)
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                own[name] = Argument(name, node.annotation, node.value, found, " ".join(text.split()))
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                own[name] = Argument(name, node.annotation, node.value, found)
    bases = [ast.unparse(base).partition("[")[0] for base in made.bases]
    inherited = [base for base in bases if base not in ("ABC", "Protocol", "Generic", "object", "nn.Module")]
    above = signature(f"{found.module}.{inherited[0]}") if inherited else Signature({})
    return Signature({**above.arguments, **own}, above.more) if above and fields else above


def _of(function: ast.FunctionDef, found: Found) -> Signature:
    given = function.args
    ordered = [*given.posonlyargs, *given.args]
    defaults = [*([None] * (len(ordered) - len(given.defaults))), *given.defaults, *given.kw_defaults]
    named = zip([*ordered, *given.kwonlyargs], defaults, strict=True)
    known = {arg.arg: Argument(arg.arg, arg.annotation, value, found) for arg, value in named}
    known.pop("self", None)
    return Signature(known, given.kwarg is not None)


def described(text: str, name: str) -> str:
    """What a docstring says about an argument, as in "lr: rate;" or "lr (float): rate"."""
    flat, word = " ".join(text.split()), re.escape(name)
    ours = rf"(?:^|[;.:] )(?:\w+, )*{word}(?:, \w+)*: (.+?)(?:;|[.:](?= |$)|$)"
    others = rf"(?:^| ){word} \([^)]*\): (.+?)(?: \(default|[.;:](?= |$)|$)"
    match = re.search(ours, flat) or re.search(others, flat)
    return match[1] if match else ""
