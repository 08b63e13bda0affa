"""The floors of the design: imports go down only, and the heavy libraries stay at their edges."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lmsd"
FLOORS = [
    {"types", "rng", "errors", "arguments", "stops", "files", "flat", "ranks", "spec", "checkpoints"},
    {"process", "nets", "metrics", "features", "data"},
    {"models"},
    {"tuning"},
    {"sampling", "rewards"},
    {"objectives", "evaluation"},
    {"engine", "export", "serving"},
    {"cli"},
]
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
ALLOWED = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "lightning": {"engine"},
    "webdataset": {"data"},
    "diffusers": {"models", "tuning", "rewards", "evaluation", "export"},
    "transformers": {"models", "features", "tuning", "rewards", "evaluation", "export"},
    "peft": {"models", "tuning", "rewards", "evaluation", "export"},
    "fastapi": {"serving"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "wandb": set(),
    "torchvision": set(),
}
LAZY = {"diffusers", "transformers", "peft", "sklearn"}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, with whether the import runs when the file is imported."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inside = at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_import) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.append((child.module or "", at_import))
                if child.module == "lmsd":
                    found.extend((f"lmsd.{alias.name}", at_import) for alias in child.names)
            visit(child, inside and not typing_only)

    visit(ast.parse(path.read_text()), True)
    return found


def package(path: Path) -> str:
    """The floor member a file belongs to: its folder, or its own name on the top level."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return ".".join(("lmsd", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down_only(path: Path) -> None:
    own = package(path)
    if own == "__init__":
        return
    for name, _ in imports(path):
        if name.startswith("lmsd."):
            other = name.split(".")[1]
            if other in FLOOR and other != own:
                assert FLOOR[other] < FLOOR[own] or FLOOR[own] == 0 == FLOOR[other], (
                    f"{module(path)} imports {name}"
                )


@pytest.mark.parametrize("path", FILES, ids=module)
def test_libraries_stay_at_their_edges(path: Path) -> None:
    relative = path.relative_to(SOURCE).as_posix()
    for name, at_import in imports(path):
        library = name.split(".")[0]
        if library in ALLOWED:
            assert any(relative.startswith(place) for place in ALLOWED[library]), (
                f"{relative} imports {library}"
            )
        assert not (library in LAZY and at_import), f"{relative} imports {library} outside a function"


def test_every_package_has_a_floor() -> None:
    assert {package(path) for path in FILES} - {"__init__"} <= set(FLOOR)


def graph_of(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """Who imports whom: those inside functions and under TYPE_CHECKING count like any other."""
    return {
        name: {
            f"{source}.{part}" if f"{source}.{part}" in files else source
            for source, part in imported(path)
            if (f"{source}.{part}" in files or source in files) and source != name
        }
        for name, path in files.items()
    }


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of a file; no name for `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_no_import_cycles() -> None:
    graph = graph_of({module(path): path for path in FILES})
    state: dict[str, int] = {}

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"import cycle: {' -> '.join((*trail, name))}"
        if state.get(name) != 2:
            state[name] = 1
            for other in graph[name]:
                walk(other, (*trail, name))
            state[name] = 2

    for name in graph:
        walk(name, ())


def test_no_address_of_a_registry_and_no_torchvision_in_the_requirements() -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "torchvision==" not in text
        assert "nvidia" not in text


def test_modules_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their bare names."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not {name for name in names if names.count(name) > 1}
