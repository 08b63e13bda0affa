"""How `lmsd data build` is done, by how many processes and which part of it; and how parts are joined."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.cli.bar import Bar
from lmsd.cli.config import options
from lmsd.errors import Count, UserError

if TYPE_CHECKING:
    from lmsd.data.builders import Work

OWN = ("workers", "part")
"""The options of a build that change nothing of what comes out, fields of `Work`."""


@dataclass(frozen=True)
class MergeOptions:
    """Options of `lmsd data merge`; see the help of `lmsd data`."""

    workers: Count = 1
    overwrite: bool = False


def parted(words: list[str]) -> "tuple[Work, list[str]]":
    """How the build is done, and the other words. UserError for a part that is none."""
    from lmsd.data.builders import Work

    own = [word for word in words if word.partition("=")[0] in OWN]
    work = options.read(Work, own, verb="data build")
    _ = work.share  # which refuses what is no part
    return work, [word for word in words if word not in own]


def merged(arguments: list[str]) -> Path:
    """Join the parts of one build; the path of the manifest."""
    parts = [word for word in arguments if "=" not in word]
    if not parts:
        raise UserError("name the parts before the options: lmsd data merge parts/* out=DIR")
    words = [word for word in arguments if word not in parts]
    out = [word.partition("=")[2] for word in words if word.startswith("out=")]
    if not out or not out[-1]:
        raise UserError("where to? lmsd data merge needs out=DIR")
    others = [word for word in words if not word.startswith("out=")]
    chosen = options.read(MergeOptions, others, verb="data merge")
    from lmsd.data.builders import merge_parts

    with Bar() as bar:
        return merge_parts(
            [Path(part) for part in parts],
            Path(out[-1]),
            workers=chosen.workers,
            overwrite=chosen.overwrite,
            progress=bar.update,
        )
