"""Data sets made from sources: `build("digits", "data/digits")` writes shards, a manifest and an index.

digits    scikit-learn's handwritten digits, real, 8x8
shapes    procedural captioned scenes at any size, with an exact checker (`lmsd.data.builders.shapes`)
edits     pairs of such scenes and the instruction that makes one of the other
cifar10   the official binary archive, cifar-10-binary.tar.gz, from a local path
folder    images with a .txt beside each, or a CSV or JSONL file of captions
imagefolder, classes, kohya, coco, table, parquet, tars    as other tools leave data (`layouts`)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from lmsd.data.builders.building import build_source, merge_parts
from lmsd.data.builders.cifar10 import cifar10_source
from lmsd.data.builders.digits import digits_source
from lmsd.data.builders.folder import folder_source
from lmsd.data.builders.layouts import layout_source
from lmsd.data.builders.options import BuildOptions, Drawing, Preparation
from lmsd.data.builders.plan import Work
from lmsd.data.builders.source import LAYOUTS, LayoutName, Source
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

__all__ = ["SOURCES", "BuildOptions", "Drawing", "Preparation", "SourceName", "Work", "build", "merge_parts"]

SourceName: TypeAlias = Literal["digits", "shapes", "edits", "cifar10"] | LayoutName
SOURCES: tuple[SourceName, ...] = ("digits", "shapes", "edits", *LAYOUTS, "cifar10")


def build(
    source: SourceName,
    out: Path | str,
    *,
    options: BuildOptions | None = None,
    work: Work | None = None,
    progress: "Progress | None" = None,
) -> Path:
    """Prepare `source`, write shards with their index into the folder `out`, return its manifest's path.

    The same source and options give the same bytes, however the `work` is done; of a part, the path is that
    of its part.json. A build that was killed goes on where it was. UserError for bad options, a source that
    cannot be read, or a folder that is taken.
    """
    options, work, out = options or BuildOptions(), work or Work(), Path(out)
    if source == "edits":
        if work != Work():
            raise UserError("the source 'edits' is drawn by one process: leave workers= and part= out")
        options.check(source)
        from lmsd.data.builders.edits import build_edits  # with torch

        return build_edits(out, options, progress)
    return build_source(_open(source, options), out, options, work, progress)


def _open(source: Literal["digits", "shapes", "cifar10"] | LayoutName, options: BuildOptions) -> Source:
    """The source of that name, its options checked."""
    if source not in SOURCES:
        raise UserError(f"there is no source {source!r}; take one of {', '.join(SOURCES)}")
    options.check(source)
    if source == "digits":
        return digits_source()
    if source == "shapes":
        from lmsd.data.builders.scenes import shapes_source  # with torch

        return shapes_source(options)
    if source == "cifar10":
        return cifar10_source(options.path)
    lines = options.lines or ("keep" if source == "coco" else "join")
    if source == "folder":
        return folder_source(options.path, options.captions, lines)
    return layout_source(source, options.path, lines)
