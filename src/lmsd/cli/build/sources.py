"""The source of a data set that words of the command line mean."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.data.builders import SourceName


def of_path(path: str, words: list[str]) -> "tuple[SourceName, list[str]]":
    """The source that a path is, named by source= or recognized and said, and the other words."""
    from lmsd.data.builders import SOURCES
    from lmsd.data.builders.layouts import recognized
    from lmsd.data.builders.source import LAYOUTS

    if not os.path.exists(path):
        way = "" if "/" in path else nearest(path, SOURCES)
        gone = "" if way else ", and no such folder or file"
        raise UserError(f"there is no source '{path}'{way}{gone}; sources: {', '.join(SOURCES)}")
    named = [word.partition("=")[2] for word in words if word.startswith("source=")]
    words = [*(word for word in words if not word.startswith("source=")), f"path={json.dumps(path)}"]
    name = next((layout for layout in LAYOUTS if named and layout == named[-1]), None)
    if not named:
        name, why = recognized(Path(path))
        print(f"{path}: {name} ({why})")
    if name is None:
        raise UserError(
            f"source={named[-1]} is no layout{nearest(named[-1], LAYOUTS)}; there are {', '.join(LAYOUTS)}"
        )
    return name, words


def lines_of(word: str) -> str:
    """`captions=first` is about the lines of captions, and `captions=FILE` about where they are."""
    from lmsd.data.builders.source import Captions

    name, _, value = word.partition("=")
    return f"lines={value}" if name == "captions" and value in get_args(Captions) else word
