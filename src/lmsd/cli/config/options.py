"""Options of the small verbs: `key=value` words checked against a dataclass, in the grammar of `train`."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.types import Override

from lmsd.cli.config.compose import as_list, check_choice, parse, parse_sweep
from lmsd.cli.config.folders import groups
from lmsd.cli.config.kinds import Kind, Number
from lmsd.cli.config.schema import refuse
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError

Options = TypeVar("Options")

LIMITS: Mapping[str, Kind] = {
    "steps": Number(1),
    "guidance": Number(-1000, 1000, whole=False),
    "interval": Number(0, whole=False),
    "seed": Number(0, 2**63 - 1),
    "seeds": Number(0, 2**63 - 1),
    "strength": Number(0.01, 1, whole=False),
    "n": Number(2),
    "images": Number(1),
    "image_size": Number(1),
}
"""What the options of that name may be, whichever verb has them; of a list, each item."""


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
    """One way of sampling; ema: "ema" for the first average, a half-life in images, or "raw".

    interval: the times (low, high) of the schedule at which guidance acts; empty: the run's own.
    """

    steps: int | None = None
    guidance: float | None = None
    interval: tuple[float, ...] = ()
    ema: str = "ema"


def read(kind: type[Options], words: list[str], *, verb: str, prefix: str = "") -> Options:
    """An instance of the dataclass `kind`; unknown names and wrong values are refused in one sentence.

    prefix: what stands before every name on the command line.
    """
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for word in words:
        if "=" not in word:
            named = next((name for name in (word, "run") if name in known), None)
            ways = "" if named is None else f", e.g. {named}={'...' if named == word else word}"
            raise UserError(f"cannot read '{word}': write option=value{ways}")
        raw = as_typed(word, hints, prefix)
        if raw is not None:
            values.update(raw)
            continue
        override = parse_sweep(word)
        name = str(override.key_or_group).removeprefix(prefix)
        if name not in known:
            listed = f"{nearest(name, known)}; options: {', '.join(known)}"
            raise UserError(f"unknown option '{prefix}{name}' of lmsd {verb}{listed}")
        if override.is_sweep_override():
            raise UserError(f"'{word}' gives several values; {_one_way(override, hints[name])}")
        text = word.partition("=")[2]
        values[name] = convert(f"{prefix}{name}", override.value(), hints[name], text=text)
        if values[name] == () and known[name].default != ():
            raise UserError(f"{prefix}{name}=[] is empty: give at least one")
    missing = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and name not in values
    ]
    if missing:
        raise UserError(f"lmsd {verb} needs {missing[0]}=...; options: {', '.join(known)}")
    if values.get("sampler") is not None:
        check_choice(parse(f"sampler={values['sampler']}"), groups())
    return kind(**values)


_TEXTS = (str, Path)


def as_typed(word: str, hints: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    """A text that the grammar does not take (it has 。 # % @ and the like), as it stands; None: it takes it.

    Lists and quoted texts are the grammar's, and what it says of them stands, with the quotes that mend it.
    """
    key, _, text = word.partition("=")
    name = key.removeprefix(prefix)
    hint = hints.get(name)
    kinds = {hint, *get_args(hint)}
    try:
        parse_sweep(word)
    except UserError as error:
        kind = next((kind for kind in _TEXTS if kind in kinds), None)
        if kind is None:
            raise
        listed = text.startswith("[") and text.endswith("]")
        if listed and get_origin(hint) is tuple:
            raise UserError(f"cannot read '{word}': {_quoted(key, text)}") from error
        if text[:1] in ("'", '"', "[", "{"):
            raise
        return {name: (kind(text),) if get_origin(hint) is tuple else kind(text)}
    return None


def _quoted(key: str, text: str) -> str:
    """How to write a list whose items the grammar does not take, for any shell."""
    items = [item.strip().strip("'\"") for item in text[1:-1].split(",")]
    if any(char in text for char in "'\"$`!\\"):
        return f"write them into a text file, one a line, and give {key}=FILE.txt"
    listed = ", ".join(f"'{item}'" for item in items)
    return f'quote every item, {key}="[{listed}]", or write them into a text file: {key}=FILE.txt'


def _one_way(override: Override, hint: Any) -> str:
    """What to write in place of values by commas."""
    key, _, value = str(override.input_line).partition("=")
    if get_origin(hint) is tuple:
        return f"write {as_list(override)}"
    worded = {str, Path} & {hint, *get_args(hint)}
    return f"{key} takes one" + (f"; commas within it are quoted: {key}=\"'{value}'\"" if worded else "")


def convert(name: str, value: Any, hint: Any, *, text: str | None = None) -> Any:
    """A parsed value as the option's type: X | None, tuple[X, ...], Literal, or a plain type.

    text: as it was typed.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kind = next(kind for kind in inner if kind is not type(None))
        return None if value is None else convert(name, value, kind, text=text)
    if origin is tuple:  # a single value is a sequence of one
        one = not isinstance(value, list)
        return tuple(
            convert(name, item, inner[0], text=text if one else None) for item in ([value] if one else value)
        )
    if origin is Literal:
        if value not in inner:
            hint = nearest(str(value), map(str, inner))
            raise UserError(f"{name}={value} is not one of {', '.join(map(str, inner))}{hint}")
        return value
    return scalar(name, value, hint, text=text)


def scalar(name: str, value: Any, kind: type, *, text: str | None = None) -> Any:
    """A parsed value as bool, int, float, Path or text; a word that looks like a number stays as typed."""
    if value is None or isinstance(value, list | dict):
        shown = "null" if value is None else text or value
        raise UserError(f"{name}={shown} is not one value: give {name}=...")
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"{name}={value} is not true or false")
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e5
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise UserError(f"{name}={value} is not an integer, e.g. 1000")
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{name}={value} is not a number, e.g. 0.5")
    limit = LIMITS.get(name.rpartition(".")[2])
    if limit is not None:
        refuse(name, value, limit)
    if kind in (bool, int, float):
        return kind(value)
    return kind(value if isinstance(value, str) else text or str(value))
