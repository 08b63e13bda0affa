"""How far something is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

PATIENCE, EVERY = 2.0, 20.0
"""Seconds to the first plain line of what takes longer, and between two of them."""


class Bar:
    """A progress bar on stderr for `progress(done, total, what)` callbacks; plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.tasks: dict[str, int] = {}
        self.told = time.monotonic() - EVERY + PATIENCE

    def __enter__(self) -> "Bar":
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(None, None, None)

    def update(self, done: int, total: int, what: str) -> None:
        """Show how far `what` is."""
        if self.progress.disable:
            if time.monotonic() > self.told + EVERY:
                self.told = time.monotonic()
                print(f"{what}  {done:,}/{total:,}", file=sys.stderr, flush=True)
            return
        key = what.split(",")[0]
        if key not in self.tasks:
            self.tasks[key] = self.progress.add_task(what, total=total)
        self.progress.update(self.tasks[key], completed=done, total=total, description=what)  # type: ignore[arg-type]


@contextmanager
def drawn() -> "Iterator[Progress]":
    """A bar for as long as something takes."""
    with Bar() as bar:
        yield bar.update
