"""Which pictures a build takes: a condition on what is known of each, such as `width >= 512 and words < 40`.

Names are the fields that the layout has (those of KEY.json, of a table's row), and for every picture

    width, height    pixels as the file has them    caption    its text
    words, length    words and characters of it     label      its class, by number or by name

The language is Python's: and, or, not, in, not in, ==, !=, <, <=, >, >=, parentheses, numbers, quoted
text, lists, True, False, None and a minus sign. Nothing else is read, and nothing is ever called.
"""

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import Any

from lmsd.data.decode import BadImage
from lmsd.data.text import words_of
from lmsd.errors import UserError


def _known(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """A comparison that does not hold where a value is unknown: None is neither more nor less."""
    return lambda left, right: left is not None and right is not None and compare(left, right)


_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: _known(operator.lt),
    ast.LtE: _known(operator.le),
    ast.Gt: _known(operator.gt),
    ast.GtE: _known(operator.ge),
    ast.In: _known(lambda item, among: item in among),
    ast.NotIn: _known(lambda item, among: item not in among),
}
_READ = (
    ast.Expression,
    ast.BoolOp,
    ast.And,
    ast.Or,
    ast.UnaryOp,
    ast.Not,
    ast.USub,
    ast.Compare,
    *_COMPARED,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.List,
    ast.Tuple,
)


GENERAL = ("caption", "height", "label", "length", "width", "words")
"""The names that every picture has."""


class Where:
    """A condition, read once; a picture that lacks one of its fields has None there, which fails `<` and `>`.

    fields: the names that pictures of the source have besides `GENERAL`. Raises UserError for a text that is
    no condition, or that names another field.
    """

    def __init__(self, text: str, fields: Collection[str] = ()) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(
                f"where={text!r} is no condition; write one like where=\"width>=512 and label=='cat'\""
            ) from error
        for node in ast.walk(self._tree):
            if not isinstance(node, _READ):
                shown = ast.unparse(node)
                raise UserError(
                    f"where={text!r}: {shown!r} is not read; a condition compares fields and values"
                )
            if isinstance(node, ast.Name) and node.id not in {*GENERAL, *fields}:
                names = ", ".join(sorted({*GENERAL, *fields}))
                raise UserError(f"where={text!r}: there is no field {node.id!r}; there are {names}")

    def check(self, facts: Mapping[str, object]) -> None:
        """Raise BadImage with the reason when the condition does not hold for a picture's facts.

        UserError when it compares text with a number.
        """
        caption = str(facts["caption"])
        known = {**facts, "words": len(words_of(caption)), "length": len(caption)}
        try:
            holds = self._value(self._tree.body, known)
        except TypeError as error:
            raise UserError(f"where={self.text!r} compares what cannot be compared ({error})") from error
        if not holds:
            raise BadImage(f"where={self.text!r} does not hold")

    def _value(self, node: ast.expr, facts: Mapping[str, object]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return facts.get(name)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [self._value(part, facts) for part in parts]
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return not self._value(part, facts)
            case ast.UnaryOp(operand=part):
                return -self._value(part, facts)
            case ast.BoolOp(op=ast.Or(), values=parts):
                return any(self._value(part, facts) for part in parts)
            case ast.BoolOp(values=parts):
                return all(self._value(part, facts) for part in parts)
            case ast.Compare():
                return self._compare(node, facts)
        raise AssertionError(f"{node} was let through")

    def _compare(self, node: ast.Compare, facts: Mapping[str, object]) -> bool:
        values = [self._value(part, facts) for part in (node.left, *node.comparators)]
        return all(
            _COMPARED[type(sign)](left, right)
            for sign, (left, right) in zip(node.ops, pairwise(values), strict=True)
        )
