"""Options of older versions: answered with today's names, and moved in the configurations of older runs."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from lmsd.cli.config import older
from lmsd.errors import UserError

RENAMED: dict[str, str] = {
    "data.source": "source",
    "data.max_bad": "rollback.max_bad",
}
"""Old name to new, of an option with all below it (objective.warm) or of a choice (sampler=few_step).

A part may be `*`. The new name may be followed by a remark after a semicolon: "objective.bound; codec, a
number or null". What a move alone cannot mend in a stored configuration is one of CHANGES.
"""

CHANGES: list[Callable[[dict[str, Any]], None]] = [older.objective, older.parts, older.shards]
"""What else a stored configuration of an older version needs after the moves, in this order, in place."""


def renamed(key: str, value: object = None, *, rows: Mapping[str, str] | None = None) -> UserError | None:
    """The sentence on an option or a choice that has another name now; None for any other."""
    for old, told in ({**RENAMED, **older.ANSWERED} if rows is None else rows).items():
        new, _, remark = told.partition(";")
        option, equals, choice = old.partition("=")
        rest = _below(key, option)
        if rest is None or (equals and str(value) != choice):
            continue
        typed = f"{key}={value}" if equals else key
        way = new if equals else f"{new}{rest}=..."
        return UserError(
            f"{typed} has another name now: write {way}{f' ({remark.strip()})' if remark else ''}"
        )
    return None


def today(tree: dict[str, Any]) -> dict[str, Any]:
    """The plain tree of a stored configuration under today's names, changed in place."""
    for old, told in RENAMED.items():
        new = told.partition(";")[0].strip()
        if "=" not in old and "*" not in old and "=" not in new:
            _move(tree, old.split("."), new.split("."))
    for change in CHANGES:
        change(tree)
    return tree


def _below(key: str, option: str) -> str | None:
    """What of a dotted name lies below an option's, "" for the option itself; None for another name."""
    parts, wanted = key.split("."), option.split(".")
    fits = len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))
    return "".join(f".{part}" for part in parts[len(wanted) :]) if fits else None


def _move(tree: dict[str, Any], old: list[str], new: list[str]) -> None:
    """Move one entry, where there is one and its new place is free."""
    node: Any = tree
    for part in old[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or old[-1] not in node:
        return
    value, place = node.pop(old[-1]), tree
    for part in new[:-1]:
        below = place.setdefault(part, {})
        if not isinstance(below, dict):
            return
        place = below
    place.setdefault(new[-1], value)
