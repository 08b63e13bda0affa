"""log.txt of a run: what it said, line by line with the time, over all of its sessions.

What goes to standard output and error goes there as before; what a progress bar draws is not in the file.
Lines are without secrets, and a file that cannot be written does not end a run.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from lmsd.errors import UserError, redact

NAME = "log.txt"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile("[━╸╺]")
"""What rich draws bars with."""


class Copied:
    """A stream whose whole lines are also appended to a file; all else is the stream's own."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._begun = ""

    def write(self, text: str) -> int:
        """Write to the stream, then to the file what ends a line."""
        count = self._stream.write(text)
        *lines, self._begun = (self._begun + text).split("\n")
        note(self._path, lines)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def note(path: Path, lines: list[str]) -> None:
    """Append lines with the time of day; those of a progress bar and empty ones are left out."""
    plain = (_CONTROL.sub("", line).rstrip().rpartition("\r")[2] for line in lines)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    told = "".join(f"{stamp}  {redact(line)}\n" for line in plain if line and not _BAR.search(line))
    if told:
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(told)


@contextmanager
def transcript(folder: Path, *, active: bool) -> Iterator[None]:
    """Copy what is said into the folder's log.txt, and the sentence of a failure; not where inactive."""
    if not active:
        yield
        return
    path, out, error = folder / NAME, sys.stdout, sys.stderr
    ours: list[Any] = [None if stream is None else Copied(stream, path) for stream in (out, error)]
    sys.stdout, sys.stderr = ours
    try:
        yield
    except Exception as failure:
        kind = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
        note(path, [f"lmsd: {kind}{' '.join(str(failure).split())}"])
        raise
    finally:
        sys.stdout, sys.stderr = out, error
