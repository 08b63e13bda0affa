"""Data sets made from sources: `build("digits", "data/digits")` writes shards, a manifest and an index.

digits    scikit-learn's handwritten digits, real, 8x8
shapes    procedural captioned scenes at any size, with an exact checker (`lmsd.data.builders.shapes`)
edits     pairs of such scenes and the instruction that makes one of the other
cifar10   the official binary archive, cifar-10-binary.tar.gz, from a local path
folder    images with a .txt beside each, or a CSV or JSONL file of captions
imagefolder, classes, kohya, coco, table, parquet, tars    as other tools leave data (`layouts`)
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from lmsd.data.builders.cifar10 import cifar10_source
from lmsd.data.builders.digits import digits_source
from lmsd.data.builders.folder import folder_source
from lmsd.data.builders.layouts import layout_source
from lmsd.data.builders.options import BuildOptions, Drawing, Preparation
from lmsd.data.builders.prepare import prepare_source
from lmsd.data.builders.source import LAYOUTS, LayoutName, Source
from lmsd.data.builders.write import MANIFEST, fresh_folder, write_manifest, write_shards
from lmsd.data.index import build_index
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

__all__ = ["SOURCES", "BuildOptions", "Drawing", "Preparation", "SourceName", "build"]

SourceName: TypeAlias = Literal["digits", "shapes", "edits", "cifar10"] | LayoutName
SOURCES: tuple[SourceName, ...] = ("digits", "shapes", "edits", *LAYOUTS, "cifar10")


def build(
    source: SourceName,
    out: Path | str,
    *,
    options: BuildOptions | None = None,
    progress: "Progress | None" = None,
) -> Path:
    """Prepare `source`, write shards with their index into the folder `out`, return its manifest's path.

    The same source and options give the same bytes. UserError for bad options, a source that cannot be
    read, or a folder that is taken.
    """
    options = options or BuildOptions()
    out = Path(out)
    if source == "edits":
        from lmsd.data.builders.edits import build_edits  # with torch

        options.check(source)
        return build_edits(out, options, progress)
    with fresh_folder(out, overwrite=options.overwrite) as work, tempfile.TemporaryFile() as spool:
        opened = _open(source, options)
        prepared = prepare_source(opened, options, spool=spool, progress=progress)
        shards = write_shards(prepared, options, work, spool=spool, progress=progress)
        write_manifest(opened, options, prepared, shards=shards, folder=work)
        build_index(shards)
    return out / MANIFEST


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
