"""Kinds of options: read off annotations and defaults, what fits them, how they are told."""

import ast

import pytest

from lmsd.cli.config.kinds import Anything, Kind, kind_of, like

ALIASES = {"Mode": "Literal['soft', 'hard']"}


def kind(annotation: str) -> Kind:
    def alias(name: str) -> ast.expr | None:
        return ast.parse(ALIASES[name], mode="eval").body if name in ALIASES else None

    return kind_of(ast.parse(annotation, mode="eval").body, alias)


@pytest.mark.parametrize(
    ("annotation", "fits", "refuses", "words"),
    [
        ("int", [0, -3], [1.5, True, "3", None], "a whole number, e.g. 1000"),
        ("float", [1, 1e-4], [True, "x", [1.0]], "a number, e.g. 1e-4"),
        ("bool", [True], [1, "yes"], "true or false"),
        ("str | None", ["a", 3, None], [["a"], {"a": 1}], "one word or null"),
        ("Optional[int]", [3, None], ["a"], "a whole number or null"),
        ("'int | None'", [3, None], ["a"], "a whole number or null"),
        ("Literal['fd', 'exact']", ["fd"], ["f", None], "one of fd, exact"),
        ("Mode | None", ["soft", None], ["loud"], "one of soft, hard or null"),
        ("Sequence[int]", [[1, 2], []], [1, [1.5], ["a"]], "a list, each a whole number"),
        ("tuple[float, float]", [[0.9, 0.99]], [[0.9], 0.9], "a list of 2, each a number"),
        ("tuple[int, ...]", [[1], [1, 2, 3]], [1], "a list, each a whole number"),
        ("float | Sequence[float]", [0.5, [0.5, 0.1]], ["a", ["a"]], "a number or a list, each a number"),
        ("float | Tensor", [0.5], ["a"], "a number, e.g. 1e-4"),
        ("Denoising | None", [None, {"_target_": "x"}], ["a", 3], "a node with _target_ or null"),
        ("Callable[[int], float]", [{"_target_": "x"}], ["a"], "a node with _target_"),
        ("torch.nn.Module", [{"_target_": "x"}], [3], "a node with _target_"),
        ("Any", ["a", None, 3], [], "anything"),
    ],
)
def test_an_annotation_says_what_fits(annotation: str, fits: list, refuses: list, words: str) -> None:
    found = kind(annotation)
    assert all(found.fits(value) for value in fits)
    assert not any(found.fits(value) for value in refuses)
    assert found.words() == words


def test_without_an_annotation_the_default_says_it() -> None:
    assert like(3).fits(4)
    assert not like(3).fits("a")
    assert not like(True).fits(1)
    assert like(0.5).fits(1)
    assert not like([1, 2]).fits(["a"])
    assert not like("a").fits(["a"])
    assert like(None) == like({}) == Anything()
