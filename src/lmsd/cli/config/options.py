"""Options of the small verbs: `key=value` words checked against a dataclass, in the grammar of `train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override

from lmsd.cli.config.compose import as_list, check_choice, parse, parse_sweep
from lmsd.cli.config.schema import coerced, groups, refuse
from lmsd.cli.config.signatures import NULL, Argument, Kind, parts, signature
from lmsd.cli.config.suggest import nearest
from lmsd.errors import Count, Guidance, Measure, UserError

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
    """One way of sampling; ema: "ema" for the first average, a half-life in images, or "raw"; interval: the
    times (low, high) of the schedule at which guidance acts, empty: the run's own.
    """

    steps: Count | None = None
    guidance: Guidance | None = None
    interval: tuple[Measure, ...] = ()
    ema: str = "ema"


def known(kind: type) -> Mapping[str, Argument]:
    """The options that a dataclass stands for, by name."""
    found = signature(f"{kind.__module__}.{kind.__qualname__}")
    return found.arguments if found else {}


def read(kind: type[Options], words: list[str], *, verb: str, prefix: str = "") -> Options:
    """An instance of the dataclass `kind`; unknown names and wrong values are refused in one sentence.

    prefix: what stands before every name on the command line.
    """
    names, values = known(kind), dict[str, Any]()
    listed = f"options: {', '.join(names)}"
    for word in words:
        if "=" not in word:
            named = next((name for name in (word, "run") if name in names), None)
            ways = "" if named is None else f", e.g. {named}={'...' if named == word else word}"
            raise UserError(f"cannot read '{word}': write option=value{ways}")
        key, _, text = word.partition("=")
        name = key.removeprefix(prefix)
        if name in values:
            raise UserError(f"{prefix}{name}= is given twice: give it once")
        try:
            override = parse_sweep(word)
        except UserError as error:
            values[name] = as_typed(key, text, names[name].kind if name in names else {}, error)
            continue
        name = str(override.key_or_group).removeprefix(prefix)
        if name not in names:
            raise UserError(f"unknown option '{prefix}{name}' of lmsd {verb}{nearest(name, names)}; {listed}")
        if override.is_sweep_override():
            raise UserError(f"'{word}' gives several values; {_one_way(override, names[name].kind)}")
        values[name] = convert(f"{prefix}{name}", override.value(), names[name].kind, text=text)
        if values[name] == () and names[name].default != []:
            raise UserError(f"{prefix}{name}=[] is empty: give at least one")
    for name, argument in names.items():
        if argument.value is None and name not in values:
            raise UserError(f"lmsd {verb} needs {name}=...; {listed}")
    if values.get("sampler") is not None:
        check_choice(parse(f"sampler={values['sampler']}"), groups())
    return kind(**values)


def as_typed(key: str, text: str, kind: Kind, error: UserError) -> Any:
    """A text that the grammar does not take (it has 。 # % @ and the like), as it stands.

    Lists and quoted texts are the grammar's, and what it says of them stands, with the quotes that mend it.
    """
    if not any(part.get("items", part).get("type") == "string" for part in parts(kind)):
        raise error
    if text[:1] + text[-1:] == "[]" and any(part.get("type") == "array" for part in parts(kind)):
        raise UserError(f"cannot read '{key}={text}': {_quoted(key, text)}") from error
    if text[:1] in ("'", '"', "[", "{"):
        raise error
    return convert(key, text, kind, text=text)


def _quoted(key: str, text: str) -> str:
    """How to write a list whose items the grammar does not take, for any shell."""
    if any(char in text for char in "'\"$`!\\"):
        return f"write them into a text file, one a line, and give {key}=FILE.txt"
    listed = ", ".join(f"'{word}'" for item in text[1:-1].split(",") if (word := item.strip(" '\"")))
    file = f", or write them into a text file: {key}=FILE.txt" if key == "prompts" else ""
    return f'quote every item, {key}="[{listed}]"{file}'


def _one_way(override: Override, kind: Kind) -> str:
    """What to write in place of values by commas."""
    key, _, value = str(override.input_line).partition("=")
    if any(part.get("type") == "array" for part in parts(kind)):
        return f"write {as_list(override)}"
    worded = any(part.get("type") == "string" for part in parts(kind))
    return f"{key} takes one" + (f"; commas within it are quoted: {key}=\"'{value}'\"" if worded else "")


def convert(name: str, value: Any, kind: Kind, *, text: str | None = None) -> Any:
    """A parsed value as the option's type; a single one is a sequence of one.

    text: as it was typed, which a word that looks like a number stays.
    """
    if value is None and NULL in parts(kind):
        return None
    kind = parts(kind)[0]
    if kind.get("type") == "array":
        items, typed = (value, None) if isinstance(value, list) else ([value], text)
        return tuple(convert(name, item, kind["items"], text=typed) for item in items)
    if value is None or isinstance(value, list | dict):
        shown = "null" if value is None else text or value
        raise UserError(f"{name}={shown} is not one value: give {name}=...")
    value = coerced(value, kind, text or str(value))
    refuse(name, value, kind)
    if "format" in kind and not value.strip():
        raise UserError(f"{name}= is empty: name a file or folder, or leave {name}= out")
    return Path(value) if "format" in kind else float(value) if kind.get("type") == "number" else value
