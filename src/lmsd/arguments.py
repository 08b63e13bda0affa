"""What a public function says of arguments that it cannot work with: a sentence, not what torch raised."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from lmsd.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


class ArgumentError(ValueError):
    """Arguments that a function of ours cannot work with, in one sentence; see `explained`."""


RAW = (TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError, AssertionError, ValueError)
"""What Python, NumPy and torch raise for arguments that a function cannot work with."""


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Let a public function name the argument that it cannot work with, instead of failing deep inside.

    Only a call that has failed is looked at, so a call that works costs nothing. What was raised stays its
    cause. Raises ArgumentError, not UserError: within our own programs this is a fault of ours. A call
    without an argument that it needs, or with one too many, is Python's TypeError as ever.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (UserError, ArgumentError, NotImplementedError):
            raise
        except RAW as error:
            called = error.__traceback__ is not None and error.__traceback__.tb_next is not None
            if not called or "OutOfMemory" in type(error).__name__:
                raise
            given = signature(function).bind(*args, **kwargs).arguments
            told = ", ".join(f"{name}={brief(value)}" for name, value in given.items() if name != "self")
            name = function.__qualname__.removesuffix(".__init__").removesuffix(".__post_init__")
            said = " ".join(str(error).split())[:160] or type(error).__name__
            raise ArgumentError(f"{name} cannot work with {told or given['self']}: {said}") from error

    return call


def brief(value: Any) -> str:
    """An argument in a message: an array by its shape, a list by its length, anything else shortened."""
    match value:
        case str() | int() | float() | None:
            return repr(value)[:40]
        case list() | tuple() if len(value) > 3:
            return f"a {type(value).__name__} of {len(value)}"
        case list() | tuple():
            return f"[{', '.join(map(brief, value))}]"
    try:
        return f"{type(value).__name__} {list(value.shape)}"
    except (AttributeError, TypeError):
        return f"a {type(value).__name__}"
