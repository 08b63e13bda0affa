"""What an option may be: numbers, words, lists and their like, and how to say so.

A kind answers two questions, `fits(value)` and `words()`: "seed=abc is not a whole number of at least 0".
`kind_of` reads one off an annotation, `like` off a default.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol


class Kind(Protocol):
    """What values an option takes."""

    def fits(self, value: Any) -> bool:
        """Whether a plain value is of this kind."""
        ...

    def words(self) -> str:
        """What the value should be, as in "is not ..."."""
        ...


@dataclass(frozen=True)
class Number:
    """A number in [low, high], whole or not; null: may also be null; many: a list of them."""

    low: float = 0
    high: float = inf
    whole: bool = True
    null: bool = False
    many: int | Literal["any"] | None = None

    def fits(self, value: Any) -> bool:
        """Whether a value is such a number, or such a list."""
        if value is None:
            return self.null
        if self.many is not None:
            right_length = isinstance(value, list) and self.many in ("any", len(value))
            return right_length and all(self._one(item) for item in value)
        return self._one(value)

    def _one(self, value: Any) -> bool:
        kinds = int if self.whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def words(self) -> str:
        """What the value should be."""
        kind = "whole number" if self.whole else "number"
        bound = f" from {self.low:g} to {self.high:g}" if self.high < inf else f" of at least {self.low:g}"
        bound = bound if self.low > -inf else f", e.g. {'1000' if self.whole else '1e-4'}"
        if self.many is not None:
            count = "" if self.many == "any" else f"{self.many} "
            return f"a list of {count}{kind}s{bound}, e.g. [1, 2]{' or null' * self.null}"
        return f"a {kind}{bound}{' or null' * self.null}"


@dataclass(frozen=True)
class Choice:
    """One of some words; null: may also be null."""

    options: tuple[str, ...]
    null: bool = False

    def fits(self, value: Any) -> bool:
        """Whether a value is one of them."""
        return self.null if value is None else value in self.options

    def words(self) -> str:
        """What the value should be."""
        return f"one of {', '.join(map(str, self.options))}{' or null' * self.null}"


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def fits(self, value: Any) -> bool:
        """Whether a value is a truth value."""
        return isinstance(value, bool)

    def words(self) -> str:
        """What the value should be."""
        return "true or false"


@dataclass(frozen=True)
class Text:
    """One word or path; a number is read as one; null: may also be null."""

    null: bool = False

    def fits(self, value: Any) -> bool:
        """Whether a value is a word."""
        return self.null if value is None else isinstance(value, str | int | float)

    def words(self) -> str:
        """What the value should be."""
        return f"one word{' or null' * self.null}"


@dataclass(frozen=True)
class Name(Text):
    """A word that a folder can be called by."""

    def fits(self, value: Any) -> bool:
        """Whether a value is such a word."""
        return super().fits(value) and 0 < len(str(value)) <= 100 and "/" not in str(value)

    def words(self) -> str:
        """What the value should be."""
        return "a name of 1 to 100 characters without a slash"


@dataclass(frozen=True)
class Null:
    """Nothing."""

    def fits(self, value: Any) -> bool:
        """Whether a value is null."""
        return value is None

    def words(self) -> str:
        """What the value should be."""
        return "null"


@dataclass(frozen=True)
class Many:
    """A list, each item of one kind; count: of that length."""

    item: Kind
    count: int | None = None

    def fits(self, value: Any) -> bool:
        """Whether a value is such a list."""
        right = isinstance(value, list) and self.count in (None, len(value))
        return right and all(self.item.fits(item) for item in value)

    def words(self) -> str:
        """What the value should be."""
        return f"a list{'' if self.count is None else f' of {self.count}'}, each {_short(self.item)}"


@dataclass(frozen=True)
class Node:
    """An object that the configuration describes: a mapping with `_target_`, or several of them."""

    def fits(self, value: Any) -> bool:
        """Whether a value describes something."""
        return isinstance(value, dict | list)

    def words(self) -> str:
        """What the value should be."""
        return "a node with _target_"


@dataclass(frozen=True)
class Named:
    """A mapping of names to what they stand for."""

    item: Kind

    def fits(self, value: Any) -> bool:
        """Whether every name has a value that fits."""
        return isinstance(value, dict) and all(self.item.fits(item) for item in value.values())

    def words(self) -> str:
        """What the value should be."""
        return f"a mapping of names to {self.item.words()}"


@dataclass(frozen=True)
class Anything:
    """What has no annotation and no default."""

    def fits(self, value: Any) -> bool:
        """Everything does."""
        return True

    def words(self) -> str:
        """What the value should be."""
        return "anything"


@dataclass(frozen=True)
class Either:
    """One of several kinds."""

    kinds: tuple[Kind, ...]

    def fits(self, value: Any) -> bool:
        """Whether a value is of any of them."""
        return any(kind.fits(value) for kind in self.kinds)

    def words(self) -> str:
        """What the value should be."""
        plain = any(not isinstance(kind, Node | Null) for kind in self.kinds)  # then a node is a rarity
        shown = [kind for kind in self.kinds if not (plain and isinstance(kind, Node))]
        return shown[0].words() if len(shown) == 1 else " or ".join(map(_short, shown))


def textual(kind: Kind) -> bool:
    """Whether it takes words, and no number: 12e4 is one too, then."""
    parts = kind.kinds if isinstance(kind, Either) else (kind,)
    worded = any(isinstance(part, Text) for part in parts)
    return worded and not any(isinstance(part, Number | Flag | Anything) for part in parts)


def optional(kind: Kind) -> bool:
    """Whether it is one of several kinds, null among them: an object that may be left out."""
    return isinstance(kind, Either) and Null() in kind.kinds


def _short(kind: Kind) -> str:
    """A kind's words without an example."""
    return kind.words().partition(", e.g.")[0]


PLAIN: dict[str, Kind] = {
    "int": Number(-inf),
    "float": Number(-inf, whole=False),
    "bool": Flag(),
    "str": Text(),
    "Path": Text(),
    "PathLike": Text(),
    "Any": Anything(),
    "None": Null(),
}
LISTS = ("Sequence", "list", "tuple", "Iterable", "List", "Tuple")
Alias = Callable[[str], ast.expr | None]


def kind_of(node: ast.expr | None, alias: Alias) -> Kind:
    """The kind that an annotation names; alias: the value of a type alias, by its name.

    A class that is none of Python's own is described by a node.
    """
    if node is None:
        return Anything()
    if isinstance(node, ast.Constant):
        written = isinstance(node.value, str)  # an annotation in quotes
        return kind_of(ast.parse(str(node.value), mode="eval").body, alias) if written else Null()
    if isinstance(node, ast.BinOp):
        return either([kind_of(node.left, alias), kind_of(node.right, alias)])
    name = node.value if isinstance(node, ast.Subscript) else node
    word = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
    if isinstance(node, ast.Subscript):
        inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _generic(word, inside, alias)
    if word in PLAIN:
        return PLAIN[word]
    behind = alias(word)
    return Node() if behind is None else kind_of(behind, alias)


def _generic(word: str, inside: Sequence[ast.expr], alias: Alias) -> Kind:
    if word == "Literal":
        return Choice(tuple(ast.literal_eval(item) for item in inside))  # -1 is no constant of the grammar
    if word in ("Optional", "Union"):
        return either([*(kind_of(item, alias) for item in inside), *([Null()] * (word == "Optional"))])
    if word in LISTS:
        kinds = [kind_of(item, alias) for item in inside if getattr(item, "value", 0) is not ...]
        fixed = word.lower() == "tuple" and len(kinds) == len(inside)
        return Many(kinds[0], len(kinds) if fixed else None)
    return PLAIN.get(word, Node())


def either(kinds: Sequence[Kind]) -> Kind:
    """A union, flat; one that may be null says so last."""
    flat = dict.fromkeys(part for k in kinds for part in (k.kinds if isinstance(k, Either) else (k,)))
    return Either((*(kind for kind in flat if kind != Null()), *([Null()] * (Null() in flat))))


def like(default: Any) -> Kind:
    """The kind of an option that only its default describes; null takes anything."""
    if isinstance(default, list):
        return Many(like(default[0])) if default else Many(Anything())
    kinds: dict[type, Kind] = {bool: Flag(), int: PLAIN["int"], float: PLAIN["float"], str: Text(null=True)}
    return kinds.get(type(default), Anything())
