"""Kinds of options: read off annotations and defaults, what fits them, how they are told."""

import ast

import pytest

from lmsd.cli.config.kinds import ANYTHING, Kind, fits, kind_of, like, words

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
    assert all(fits(found, value) for value in takes)
    assert not any(fits(found, value) for value in refuses)
    assert words(found) == said


def test_without_an_annotation_the_value_says_it() -> None:
    assert fits(like(3), 4)
    assert not fits(like(3), "a")
    assert not fits(like(True), 1)
    assert fits(like(0.5), 1)
    assert not fits(like([1, 2]), ["a"])
    assert not fits(like("a"), ["a"])
    assert like(None) == like({}) == ANYTHING
