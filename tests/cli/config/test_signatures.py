"""Options read from source, without running anything: the same names as inspect finds, and what fits them."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lmsd.cli.config.compose import config_dir
from lmsd.cli.config.listing import about, described
from lmsd.cli.config.refusals import words
from lmsd.cli.config.signatures import (
    Kind,
    Unread,
    kind_of,
    signature,
)
from lmsd.spec import locate, targets

TARGETS = sorted(
    {
        target
        for path in config_dir().rglob("*.yaml")
        for target, _ in targets(OmegaConf.to_container(OmegaConf.load(path)))
    }
)


@pytest.mark.parametrize("target", TARGETS)
def test_names_and_defaults_are_those_of_the_running_code(target: str) -> None:
    live = inspect.signature(locate(target)).parameters
    found = signature(target)
    assert found is not None
    if list(live) == ["args", "kwargs"]:  # of nn.Module, which takes neither
        assert found.arguments == {}
        return
    assert found.more == any(parameter.kind is parameter.VAR_KEYWORD for parameter in live.values())
    assert list(found.arguments) == [name for name, p in live.items() if p.kind is not p.VAR_KEYWORD]
    for name, argument in found.arguments.items():
        default = live[name].default
        if argument.default is not Unread:
            assert argument.default == (list(default) if isinstance(default, tuple) else default)
        elif target.startswith("lmsd."):  # every default of ours is plain, and so an option's
            assert default is inspect.Parameter.empty, f"{target}: {name}={default}"


def test_a_package_of_the_users_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("from .nets import Base as Net, Child\nraise SystemExit\n")
    (package / "types.py").write_text("Mode: TypeAlias = Literal['soft', 'hard']\n")
    (package / "nets.py").write_text(
        "from .types import Mode\n"
        "class Base:\n"
        '    """A net. width, depth: of it; mode: how. Raises nothing."""\n'
        "    def __init__(self, width: int, *, depth: int = 1, mode: Mode = 'soft'): ...\n"
        "class Child(Base):\n    pass\n"
        "def loose(**options): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = signature("package_of_tests.Net")
    assert found is not None
    assert {name: (words(a.kind), about(a)) for name, a in found.arguments.items()} == {
        "width": ("a whole number, e.g. 1000", "of it"),
        "depth": ("a whole number, e.g. 1000", "of it"),
        "mode": ("one of soft, hard", "how"),
    }
    assert [argument.default for argument in found.arguments.values()] == [Unread, 1, "soft"]
    assert signature("package_of_tests.Child") == found
    loose = signature("package_of_tests.nets.loose")
    assert loose is not None
    assert (loose.arguments, loose.more) == ({}, True)
    assert signature("package_of_tests.absent") is signature("nowhere_at_all.Net") is signature("Net") is None
    assert "package_of_tests" not in sys.modules


def test_a_docstring_is_read_in_our_form() -> None:
    text = """Does it.

    widths: channels a level, multiples of 16; r1, r2: on reals, on fakes;
    lazy: every
    n-th. Raises UserError: never."""
    assert described(text, "widths") == "channels a level, multiples of 16"
    assert described(text, "r2") == "on reals, on fakes"
    assert described(text, "lazy") == "every n-th"
    assert described(text, "r") == described(text, "UserError") == ""


ALIASES = {"Mode": "Literal['soft', 'hard']"}


def kind(annotation: str) -> Kind:
    def alias(name: str) -> ast.expr | None:
        return ast.parse(ALIASES[name], mode="eval").body if name in ALIASES else None

    return kind_of(ast.parse(annotation, mode="eval").body, alias)


@pytest.mark.parametrize(
    ("annotation", "takes", "refuses", "said"),
    [
        ("int", [0, -3], [1.5, True, "3", None], "a whole number, e.g. 1000"),
        ("float", [1, 1e-4], [True, "x", [1.0]], "a number, e.g. 1e-4"),
        ("bool", [True], [1, "yes"], "true or false"),
        ("str | None", ["a", 3, None], [["a"], {"a": 1}], "one word or null"),
        ("Optional[int]", [3, None], ["a"], "a whole number or null"),
        ("'int | None'", [3, None], ["a"], "a whole number or null"),
        ("Literal['fd', 'exact']", ["fd"], ["f", None], "one of fd, exact"),
        ("Mode | None", ["soft", None], ["loud"], "one of soft, hard or null"),
        ("Sequence[int]", [[1, 2], []], [1, [1.5], ["a"]], "a list of whole numbers, e.g. [1, 2]"),
        ("tuple[float, float]", [[0.9, 0.99]], [[0.9], 0.9], "a list of 2 numbers, e.g. [1, 2]"),
        ("tuple[int, ...]", [[1], [1, 2, 3]], [1], "a list of whole numbers, e.g. [1, 2]"),
        ("float | Sequence[float]", [0.5, [0.5, 0.1]], ["a", ["a"]], "a number or a list of numbers"),
        ("Sequence[str]", [["a"], []], ["a", [["a"]]], "a list, each one word"),
        ("Annotated[int, Number(1)]", [1, 7], [0, 1.5], "a whole number of at least 1"),
        ("Annotated[float, Number(0, high=1)]", [0, 1], [1.1, -0.1], "a number from 0 to 1"),
        ("Annotated[float, Number(high=0.5)]", [-3], [0.6, float("nan")], "a number of at most 0.5"),
        (
            "Sequence[Annotated[int, Number(1)]]",
            [[1]],
            [[0]],
            "a list of whole numbers of at least 1, e.g. [1, 2]",
        ),
        ("Annotated[str, Word('^[^/]+$', 'a name')]", ["a", 3], ["a/b", ""], "a name"),
        ("Mapping[str, float]", [{"a": 1}], [[1], 3], "a mapping, each a number"),
        ("Literal[1, 3]", [1], [True, 2], "one of 1, 3"),
        ("float | Tensor", [0.5], ["a"], "a number, e.g. 1e-4"),
        ("Denoising | None", [None, {"_target_": "x"}], ["a", 3], "a node with _target_ or null"),
        ("Callable[[int], float]", [{"_target_": "x"}], ["a"], "a node with _target_"),
        ("torch.nn.Module", [{"_target_": "x"}], [3], "a node with _target_"),
        ("Any", ["a", None, 3], [], "anything"),
    ],
)
def test_an_annotation_says_what_fits(annotation: str, takes: list, refuses: list, said: str) -> None:
    found = kind(annotation)
    assert all(found.fits(value) for value in takes)
    assert not any(found.fits(value) for value in refuses)
    assert words(found) == said
