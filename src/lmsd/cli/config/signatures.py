"""What values options take, read from the source of the constructors: nothing is imported or run.

A node names a constructor (`_target_`) and its arguments. Their types, ranges and defaults are written once,
next to the code that uses them, and their meaning in its docstring ("width: of the stream; depth: blocks").
Reading that source takes milliseconds; importing it, with torch, would take seconds. A kind is JSON Schema:

    Annotated[int, Number(1)] | None     {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}

An object that the configuration describes (a mapping with `_target_`) is a NODE.
"""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec, resolve_name
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

from lmsd.errors import UserError
from lmsd.spec import RENAMED, allowed

ROOT = "lmsd.cli.config.settings.Train"
"""The class whose fields are the options of the configuration itself."""
SECTIONS = (ROOT.rpartition(".")[0], "lmsd.data.builders.options")
"""Modules whose classes are sections: their fields are options, too."""
DEFINED = "#/$defs/"
"""The prefix by which a kind refers to a class: {"$ref": "#/$defs/lmsd.cli.config.settings.Optim"}."""
LARGE = ("torch", "lightning", "torchmetrics")
"""Libraries whose defaults are not copied and whose type aliases are not looked up, to avoid parsing them."""

TAKES: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str, int, float, bool),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


def named(value: Any) -> bool:
    """Whether a value is a mapping that names a constructor."""
    return type(value) is dict and "_target_" in value


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

    @property
    def sections(self) -> list[str]:
        """The classes whose fields are the options of a node without a constructor."""
        return [str(part["$ref"]).removeprefix(DEFINED) for part in self.parts if "$ref" in part]

    @property
    def holds(self) -> bool:
        """Whether a node with options of its own is allowed."""
        return any(not part or "$ref" in part or "object" in part.get("type", ()) for part in self.parts)

    def takes(self, *types: str) -> bool:
        """Whether any of these JSON Schema types is allowed."""
        return any(part.get("type") in types for part in self.parts)

    def fits(self, value: Any) -> bool:
        """Whether a plain value is allowed; numbers also count as words."""
        if "anyOf" in self:
            return any(part.fits(value) for part in self.parts)
        if "enum" in self:
            return any(value == word and type(value) is type(word) for word in self["enum"])
        if not self or "$ref" in self:
            return not self or type(value) in (dict, list)
        if self == NODE:
            return type(value) is list or named(value)
        if type(value) not in TAKES[self["type"]]:
            return False
        if self["type"] == "array":
            counted = self.get("minItems", 0) <= len(value) <= self.get("maxItems", inf)
            return counted and all(map(self["items"].fits, value))
        if self["type"] in ("integer", "number"):
            return bool(self.get("minimum", -inf) <= value <= self.get("maximum", inf))
        return re.search(self.get("pattern", ""), str(value)) is not None

    def read(self, value: Any, text: str) -> Any:
        """Convert a parsed value: to its text where only words are allowed, 1e6 to a whole number."""
        words = not (ANYTHING in self.parts or self.takes("integer", "number", "boolean"))
        if words and self.takes("string"):
            return text if isinstance(value, int | float) else value
        whole = isinstance(value, float) and value.is_integer() and not self.fits(value)
        return int(value) if whole and self.fits(int(value)) else value


ANYTHING, NULL, NODE = Kind(), Kind(type="null"), Kind(type=["object", "array"])
PLAIN = {
    "int": Kind(type="integer"),
    "float": Kind(type="number"),
    "bool": Kind(type="boolean"),
    "str": Kind(type="string"),
    "timedelta": Kind(type="string"),
    **dict.fromkeys(
        ("Path", "PathLike", "_PATH"), Kind(type="string", format="path")
    ),  # the last is an alias of Lightning's
    **{"Any": ANYTHING, "None": NULL},
}
RANGES = {
    "Number": {"low": "minimum", "high": "maximum"},
    "Word": {"pattern": "pattern", "said": "description"},
    "When": {"option": "when", "values": "among", "unless": "unless", "told": "told"},
}
"""JSON Schema keywords for the fields of the annotation classes in `lmsd.errors`."""


def kind_of(node: ast.expr | None, alias: Callable[[str], Any]) -> Kind:
    """The kind for an annotation; a class other than the built-in ones becomes a node.

    alias: the value of a type alias, a kind, or None, by name.
    """
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


def _generic(word: str, inside: Sequence[ast.expr], alias: Callable[[str], Any]) -> Kind:
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
    """A definition and the module that contains it; match: of its first lines in the module's text."""

    match: re.Match[str]
    module: str

    @cached_property
    def node(self) -> ast.stmt:
        """The statement. Only its own lines are parsed, from its first decorator to the next statement."""
        text, start = self.match.string, self.match.start()
        for end in _NEXT.finditer(text, self.match.end()):
            with suppress(SyntaxError):  # in the middle of a text, whose lines begin anywhere
                return ast.parse(text[start : end.start()]).body[0]
        raise UserError(f"{self.module}: {self.match[0]} cannot be read")

    def behind(self, name: str) -> Any:
        """What a name in its module refers to: the value of an alias, or the kind of a section."""
        found = find(self.module, name, ours=True)
        if found and not found.match["value"]:
            return Kind.of(f"{found.module}.{name}") if found.module in SECTIONS else None
        match found and found.node:
            case ast.AnnAssign(value=value) | ast.Assign(value=value):
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
        value = self.found.behind(self.value.id) if type(self.value) is ast.Name else self.value
        if value is None:
            return {} if "$ref" in self.kind else Unread
        try:
            plain = ast.literal_eval(value)
        except ValueError:
            return Unread
        return list(plain) if isinstance(plain, tuple) else plain

    @property
    def filled(self) -> bool:
        """Whether a completed configuration contains its default, which is not so for large libraries."""
        return self.found.module.partition(".")[0] not in LARGE and self.default is not Unread


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor by name; more: whether it has **kwargs."""

    arguments: Mapping[str, Argument]
    more: bool = False


_DEFINED = re.compile(r"^(?:@.*\n(?:[ )].*\n)*)*(?:class|def) (\w+)|^(?P<value>\w+)(?:: [^\n=]+)? = ", re.M)
_IMPORTS = re.compile(r"^from (\S+) import (\([^)]*\)|.*)", re.M)
_NEXT = re.compile(r"^[^\s#)\]}]|\Z", re.M)


@cache
def source(module: str) -> tuple[str, dict[str, re.Match[str]], list[tuple[str, str]]]:
    """A module's package, the first lines of each of its definitions, and its imports; of its text alone."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = [Path(folder, *rest) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    files += [Path(spec.origin)] if spec and spec.origin and not rest else []
    for file in (file for file in files if file.suffix == ".py" and file.is_file()):
        text = file.read_text(encoding="utf-8")
        known = {match[match.lastindex or 0]: match for match in _DEFINED.finditer(text)}
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        return package, known, _IMPORTS.findall(text)
    return "", {}, []


@cache
def find(module: str, name: str, *, ours: bool) -> Found | None:
    """Find the definition of a name through re-exports; ours: do not look into large libraries."""
    if ours and module.split(".")[0] in LARGE:
        return None
    package, known, imports = source(module)
    if name in known:
        return Found(known[name], module)
    for origin, names in imports:
        for alias in re.sub(r"#.*", "", names).strip("()").split(",") if name in names else ():
            there, _, here = (word.strip() for word in alias.partition(" as "))
            if name == (here or there):
                return find(resolve_name(origin, package), there, ours=ours)
    return None


@cache
def signature(target: str) -> Signature | None:
    """The signature of a constructor; None if its source is not available."""
    module, _, name = RENAMED.get(target, target).rpartition(".")
    found = find(module, name, ours=False) if module else None
    if found is None:
        return None
    match found.node:
        case ast.FunctionDef() as function:
            return _of(function, found)
        case ast.ClassDef() as made:
            decorated = "dataclass" in " ".join(map(ast.unparse, made.decorator_list))
            own, fields = dict[str, Argument](), found.module in SECTIONS or decorated
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


Entry: TypeAlias = tuple[Kind | None, Any, bool, bool, Argument | None]
"""Kind (None: nothing takes it), value or default, is it in a completed tree, is it allowed, its argument."""


def entries(
    kind: Kind | None, node: Any, handed: Sequence[str], libraries: tuple[str, ...]
) -> dict[Any, Entry]:
    """The entries of a node and the other arguments of its constructor by name, or the items of a list.

    A section without a constructor (the root, optim) may also hold the nodes of further roles. handed:
    arguments that come from other parts, so that they are no options; libraries: see `permit`. A tuple
    is a value from the command line and the text that stood for it.
    """
    if isinstance(node, list):
        of = (kind or ANYTHING).get("items", ANYTHING)
        return {place: (of, item, True, _fits(of, item, libraries), None) for place, item in enumerate(node)}
    given: Mapping[str, Any] = node if isinstance(node, dict) else {}
    made, places = "_target_" in given, [given.get("_target_"), *(kind or ANYTHING).sections]
    found = next((signature(str(place)) for place in places if place), None)
    known = {k: v for k, v in found.arguments.items() if k not in handed} if found else {}
    holds = [part for part in kind.parts if part.holds] if kind is not None and not found else []
    more = holds[0].get("additionalProperties", ANYTHING) if holds else None
    more, listed = ANYTHING if found and found.more else more, dict[Any, Entry]()
    for name in [*(name for name in given if name not in known), *known]:
        argument = known.get(name)
        value = given.get(name, argument.default if argument else Unread)
        role = found and not made and named(value)
        private = kind is not None and str(name).startswith("_")
        of = argument.kind if argument else ANYTHING if role or private else more
        left = value is None and made  # not given, which its constructor speaks of
        if of is not None and isinstance(value, tuple):
            value = of.read(*value)
        whole = name in given or (argument is not None and argument.filled)
        listed[name] = (of, value, whole, left or of is None or _fits(of, value, libraries), argument)
    return dict(sorted(listed.items(), key=lambda item: not item[1][2]))


def _fits(kind: Kind, value: Any, libraries: tuple[str, ...]) -> bool:
    """Whether a value is allowed and, if it is a node, its constructor."""
    if named(value):
        try:
            permit(str(value["_target_"]), libraries)
        except UserError:
            return False
    return kind.fits(value)


def permit(target: str, libraries: tuple[str, ...]) -> None:
    """Refuse what `lmsd.spec.locate` would, as far as that can be told without importing anything."""
    module, _, name = RENAMED.get(target, target).rpartition(".")
    ours = module.startswith("lmsd.")
    found = find(module, name, ours=False) if ours else None
    allowed(target, libraries, within=found.module if found else "")
    if ours and found is None:
        raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
