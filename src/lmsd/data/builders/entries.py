"""What every layout of images on a disk becomes: named pictures with the lines of their captions.

A layout finds `Entry`s; `source_of` turns them into what the preparation reads, and says what is worth
telling of their captions and classes.
"""

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lmsd.data.builders.captions import MOST_CLASSES
from lmsd.data.builders.source import Captions, Defaults, Dropped, Raw, Source
from lmsd.data.names import hidden, printable
from lmsd.data.notes import Notes
from lmsd.data.shards import Split
from lmsd.data.text import EMPTY, LOST, caption_of
from lmsd.errors import UserError

LINES = {
    "join": "captions of several lines, joined into one",
    "first": "captions of several lines, of which the first is taken",
    "draw": "captions of several lines, of which one is drawn",
    "keep": "images with several captions, all kept: data.captions=draw trains on one of them at a time",
}
BARE = "images without captions, which train with conditioner=none{}"

DEFAULTS = Defaults(
    image_size=64,
    channels=3,
    similarity=0.99,
    kinship=0.97,
    val=0.1,
    test=0.1,
    near_duplicates="same_caption",
)


class File(NamedTuple):
    """A file below the folder of a source: its relative name, as it is shown, and its path."""

    name: str
    path: Path


@dataclass(frozen=True)
class Entry:
    """One picture of a layout.

    picture: its file, or what reads its encoded bytes; lines: of its caption, none of an empty one, None
    where it has no caption; label: its class by number or by name; split: where the layout fixes it;
    repeats: how often it comes in an epoch; fields: what else is known of it, by name.
    """

    name: str
    picture: Path | Callable[[], bytes]
    lines: list[str] | None
    label: int | str | None = None
    split: Split | None = None
    repeats: int = 1
    fields: Mapping[str, object] = field(default_factory=dict)


class Spilled:
    """Entries of which there may be millions, kept in a file without a name; read again as often as asked."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this
        self._count = 0
        found = iter(entries)
        while some := list(islice(found, 256)):
            pickle.dump(some, self._file, pickle.HIGHEST_PROTOCOL)
            self._count += len(some)
        self._end = self._file.tell()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        at = 0
        while at < self._end:
            self._file.seek(at)
            some = pickle.load(self._file)  # what this process wrote itself
            at = self._file.tell()
            yield from some


class Raws:
    """The pictures of entries, each made when it is asked for; as often as asked."""

    def __init__(self, entries: Sequence[Entry] | Spilled, way: Captions, classes: list[str] | None) -> None:
        self._entries, self._way = entries, way
        self._classes = None if classes is None else {name: place for place, name in enumerate(classes)}

    def __iter__(self) -> Iterator[Raw]:
        return (_raw(entry, self._way, self._classes) for entry in self._entries)


def source_of(
    name: str,
    entries: Sequence[Entry] | Spilled,
    lines: Captions,
    *,
    dropped: Sequence[Dropped] = (),
    notes: Notes | None = None,
    classes: list[str] | None = None,
    where: str = "some images",
) -> Source:
    """The pictures of a layout, with what is worth telling of them.

    classes: the names of the classes, where the layout knows them; where: what gives labels, for messages.
    UserError when only some pictures have a class, or some have one in words and others a number.
    """
    notes = notes or Notes()
    found = _Looked(entries, lines)
    found.tell(notes)
    classes = classes or _classes(found, where)
    way: Captions = lines if found.worded else "none"
    return Source(
        name=name,
        samples=Raws(entries, way, classes),
        total=len(entries),
        defaults=DEFAULTS,
        classes=classes,
        dropped=sorted(dropped, key=lambda entry: entry.name),
        notes=list(notes),
        fields=frozenset(found.fields),
    )


def files_under(path: Path, dropped: list[Dropped]) -> list[File]:
    """All files below a folder and below the folders that it links, by name; hidden ones are left alone."""
    found: list[File] = []
    above: dict[str, set[str]] = {str(path): {os.path.realpath(path)}}

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(str(error.filename), path)
        dropped.append(Dropped(printable(name), f"a folder that cannot be read ({error.strerror})"))

    for root, folders, names in os.walk(path, followlinks=True, onerror=unreadable):
        seen = above.pop(root, set())
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in [*folders]:
            real = os.path.realpath(os.path.join(root, name))
            if real in seen:
                where = printable(os.path.relpath(os.path.join(root, name), path))
                dropped.append(Dropped(where, "a link to a folder that it lies in"))
                folders.remove(name)
            above[os.path.join(root, name)] = seen | {real}
        for name in names:
            file = Path(root, name)
            shown = printable(file.relative_to(path).as_posix())
            if hidden(name):
                continue
            if file.is_file():
                found.append(File(shown, file))
            elif file.is_symlink():
                dropped.append(Dropped(shown, "a broken link"))
    return sorted(found)


def _raw(entry: Entry, way: Captions, classes: Mapping[str, int] | None) -> Raw:
    u = int(hashlib.sha256(entry.name.encode()).hexdigest()[:8], 16) / 2**32
    label = classes[str(entry.label)] if classes is not None else None
    caption = None
    if way == "keep" and entry.lines is not None:
        caption = "\n".join(entry.lines)
    elif way != "keep" and way != "none" and entry.lines is not None:
        caption = caption_of(entry.lines, way, u=u)
    return Raw(
        entry.name,
        entry.picture,
        caption,
        label,
        entry.split,
        repeats=entry.repeats,
        fields={**entry.fields, **({} if entry.label is None else {"label": entry.label})},
    )


class _Looked:
    """What is known of all entries after one look."""

    def __init__(self, entries: Iterable[Entry], way: Captions) -> None:
        self.worded, self.bare, self.first = False, "", ""
        self.fields: set[str] = set()
        self.labels: set[int | str | None] = set()
        self._counts, self._total = Notes(), 0
        for entry in entries:
            self._total += 1
            self.first = self.first or entry.name
            self.worded |= bool(entry.lines)
            self.fields.update(entry.fields)
            self.labels.add(entry.label)
            if entry.label is None:
                self.bare = self.bare or entry.name
            for name, note in _notes(entry, way):
                self._counts.add(note, name)

    def tell(self, notes: Notes) -> None:
        """How many images have several captions, or that none has one."""
        if self._total and not self.worded:
            label = "" if self.bare == self.first else " or label"
            notes.add(BARE.format(label), self.first, self._total)
            return
        for note, count, name in self._counts:
            notes.add(note, name, count)


def _notes(entry: Entry, way: Captions) -> Iterator[tuple[str, str]]:
    if entry.lines == []:
        yield entry.name, EMPTY
    if len(entry.lines or ()) > 1:
        yield entry.name, LINES[way]
    if any("\ufffd" in line for line in entry.lines or ()):
        yield entry.name, LOST


def _classes(found: _Looked, where: str) -> list[str] | None:
    """The names of the classes, by number; UserError when some pictures have none, or some have words."""
    labels, bare = found.labels, found.bare
    if labels <= {None}:
        return None
    if bare:
        has = "have a class" if where == "some images" else "gives a label to some images"
        raise UserError(f"{where} {has} but not to {bare}; label all or none")
    words = sorted(label for label in labels if isinstance(label, str))
    numbers = [label for label in labels if isinstance(label, int)]
    if words and numbers:
        raise UserError(f"{where} has labels in words ({words[0]}) and in numbers ({numbers[0]}); take one")
    wrong = next((number for number in sorted(numbers) if not 0 <= number < MOST_CLASSES), None)
    if wrong is not None:
        raise UserError(
            f"{where} has the class {wrong}: number classes from 0 to {MOST_CLASSES - 1:,}, and leave out "
            "what has none"
        )
    return words or [str(number) for number in range(max(numbers) + 1)]
