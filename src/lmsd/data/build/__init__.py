"""Data sets made from sources: `build("digits", "data/digits")` writes shards, a manifest and an index.

digits    scikit-learn's handwritten digits, real, 8x8
shapes    procedural captioned scenes at any size, with an exact checker (`lmsd.data.build.shapes`)
folder    images with a .txt beside each, or a CSV or JSONL file of captions
cifar10   the official binary archive, cifar-10-binary.tar.gz, from a local path
"""

import tempfile
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from lmsd.data.build.digits import digits
from lmsd.data.build.options import BuildOptions
from lmsd.data.build.prepare import Progress, prepare
from lmsd.data.build.scenes import scenes
from lmsd.data.build.source import Source
from lmsd.data.build.write import fresh_folder, write_manifest, write_shards
from lmsd.errors import UserError

__all__ = ["SOURCES", "BuildOptions", "SourceName", "build"]

SourceName: TypeAlias = Literal["digits", "shapes", "folder", "cifar10"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)


def build(
    source: SourceName,
    out: Path | str,
    *,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Prepare `source`, write it as shards into the folder `out` and return the path of its manifest.

    The same source and options give the same bytes. UserError for bad options or a source that cannot be read.
    """
    options = options or BuildOptions()
    opened = _open(source, options)
    out = Path(out)
    with (
        fresh_folder(out, overwrite=options.overwrite) as folder,
        tempfile.TemporaryFile(dir=folder) as spool,
    ):
        prepared = prepare(opened, options, spool=spool, progress=progress)
        shards = write_shards(prepared, options, folder, spool=spool, progress=progress)
        write_manifest(opened, options, prepared, shards=shards, folder=folder)
    return out / "manifest.json"


def _open(source: SourceName, options: BuildOptions) -> Source:
    """The source of that name with its options checked."""
    if source not in SOURCES:
        raise UserError(f"there is no source {source!r}; take one of {', '.join(SOURCES)}")
    options.check(source)
    if source == "digits":
        return digits()
    return scenes(options)
