"""What a user did wrong, in one sentence that gives no secret away; and the ranges of options."""

import os
import re
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, get_args

HIDDEN = "***"
"""Stands where a secret was."""

_NAME = re.compile(  # PWD alone is a folder
    r"(^|[_-])(token|secrets?|passw\w*|auth|authorization|credentials?|(api|access|private)key)$"
    r"|[_-](key|pwd)$",
    re.I,
)
_PUBLIC = ("caption_key",)
_USER = re.compile(r"(:/{1,2})[^/\s@'\"]+(?=@)")
_QUERY = re.compile(r"(?<=://)([^\s?'\"]+\?)(?=[^\s'\"]*=)[^\s'\"]+")
_SHORTEST = 6  # of a value in the environment that is looked for


def is_secret(name: str) -> bool:
    """Whether an option or a variable is a secret, judged by the last part of its name."""
    last = name.rpartition(".")[2]
    return last not in _PUBLIC and _NAME.search(last) is not None


def shown(name: str, value: object) -> object:
    """The value of an option as a message may show it."""
    return HIDDEN if value is not None and is_secret(name) else value


def redact(text: str) -> str:
    """Hide users, passwords and signatures in URLs, and the values of secret environment variables."""
    text = _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}", text))
    values = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= _SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


class UserError(ValueError):
    """A mistake in the user's input; one sentence says what is wrong, where, and the way out."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


def one_of(owner: str, name: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of a Literal's, where no type checker has looked."""
    allowed = get_args(choices)
    if value not in allowed:
        raise UserError(f"{owner}: {name}={value!r} is none of {', '.join(map(str, allowed))}")


@dataclass(frozen=True)
class Number:
    """The range of an option, ends included, as a part of its annotation: Annotated[int, Number(1)]."""

    low: float = -inf
    high: float = inf


@dataclass(frozen=True)
class Word:
    """The form of an option that is a word: a regular expression, and its description in messages."""

    pattern: str
    said: str


@dataclass(frozen=True)
class When:
    """When an option is read, as a part of its annotation: while another option of the same constructor has
    one of these values, or, without values, any but `unless`. Typed at another time, it is refused; with
    `told`, since people switch the other one off in a longer command, there is a note alone.
    """

    option: str
    values: tuple[str, ...] = ()
    unless: float | None = None
    told: bool = False


Count = Annotated[int, Number(1)]
Amount = Annotated[int, Number(0)]
Share = Annotated[float, Number(0, 1)]
Measure = Annotated[float, Number(0)]
Seed = Annotated[int, Number(0, 9223372036854775807)]
Guidance = Annotated[float, Number(-1000, 1000)]
