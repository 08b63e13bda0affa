"""What constructors take, read from their source without running it: the schema of every option.

A node names a constructor (`_target_`) and its arguments. Their types, ranges and defaults stand once, beside
the code that reads them, and their meaning in its docstring ("width: of the residual stream; depth: blocks").
Parsing that source costs milliseconds where importing it would cost seconds of torch.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmsd.cli.config.kinds import Kind, kind_of
from lmsd.errors import UserError
from lmsd.spec import RENAMED, allowed_names, forbidden

ROOT = "lmsd.cli.config.settings.Train"
"""What stands for the configuration itself: a class whose fields are its options."""


DEFINED = "#/$defs/"
"""What the reference of a kind to a class begins with: {"$ref": "#/$defs/lmsd.cli.config.settings.Clip"}."""


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
        if not isinstance(self.node, ast.ClassDef | ast.FunctionDef):
            return ""
        own, parsed, later = ast.get_docstring(self.node), tree(self.module), f"{self.node.name}.__doc__"
        for node in parsed.body if parsed and not own else []:
            match node:
                case ast.Assign(targets=[target], value=value) if ast.unparse(target) == later:
                    texts = (part for part in ast.walk(value) if isinstance(part, ast.Constant))
                    return "".join(str(part.value) for part in texts)
        return own or ""


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: its name, annotation and default, and where it stands."""

    name: str
    annotation: ast.expr | None
    value: ast.expr | None
    found: Found
    said: str = ""

    @cached_property
    def kind(self) -> Kind:
        """What values it takes."""
        return kind_of(self.annotation, self._alias)

    @cached_property
    def default(self) -> Any:
        """The default as plain data; Unread where it has none, or one that is no plain value."""
        value = self.value
        if isinstance(value, ast.Name):
            value = self._alias(value.id)
        try:
            plain = Unread if value is None else ast.literal_eval(value)
        except ValueError:
            return Unread
        return list(plain) if isinstance(plain, tuple) else plain

    def _alias(self, name: str) -> Any:
        there = find(self.found.module, name, ours=True)
        if there and isinstance(there.node, ast.ClassDef) and there.module == ROOT.rpartition(".")[0]:
            return {"$ref": f"{DEFINED}{there.module}.{name}"}
        match there:
            case Found(node=ast.AnnAssign(value=value) | ast.Assign(value=value)):
                return value
        return None

    @property
    def about(self) -> str:
        """What the line below a field says of it, or the docstring; or nothing."""
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


LARGE = ("torch", "lightning", "torchmetrics")
"""Libraries whose type aliases are not looked up: that would parse them whole."""


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
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def check_target(target: str, also: tuple[str, ...] = ()) -> None:
    """What `lmsd.spec.locate` refuses, as far as that shows without importing anything."""
    target = RENAMED.get(target, target)
    module, _, name = target.rpartition(".")
    if not target.startswith((*allowed_names(), *also)) or not all(
        part.isidentifier() for part in target.split(".")
    ):
        raise forbidden(target, also)
    if target.startswith("lmsd."):
        found = find(module, name)
        if found is None:
            raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
        if not f"{found.module}.".startswith(allowed_names()):
            raise forbidden(target)


@cache
def signature(target: str) -> Signature | None:
    """What a constructor takes; None where its source is not there."""
    module, _, name = RENAMED.get(target, target).rpartition(".")
    found = find(module, name) if module else None
    if found is None or isinstance(found.node, ast.FunctionDef):
        return _of(found.node, found) if found else None  # type: ignore[arg-type]
    if not isinstance(found.node, ast.ClassDef):
        return None
    own = [node for node in found.node.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    if own:
        return _of(own[0], found)
    bases = [ast.unparse(base).partition("[")[0] for base in found.node.bases]
    inherited = [base for base in bases if base not in ("ABC", "Protocol", "Generic", "object", "nn.Module")]
    above = signature(f"{found.module}.{inherited[0]}") if inherited else Signature({})
    section = found.module == ROOT.rpartition(".")[0]
    if above is not None and (
        section or any("dataclass" in ast.unparse(item) for item in found.node.decorator_list)
    ):
        own_ones = {
            node.target.id: Argument(node.target.id, node.annotation, node.value, found, _line(below))
            for node, below in zip(found.node.body, [*found.node.body[1:], ast.Pass()], strict=True)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        return Signature({**above.arguments, **own_ones}, above.more)
    return above


def _line(node: ast.stmt) -> str:
    """The text of a statement that is nothing else."""
    match node:
        case ast.Expr(value=ast.Constant(value=str(text))):
            return " ".join(text.split())
    return ""


def _of(function: ast.FunctionDef, found: Found) -> Signature:
    given = function.args
    ordered = [*given.posonlyargs, *given.args]
    defaults = [*([None] * (len(ordered) - len(given.defaults))), *given.defaults, *given.kw_defaults]
    named = zip([*ordered, *given.kwonlyargs], defaults, strict=True)
    return Signature(
        {
            arg.arg: Argument(arg.arg, arg.annotation, value, found)
            for arg, value in named
            if arg.arg != "self"
        },
        given.kwarg is not None,
    )


def described(text: str, name: str) -> str:
    """What a docstring says of an argument, in our form or another: "lr: rate;", "lr (float): rate"."""
    flat = " ".join(text.split())
    match = re.search(rf"(?:^|[;.:] )(?:\w+, )*{re.escape(name)}(?:, \w+)*: (.+?)(?:;|[.:](?= |$)|$)", flat)
    match = match or re.search(
        rf"(?:^| ){re.escape(name)} \([^)]*\): (.+?)(?: \(default|[.;:](?= |$)|$)", flat
    )
    return match.group(1) if match else ""
