"""Options of the small verbs: `key=value` words checked against a dataclass, in the grammar of `train`."""

from pathlib import Path
from typing import Any

from lmsd.cli.config.compose import as_list, check_choice, groups, parse, parse_sweep
from lmsd.cli.config.refusals import refusal
from lmsd.cli.config.signatures import ANYTHING, NULL, Argument, Kind, signature
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.flat import Record, nested


def options_of(target: str) -> dict[str, Argument]:
    """The fields of a class by name, those of sections in their place; none if there is no such class."""
    found, listed = signature(target), dict[str, Argument]()
    for name, argument in (found.arguments if found else {}).items():
        sections = argument.kind.sections
        listed |= options_of(sections[0]) if sections else {name: argument}
    return listed


def read(kind: type[Record], words: list[str], *, verb: str, prefix: str = "") -> Record:
    """Read words {prefix}NAME=VALUE into `kind`; unknown names and wrong values are refused in a sentence."""
    names, values = options_of(f"{kind.__module__}.{kind.__qualname__}"), dict[str, Any]()
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            named = next((name for name in (word, "run") if name in names), None)
            ways = "" if named is None else f", e.g. {named}={'...' if named == word else word}"
            raise UserError(f"cannot read '{word}': write option=value{ways}")
        name = key.removeprefix(prefix)
        if name in values:
            raise UserError(f"{prefix}{name}= is given twice: give it once")
        try:
            override = parse_sweep(word)
        except UserError as error:
            values[name] = as_typed(key, text, names[name].kind if name in names else ANYTHING, error)
            continue
        name = override.key_or_group.removeprefix(prefix)
        if name not in names:
            dotted = [prefix + each for each in names]
            listed = f"{nearest(name, dotted)}; options: {', '.join(dotted)}"
            raise UserError(f"unknown option '{prefix}{name}' of lmsd {verb}{listed}")
        takes = names[name].kind
        if override.is_sweep_override():
            quoted = f"; commas within it are quoted: {key}=\"'{text}'\"" * takes.takes("string")
            way = f"write {as_list(override)}" if takes.takes("array") else f"{key} takes one{quoted}"
            raise UserError(f"'{word}' gives several values; {way}")
        values[name] = convert(f"{prefix}{name}", override.value(), takes, text=text)
        if values[name] == () and names[name].default != []:
            raise UserError(f"{prefix}{name}=[] is empty: give at least one")
    missing = [name for name, argument in names.items() if argument.value is None and name not in values]
    if missing:
        raise UserError(f"lmsd {verb} needs {prefix}{missing[0]}=...; options: {', '.join(names)}")
    if values.get("sampler") is not None:
        check_choice(parse(f"sampler={values['sampler']}"), groups())
    return nested(kind, values)


def as_typed(key: str, text: str, kind: Kind, error: UserError) -> Any:
    """Take text that the grammar refuses (with 。 # % @ and the like) as it was typed.

    Lists and quoted text are left to the grammar, whose error is raised; for a list it says how to quote the
    items for any shell.
    """
    if not any(part.get("items", part).takes("string") for part in kind.parts):
        raise error
    if kind.takes("array") and text.startswith("[") and text.endswith("]"):
        items = filter(None, (item.strip().strip("'\"") for item in text[1:-1].split(",")))
        file = f", or write them into a text file: {key}=FILE.txt" if key == "prompts" else ""
        way = "quote every item, " + f'{key}="[{", ".join(map(repr, items))}]"{file}'
        if any(char in text for char in "'\"$`!\\"):
            way = f"write them into a text file, one a line, and give {key}=FILE.txt"
        raise UserError(f"cannot read '{key}={text}': {way}") from error
    if text[:1] in ("'", '"', "[", "{"):
        raise error
    return convert(key, text, kind, text=text)


def convert(name: str, value: Any, kind: Kind, *, text: str | None = None) -> Any:
    """Convert a parsed value to the type of the option; a single value becomes a sequence of one.

    text: as typed, kept for words that look like numbers.
    """
    if value is None and NULL in kind.parts:
        return None
    kind = kind.parts[0]
    if kind.get("type") == "array":
        items, typed = (value, None) if isinstance(value, list) else ([value], text)
        return tuple(convert(name, item, kind["items"], text=typed) for item in items)
    if value is None or isinstance(value, list | dict):
        shown = "null" if value is None else text or value
        raise UserError(f"{name}={shown} is not one value: give {name}=...")
    value = kind.read(value, text or str(value))
    if not kind.fits(value):
        raise refusal(name, value, kind)
    if "format" in kind and not value.strip():
        raise UserError(f"{name}= is empty: name a file or folder, or leave {name}= out")
    return Path(value) if "format" in kind else float(value) if kind.get("type") == "number" else value
