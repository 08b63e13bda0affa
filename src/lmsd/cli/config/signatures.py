"""What constructors take, read from their source without running it: the schema of the config groups.

A group's YAML names a constructor (`_target_`) and its arguments. Their types stand once, as annotations
beside the code that reads them, and their meaning in its docstring ("width: of the residual stream; depth:
blocks"). Parsing that source costs milliseconds where importing it would cost seconds of torch.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

from lmsd.cli.config.kinds import Kind, kind_of
from lmsd.errors import UserError
from lmsd.spec import RENAMED, allowed_names, forbidden


@dataclass(frozen=True)
class Found:
    """A definition and the module that it stands in."""

    node: ast.stmt
    module: str


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor: its name, its annotation, where; worked out when it is asked for."""

    name: str
    annotation: ast.expr | None
    found: Found

    @cached_property
    def kind(self) -> Kind:
        """What values it takes."""
        return kind_of(self.annotation, self._alias)

    def _alias(self, name: str) -> ast.expr | None:
        there = find(self.found.module, name, ours=True)
        return getattr(there.node, "value", None) if there else None

    @property
    def about(self) -> str:
        """What the docstring says of it, or nothing."""
        return described(ast.get_docstring(self.found.node) or "", self.name)  # type: ignore[arg-type]


@cache
def tree(module: str) -> ast.Module | None:
    """The parsed source of a module, None where there is none."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)  # of a top-level name: imports nothing
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, *rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    if spec and spec.origin and not rest and spec.origin.endswith(".py"):
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return None


LARGE = ("torch", "lightning")
"""Libraries whose type aliases are not looked up: that would parse them whole."""


@cache
def find(module: str, name: str, *, ours: bool = False) -> Found | None:
    """Where `name` of a module is defined, through imports that re-export it; ours: in no large library."""
    parsed = None if ours and module.split(".")[0] in LARGE else tree(module)
    for node in parsed.body if parsed else []:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Found(node, module)
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return Found(node, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(_origin(node, module), alias.name, ours=ours)
    return None


def _origin(node: ast.ImportFrom, module: str) -> str:
    """The absolute name of the module that an import reads from."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if _is_package(module) else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _is_package(module: str) -> bool:
    top, *rest = module.split(".")
    spec = find_spec(top)
    folders = (spec.submodule_search_locations or []) if spec else []
    return any(Path(folder, *rest, "__init__.py").is_file() for folder in folders)


def check_target(target: str) -> None:
    """What `lmsd.spec.locate` refuses, as far as that shows without importing anything."""
    target = RENAMED.get(target, target)
    module, _, name = target.rpartition(".")
    if not target.startswith(allowed_names()) or not all(part.isidentifier() for part in target.split(".")):
        raise forbidden(target)
    if target.startswith("lmsd."):
        found = find(module, name)
        if found is None:
            raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
        if not f"{found.module}.".startswith(allowed_names()):
            raise forbidden(target)


@cache
def arguments(target: str) -> Mapping[str, Argument] | None:
    """The arguments of a constructor by name; None where its source is not there or it takes any name."""
    module, _, name = RENAMED.get(target, target).rpartition(".")
    found = find(module, name) if module else None
    if found is None:
        return None
    if isinstance(found.node, ast.FunctionDef):
        return _of(found.node, found)
    if not isinstance(found.node, ast.ClassDef):
        return None
    own = [node for node in found.node.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    if own:
        return _of(own[0], found)
    fields = [node for node in found.node.body if isinstance(node, ast.AnnAssign)]
    if fields and any("dataclass" in ast.dump(item) for item in found.node.decorator_list):
        named = {node.target.id: node.annotation for node in fields if isinstance(node.target, ast.Name)}
        return _table(named, found)
    bases = [ast.unparse(base).partition("[")[0] for base in found.node.bases]
    inherited = [base for base in bases if base not in ("ABC", "Protocol", "Generic", "object")]
    return arguments(f"{found.module}.{inherited[0]}") if inherited else {}


def _of(function: ast.FunctionDef, found: Found) -> Mapping[str, Argument] | None:
    if function.args.kwarg is not None:
        return None
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return _table({arg.arg: arg.annotation for arg in given if arg.arg != "self"}, found)


def _table(named: Mapping[str, ast.expr | None], found: Found) -> Mapping[str, Argument]:
    return {name: Argument(name, node, found) for name, node in named.items()}


def described(text: str, name: str) -> str:
    """What a docstring in our form says of an argument: "width, depth: of the net; heads: how many"."""
    flat = " ".join(text.split())
    match = re.search(rf"(?:^|[;.:] )(?:\w+, )*{re.escape(name)}(?:, \w+)*: (.+?)(?:;|[.:](?= |$)|$)", flat)
    return match.group(1) if match else ""
