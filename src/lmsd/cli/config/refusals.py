"""What is said of an option that does not exist, or of a value that is not of its kind."""

import re
from collections.abc import Iterable
from math import inf
from typing import Any

from lmsd.cli.config.signatures import NODE, NULL, Kind
from lmsd.cli.config.suggest import nearest, renamed
from lmsd.errors import UserError, shown

NUMBERS = {"integer": "whole number", "number": "number"}
NAMES = {"boolean": "true or false", "string": "one word", "null": "null"}


def unknown(key: str, known: Iterable[str]) -> UserError:
    """The error for an option that does not exist, or has a new name."""
    names = [name for name in known if name != key and "._" not in name and "@" not in name]
    top = key.partition(".")[0]
    where = f" {top}" if any(name.startswith(f"{top}.") for name in names) else ""
    told = f"unknown option '{key}'{nearest(key, names)}  (all options: lmsd train --options{where})"
    return renamed(key) or UserError(told)


UNITS = re.compile(r"(\d+(?:\.\d+)?) ?(k|m|%|px|x\1)", re.I)
POWERS = {"k": 1e3, "m": 1e6, "%": 0.01}
"""Numbers as people write them: 400k, 1.5M, 80%, 32px, 32x32."""


def refusal(key: str, value: Any, kind: Kind) -> UserError:
    """The error for a value that is not of a kind."""
    hint = nearest(str(value), map(str, kind["enum"])) if "enum" in kind else ""
    if kind.takes(*NUMBERS) and (unit := UNITS.fullmatch(str(value))):
        hint = f": units are not read, write {float(unit[1]) * POWERS.get(unit[2].lower(), 1):_.9g}"
    if kind.takes("string") and isinstance(value, list | dict):
        hint = ", but a list" if isinstance(value, list) else ", but a mapping"
    if any(part.get("type") == "array" and part.fits([value]) for part in kind.parts):
        hint = f": write {key}=[{shown(key, value)}]"
    return UserError(f"{key}={written(shown(key, value))} is not {words(kind)}{hint}")


def words(kind: Kind, *, example: bool = True) -> str:
    """The description of allowed values, as in "seed=abc is not ..."."""
    if len(kind.parts) > 1:
        plain = any(part not in (NODE, NULL) for part in kind.parts)  # then a node is a rarity
        shown = [part for part in kind.parts if not (plain and part == NODE)]
        return " or ".join(words(part, example=example and len(shown) == 1) for part in shown)
    if "description" in kind:
        return str(kind["description"])
    if "enum" in kind:
        return f"one of {', '.join(map(str, kind['enum']))}"
    name, low, high = str(kind.get("type")), kind.get("minimum", -inf), kind.get("maximum", inf)
    if name in NUMBERS:
        ends = f" of at least {low:g}" if low > -inf else f" of at most {high:g}" if high < inf else ""
        ends = f" from {low:g} to {high:g}" if -inf < low and high < inf else ends
        shown_as = "1000" if name == "integer" else "1e-4"
        return f"a {NUMBERS[name]}{ends or f', e.g. {shown_as}' * example}"
    if name == "array":
        count = f" of {kind['minItems']}" if "minItems" in kind else ""
        item = words(kind["items"], example=False)
        if kind["items"].get("type") not in NUMBERS:
            return f"a list{count}, each {item}"
        many = item.removeprefix("a ").replace("number", "numbers", 1)
        return f"a list{count or ' of'} {many}{', e.g. [1, 2]' * example}"
    if "additionalProperties" in kind:
        return f"a mapping, each {words(kind['additionalProperties'], example=False)}"
    return NAMES.get(name, "a node with _target_" if kind else "anything")


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
