"""Options of the small verbs: `key=value` words checked against a dataclass, in the grammar of `train`."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from lmsd.cli.compose import parse
from lmsd.cli.suggest import nearest
from lmsd.errors import UserError

Options = TypeVar("Options")


def read(kind: type[Options], words: list[str], *, verb: str) -> Options:
    """An instance of the dataclass `kind`; unknown names and wrong types are refused in one sentence."""
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for word in words:
        override = parse(word)
        name = str(override.key_or_group)
        if name not in known:
            raise UserError(
                f"unknown option '{name}' of lmsd {verb}{nearest(name, known)}; options: {', '.join(known)}"
            )
        values[name] = convert(name, override.value(), hints[name])
    missing = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and name not in values
    ]
    if missing:
        raise UserError(f"lmsd {verb} needs {missing[0]}=...; options: {', '.join(known)}")
    return kind(**values)


def convert(name: str, value: Any, hint: Any) -> Any:
    """A parsed value as the option's type; sequences accept a single value."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None) and kind is not ...]
    if value is None and len(kinds) < len(get_args(hint) or (hint,)):
        return None
    sequence = getattr(hint, "__origin__", None) is tuple or any(
        getattr(k, "__origin__", None) is tuple for k in kinds
    )
    if sequence:
        inner = next((get_args(k)[0] for k in kinds if getattr(k, "__origin__", None) is tuple), kinds[0])
        items = value if isinstance(value, list) else [value]
        return tuple(convert(name, item, inner) for item in items)
    if isinstance(value, bool) or bool in kinds:
        if isinstance(value, bool) and bool in kinds:
            return value
        raise UserError(f"{name}={value} is not {'true or false' if bool in kinds else kinds[0].__name__}")
    if float in kinds and isinstance(value, int | float):
        return float(value)
    if int in kinds:
        if isinstance(value, int):
            return value
        raise UserError(f"{name}={value} is not an integer, e.g. 1000")
    if float in kinds:
        raise UserError(f"{name}={value} is not a number, e.g. 0.5")
    if Path in kinds:
        return Path(str(value))
    choices = [kind for kind in kinds if not isinstance(kind, type)]
    if choices and value not in choices:
        hint = nearest(str(value), map(str, choices))
        raise UserError(f"{name}={value} is not one of {', '.join(map(str, choices))}{hint}")
    return value if choices else str(value)
