"""What options may be, read from the source of what takes them: nothing is imported or run to find out.

A node names a constructor (`_target_`) and its arguments. Their types, ranges and defaults stand once, beside
the code that reads them, and their meaning in its docstring ("width: of the residual stream; depth: blocks").
Parsing that source costs milliseconds where importing it would cost seconds of torch. A kind is JSON Schema:

    int                                  {"type": "integer"}
    Annotated[int, Number(1)] | None     {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
    Literal["fd", "exact"]               {"enum": ["fd", "exact"]}
    Sequence[float]                      {"type": "array", "items": {"type": "number"}}

An object that the configuration describes (a mapping with `_target_`) is a NODE.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any

from lmsd.spec import RENAMED

Kind = Mapping[str, Any]
Alias = Callable[[str], Any]
"""What a name in an annotation stands for: the value of a type alias, a kind, or nothing that is known."""

ROOT = "lmsd.cli.config.settings.Train"
"""What stands for the configuration itself: a class whose fields are its options."""
SECTIONS = ROOT.rpartition(".")[0]
DEFINED = "#/$defs/"
"""What the reference of a kind to a class begins with: {"$ref": "#/$defs/lmsd.cli.config.settings.Clip"}."""
LARGE = ("torch", "lightning", "torchmetrics")
"""Libraries whose defaults stay theirs, and whose type aliases are not looked up: each would be parsed."""

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
    "_PATH": {"type": "string", "format": "path"},  # Lightning's alias, whose library is not read
    "timedelta": {"type": "string"},
    "Any": ANYTHING,
    "None": NULL,
    "NoneType": NULL,
}
LISTS = ("sequence", "list", "tuple", "iterable")
RANGES = {
    "Number": {"low": "minimum", "high": "maximum"},
    "Word": {"pattern": "pattern", "said": "description"},
}
"""What the classes of `lmsd.errors` in an annotation add to its kind, by their fields."""
NUMBERS = ("integer", "number")
NAMES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "one word"}
TAKES = {
    "integer": (int,),
    "number": (int, float),
    "string": (str, int, float, bool),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


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
        case ast.Subscript(value=name, slice=item):
            return _generic(_last(name), [item], alias)
    word = _last(node)
    if word in PLAIN:
        return PLAIN[word]
    match alias(word):
        case ast.expr() as behind:
            return kind_of(behind, alias)
        case behind:
            return behind or NODE


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
        count = {"minItems": len(kinds), "maxItems": len(kinds)} if fixed else {}
        return {"type": "array", "items": either(kinds), **count}
    if word in ("Mapping", "dict"):
        return {"type": "object", "additionalProperties": kinds[1]}
    return PLAIN.get(word, NODE)


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
    flat.sort(key=NULL.__eq__)
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def parts(kind: Kind) -> Sequence[Kind]:
    """The kinds that one is any of: itself, mostly."""
    return kind.get("anyOf") or [kind]


def like(default: Any) -> Kind:
    """The kind of an option that only its value describes; null takes anything."""
    match default:
        case None:
            return ANYTHING
        case [*items]:
            return {"type": "array", "items": like(items[0]) if items else ANYTHING}
        case str():
            return either([PLAIN["str"], NULL])
    return PLAIN.get(type(default).__name__, ANYTHING)


def fits(kind: Kind, value: Any) -> bool:
    """Whether a plain value is of a kind; a number is read as a word, too."""
    if "anyOf" in kind:
        return any(fits(part, value) for part in kind["anyOf"])
    if "enum" in kind:
        return any(value == word and type(value) is type(word) for word in kind["enum"])
    if kind == NODE or "$ref" in kind:
        return type(value) in (dict, list)
    name = kind.get("type")
    if name is None or type(value) not in TAKES[name]:
        return name is None
    if name == "array":
        counted = kind.get("minItems", 0) <= len(value) <= kind.get("maxItems", inf)
        return counted and all(fits(kind["items"], item) for item in value)
    if name in NUMBERS:
        return bool(kind.get("minimum", -inf) <= value <= kind.get("maximum", inf))
    return re.search(kind.get("pattern", ""), str(value)) is not None


def words(kind: Kind, *, example: bool = True) -> str:
    """What a value should be, as in "seed=abc is not ..."."""
    given = parts(kind)
    if len(given) > 1:
        plain = any(part not in (NODE, NULL) for part in given)  # then a node is a rarity
        shown = [part for part in given if not (plain and part == NODE)]
        return " or ".join(words(part, example=example and len(shown) == 1) for part in shown)
    if "description" in kind:
        return str(kind["description"])
    if "enum" in kind:
        return f"one of {', '.join(map(str, kind['enum']))}"
    name = str(kind.get("type"))
    if name == "array":
        item, count = kind["items"], f" of {kind['minItems']}" if "minItems" in kind else ""
        if item.get("type") not in NUMBERS:
            return f"a list{count}, each {words(item, example=False)}"
        of = count or " of"
        return f"a list{of} {NAMES[item['type']]}s{_bounds(item)}{', e.g. [1, 2]' * example}"
    if name in NUMBERS:
        shown_as = "1000" if name == "integer" else "1e-4"
        return f"a {NAMES[name]}{_bounds(kind) or f', e.g. {shown_as}' * example}"
    if "additionalProperties" in kind:
        return f"a mapping, each {words(kind['additionalProperties'], example=False)}"
    return "null" if kind == NULL else NAMES.get(name, "a node with _target_" if kind else "anything")


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _bounds(kind: Kind) -> str:
    low, high = kind.get("minimum", -inf), kind.get("maximum", inf)
    if low > -inf:
        return f" from {low:g} to {high:g}" if high < inf else f" of at least {low:g}"
    return f" of at most {high:g}" if high < inf else ""


class Unread:
    """Stands for a default that is no plain value, or for none at all."""


@dataclass(frozen=True)
class Found:
    """A definition and the module that it stands in."""

    node: ast.stmt
    module: str

    @cached_property
    def doc(self) -> str:
        """Its docstring, also one that is set after it: AdamW.__doc__ = ..."""
        match self.node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) as node:
                parsed, own = tree(self.module), ast.get_docstring(node)
                for other in parsed.body if parsed and not own else ():
                    match other:
                        case ast.Assign(targets=[target]) if ast.unparse(target) == f"{name}.__doc__":
                            texts = (part for part in ast.walk(other.value) if type(part) is ast.Constant)
                            return "".join(str(part.value) for part in texts)
                return own or ""
        return ""

    def behind(self, name: str) -> Any:
        """What a name in its module stands for: the value of an alias, or the kind of a section."""
        match find(self.module, name, ours=True):
            case Found(node=ast.ClassDef(), module=module) if module == SECTIONS:
                return {"$ref": f"{DEFINED}{module}.{name}"}
            case Found(node=ast.AnnAssign(value=value) | ast.Assign(value=value)):
                return value
        return None


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: its name, annotation and default, and where it stands.

    said: what the line below a field says of it.
    """

    name: str
    annotation: ast.expr | None
    value: ast.expr | None
    found: Found
    said: str = ""

    @cached_property
    def kind(self) -> Kind:
        """What values it takes."""
        return kind_of(self.annotation, self.found.behind)

    @cached_property
    def default(self) -> Any:
        """The default as plain data, {} of a section; Unread for none, or one that is no plain value."""
        if "$ref" in self.kind:
            return {}
        value = self.value
        match value:
            case ast.Name(id=name):
                value = self.found.behind(name)
        try:
            plain = Unread if value is None else ast.literal_eval(value)
        except ValueError:
            return Unread
        return list(plain) if type(plain) is tuple else plain

    @property
    def filled(self) -> bool:
        """Whether a whole configuration holds it: the defaults of large libraries stay theirs."""
        return self.found.module.partition(".")[0] not in LARGE and self.default is not Unread

    @property
    def about(self) -> str:
        """One line on it, or nothing."""
        return self.said or described(self.found.doc, self.name)


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor by name; more: whether it takes others too."""

    arguments: Mapping[str, Argument]
    more: bool = False


@cache
def tree(module: str) -> ast.Module | None:
    """The parsed source of a module, None where there is none."""
    path = source(module)
    return None if path is None else ast.parse(path.read_text(encoding="utf-8"))


@cache
def source(module: str) -> Path | None:
    """The file of a module, without importing anything."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    folders = (spec.submodule_search_locations or []) if spec else []
    places = [Path(folder, *rest) for folder in folders]
    files = [file for path in places for file in (path / "__init__.py", path.with_suffix(".py"))]
    if spec and spec.origin and not rest:
        files.append(Path(spec.origin))
    return next((file for file in files if file.suffix == ".py" and file.is_file()), None)


@cache
def find(module: str, name: str, *, ours: bool = False) -> Found | None:
    """Where `name` of a module is defined, through imports that re-export it; ours: in no large library."""
    parsed = None if ours and module.split(".")[0] in LARGE else tree(module)
    for node in parsed.body if parsed else []:
        match node:
            case (
                ast.ClassDef(name=said)
                | ast.FunctionDef(name=said)
                | ast.AnnAssign(target=ast.Name(id=said))
                | ast.Assign(targets=[ast.Name(id=said)])
            ) if said == name:
                return Found(node, module)
            case ast.ImportFrom(names=names):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return find(_origin(node, module), alias.name, ours=ours)
    return None


def _origin(node: ast.ImportFrom, module: str) -> str:
    """The absolute name of the module that an import reads from."""
    if not node.level:
        return node.module or ""
    path = source(module)
    package = module.split(".")[: None if path is not None and path.name == "__init__.py" else -1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


@cache
def signature(target: str) -> Signature | None:
    """What a constructor takes; None where its source is not there."""
    module, _, name = RENAMED.get(target, target).rpartition(".")
    match found := find(module, name) if module else None:
        case Found(node=ast.FunctionDef() as function):
            return _of(function, found)
        case Found(node=ast.ClassDef(body=body, bases=bases, decorator_list=decorators)):
            pass
        case _:
            return None
    for node in body:
        match node:
            case ast.FunctionDef(name="__init__"):
                return _of(node, found)
    names = [ast.unparse(base).partition("[")[0] for base in bases]
    inherited = [base for base in names if base not in ("ABC", "Protocol", "Generic", "object", "nn.Module")]
    above = signature(f"{found.module}.{inherited[0]}") if inherited else Signature({})
    fields = found.module == SECTIONS or any("dataclass" in ast.unparse(item) for item in decorators)
    if above is None or not fields:
        return above
    own = dict(above.arguments)
    for node, below in zip(body, [*body[1:], ast.Pass()], strict=True):
        match node, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                own[name] = Argument(name, node.annotation, node.value, found, " ".join(text.split()))
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                own[name] = Argument(name, node.annotation, node.value, found)
    return Signature(own, above.more)


def _of(function: ast.FunctionDef, found: Found) -> Signature:
    given = function.args
    ordered = [*given.posonlyargs, *given.args]
    defaults = [*([None] * (len(ordered) - len(given.defaults))), *given.defaults, *given.kw_defaults]
    named = zip([*ordered, *given.kwonlyargs], defaults, strict=True)
    known = {arg.arg: Argument(arg.arg, arg.annotation, value, found) for arg, value in named}
    known.pop("self", None)
    return Signature(known, given.kwarg is not None)


def described(text: str, name: str) -> str:
    """What a docstring says of an argument, in our form or another: "lr: rate;", "lr (float): rate"."""
    flat, word = " ".join(text.split()), re.escape(name)
    ours = rf"(?:^|[;.:] )(?:\w+, )*{word}(?:, \w+)*: (.+?)(?:;|[.:](?= |$)|$)"
    others = rf"(?:^| ){word} \([^)]*\): (.+?)(?: \(default|[.;:](?= |$)|$)"
    match = re.search(ours, flat) or re.search(others, flat)
    return match[1] if match else ""
