"""The file that a verb writes: its name and place are looked at before anything is computed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmsd.errors import UserError


def check_out(out: Path, suffix: str = ".png") -> None:
    """Refuse a name of another kind of file, a folder, and a place that cannot be written; makes nothing."""
    if out.is_dir():
        raise UserError(f"out={out} is a folder: name a file in it, out={out / f'name{suffix}'}")
    if out.suffix.lower() != suffix:
        raise UserError(f"out={out}: what is written is a {suffix} file, take out={out.with_suffix(suffix)}")
    place = out.absolute()
    while not os.path.exists(place):
        place = place.parent
    if place != out.absolute() and not place.is_dir():
        raise UserError(f"out={out}: {place} is a file, no folder; name another place")
    if not os.access(place, os.W_OK):
        raise UserError(f"out={out}: {place} may not be written; name another place")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Make the folder of `out`; what the system refuses is one sentence."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"out={out} cannot be written: {said}; name another place") from error
