"""What to write instead: the nearest names to a mistyped one, and the new name of a renamed option."""

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import yaml

from lmsd.cli.config.older import ANSWERED
from lmsd.errors import UserError

OTHER_TOOLS = Path(__file__).with_name("other_tools.yaml")


@cache
def theirs() -> dict[str, str]:
    """Names that other tools use → our options."""
    rows = yaml.safe_load(OTHER_TOOLS.read_text(encoding="utf-8")).items()
    return {name: ours for ours, names in rows for name in names}


def nearest(name: str, names: Iterable[str]) -> str:
    """A clause such as "; did you mean optim.generator.lr, optim.discriminator.lr?", or nothing."""
    names = list(dict.fromkeys(names))
    leaf = name.rsplit(".", 1)[-1]
    ends = {other.rsplit(".", 1)[-1] for other in names}
    if leaf not in ends and theirs().get(leaf, "").rsplit(".", 1)[-1] in ends:
        name = leaf = theirs()[leaf]
        if name in names:
            return f"; did you mean {name}?"
    found = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    found += [other for other in names if other.rsplit(".", 1)[-1] == leaf and other not in found]
    if not found:
        leaves = {other.rsplit(".", 1)[-1]: other for other in names}
        found = [leaves[key] for key in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.6)]
    return f"; did you mean {', '.join(found[:3])}?" if found else ""


def renamed(key: str, value: object = None, rows: Mapping[str, str] = ANSWERED) -> UserError | None:
    """The error for a renamed option or choice; None for any other."""
    parts = key.split(".")
    for old, told in rows.items():
        (new, _, remark), (option, equals, choice) = told.partition(";"), old.partition("=")
        wanted = option.split(".")
        if len(parts) < len(wanted) or not all(map(fnmatchcase, parts, wanted)):
            continue
        if not equals or str(value) == choice:
            typed = f"{key}={value}" if equals else key
            way = new if equals else f"{'.'.join([new, *parts[len(wanted) :]])}=..."
            more = f" ({remark.strip()})" if remark else ""
            return UserError(f"{typed} has another name now: write {way}{more}")
    return None
