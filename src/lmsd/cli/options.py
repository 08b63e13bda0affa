"""Options of the small verbs: `key=value` words checked against a dataclass, in the grammar of `train`."""

from dataclasses import MISSING, Field, dataclass, fields
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lmsd.cli.compose import parse
from lmsd.cli.suggest import nearest
from lmsd.errors import UserError

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run, what is taken of it, and how its sampling goes; None takes the run's own choice.

    checkpoint: a file name, or the newest.
    """

    run: str
    sampler: str | None = None
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(RunOptions):
    """One way of sampling; ema: "ema" for the first average, a half-life in images, or "raw"."""

    steps: int | None = None
    guidance: float | None = None
    ema: str = "ema"


def read(kind: type[Options], words: list[str], *, verb: str, prefix: str = "") -> Options:
    """An instance of the dataclass `kind`; unknown names and wrong types are refused in one sentence.

    prefix: what stands before every name on the command line.
    """
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for word in words:
        override = parse(word, sweeps=False)
        name = str(override.key_or_group).removeprefix(prefix)
        if name not in known:
            listed = f"{nearest(name, known)}; options: {', '.join(known)}"
            raise UserError(f"unknown option '{prefix}{name}' of lmsd {verb}{listed}")
        values[name] = convert(f"{prefix}{name}", override.value(), hints[name])
    missing = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and name not in values
    ]
    if missing:
        raise UserError(f"lmsd {verb} needs {missing[0]}=...; options: {', '.join(known)}")
    return kind(**values)


def convert(name: str, value: Any, hint: Any) -> Any:
    """A parsed value as the option's type: X | None, tuple[X, ...], Literal, or a plain type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kind = next(kind for kind in inner if kind is not type(None))
        return None if value is None else convert(name, value, kind)
    if origin is tuple:  # a single value is a sequence of one
        items = value if isinstance(value, list) else [value]
        return tuple(convert(name, item, inner[0]) for item in items)
    if origin is Literal:
        if value not in inner:
            hint = nearest(str(value), map(str, inner))
            raise UserError(f"{name}={value} is not one of {', '.join(map(str, inner))}{hint}")
        return value
    return scalar(name, value, hint)


def scalar(name: str, value: Any, kind: type) -> Any:
    """A parsed value as bool, int, float, Path or text."""
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"{name}={value} is not true or false")
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"{name}={value} is not an integer, e.g. 1000")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{name}={value} is not a number, e.g. 0.5")
    return kind(value if kind in (bool, int, float) else str(value))
