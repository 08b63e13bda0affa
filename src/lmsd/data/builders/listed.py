"""Images whose captions stand in one file, by any name that it may give them."""

import os
import posixpath
import re
from pathlib import Path

from lmsd.data.builders.captions import Row, read_rows
from lmsd.data.builders.entries import Entry, File
from lmsd.data.builders.source import Dropped
from lmsd.data.names import composed, printable
from lmsd.errors import UserError


def by_table(path: Path, images: list[File], listed: Path, dropped: list[Dropped]) -> list[Entry]:
    """Pair each image with its row of the caption file, noting what has no partner."""
    names = _Names(path, listed, images)
    rows: dict[str, Row] = {}
    for row in read_rows(listed):
        name = names.find(row.file)
        if name is None:
            why = f"{printable(listed.name)} line {row.line} names it, and it is no image under the folder"
            dropped.append(Dropped(printable(row.file), f"{why}{_hint(row.file)}"))
        elif name in rows:
            raise UserError(
                f"{listed} names {name} twice, in lines {rows[name].line} and {row.line}; remove one"
            )
        else:
            rows[name] = row
    found: list[Entry] = []
    for image in images:
        row_of = rows.get(image.name)
        why = f"no caption: {listed.name} does not name it" if row_of is None else row_of.why
        if row_of is None or why:
            dropped.append(Dropped(image.name, why))
        else:
            found.append(Entry(*image, row_of.lines, row_of.label, fields=row_of.fields))
    if any(entry.lines for entry in found):
        alone = f"no caption: {listed.name} gives it a label alone"
        dropped += [Dropped(entry.name, alone) for entry in found if entry.lines is None]
        found = [entry for entry in found if entry.lines is not None]
    return found


class _Names:
    """The images of a folder by any name that a caption file may give them."""

    def __init__(self, path: Path, listed: Path, images: list[File]) -> None:
        self._root = path.resolve()
        self._beside = os.path.relpath(listed.resolve().parent, self._root)
        self._images = {composed(image.name): image.name for image in images}
        folded: dict[str, list[str]] = {}
        for key, name in self._images.items():
            folded.setdefault(key.casefold(), []).append(name)
        self._folded = {key: names[0] for key, names in folded.items() if len(names) == 1}

    def find(self, given: str) -> str | None:
        """The name of the image that is meant, or None."""
        name = composed(given.strip())
        if posixpath.isabs(name):
            name = os.path.relpath(name, composed(self._root.as_posix()))
        ways = [posixpath.normpath(way) for way in (name, posixpath.join(self._beside, name))]
        exact = next((self._images[way] for way in ways if way in self._images), None)
        return exact or next((self._folded[w.casefold()] for w in ways if w.casefold() in self._folded), None)


def _hint(name: str) -> str:
    if re.match(r"[A-Za-z]:[\\/]", name):
        return " (a place on a Windows machine: write names relative to the folder)"
    return " (a place elsewhere: write names relative to the folder)" if posixpath.isabs(name) else ""
