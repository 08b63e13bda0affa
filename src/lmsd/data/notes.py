"""What the user should know of data that are read all the same: findings with a count and a name."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

Note: TypeAlias = tuple[str, int, str]
"""What was found, how many there are, and the name of the first."""


class Notes:
    """Counts by kind, in the order in which the kinds occurred."""

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}
        for kind, count, name in notes:
            self.add(kind, name, count)

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count one more of a kind, or `count` more; "" is no kind."""
        if kind:
            before, first = self._kinds.get(kind, (0, name))
            self._kinds[kind] = before + count, first

    def __iter__(self) -> Iterator[Note]:
        return iter((kind, count, name) for kind, (count, name) in self._kinds.items())


def told(notes: Iterable[Note]) -> str:
    """Notes in one line: `3 empty captions (a.jpg)`."""
    return ", ".join(f"{count:,} {kind} ({name})" for kind, count, name in notes)
