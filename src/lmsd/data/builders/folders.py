"""Where a data set is made: beside its place, and moved there when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmsd.errors import UserError

MANIFEST, PART = "manifest.json", "part.json"
"""What tells of a data set, and of a part of one that is not joined yet."""


@contextmanager
def fresh_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` to fill: moved into place when the block succeeds, removed when it fails.

    UserError when `out` holds something, unless it is a data set (has a manifest) and `overwrite` is set.
    """
    out = out.absolute()
    refuse_taken(out, overwrite=overwrite)
    work = out.with_name(f".{out.name}.building-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    make(work, out)
    try:
        yield work
        put(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_taken(out: Path, *, overwrite: bool) -> None:
    """UserError when `out` holds something, unless that is a data set of ours and `overwrite` is set."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        if not overwrite:
            raise UserError(
                f"{out} is already there; choose another folder, or replace it with overwrite=true"
            )
        if not (out / MANIFEST).is_file() and not (out / PART).is_file():
            raise UserError(
                f"{out} has no {MANIFEST}, so it is not a data set of ours and is not overwritten"
            )


def make(work: Path, out: Path) -> None:
    """Make the folder that `out` is written in."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write beside {out}: {error.strerror}; choose another out=") from error


def put(work: Path, out: Path) -> None:
    """Rename `work` to `out`; an older data set steps aside first and is removed last."""
    if not out.exists():
        work.rename(out)
        return
    old = work.with_name(f"{work.name}.old")
    out.rename(old)
    try:
        work.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
