"""The source `folder`: images under a folder, each with a caption, or none of them with one.

Captions come from a .txt beside each image (dog.jpg, dog.txt; .caption, or the `caption` of a .json, where
there is no .txt), or from one file (`captions`). Where no file is one, and with captions=none, images have
no captions, but classes where KEY.cls lies beside each. Linked folders are read. Names in a caption file are
relative to the folder or to the file itself; Windows' separators, absolute names of files inside the folder
and the two ways of writing é are understood. What is left out is named with the reason.
"""

import hashlib
import json
import os
import posixpath
import re
from pathlib import Path
from typing import NamedTuple, get_args

from lmsd.data.builders.captions import MOST_CLASSES, Row, read_rows
from lmsd.data.builders.captions import SUFFIXES as CAPTION_FILES
from lmsd.data.builders.source import Captions, Defaults, Dropped, Raw, Source
from lmsd.data.decode import SUFFIXES
from lmsd.data.names import TEXTS, composed, grouped, hidden, is_image, printable
from lmsd.data.notes import Notes
from lmsd.data.text import EMPTY, LOST, MAX_CAPTION, BadText, caption_of, captions, decoded
from lmsd.errors import UserError

LINES = {
    "join": "captions of several lines, joined into one",
    "first": "captions of several lines, of which the first is taken",
    "draw": "captions of several lines, of which one is drawn",
}
BARE = "images without captions, which train with conditioner=none{}"
REPEATS = "folders named like repeats (10_dog), which are not followed: each picture counts once"

NO_IMAGE = "not an image by its name"
TABLE = "a caption file that is not read: captions=FILE takes one"

_REPEATS = re.compile(r"\d+_.+")


class _File(NamedTuple):
    name: str  # relative, as it is shown
    path: Path


class _Found(NamedTuple):
    file: _File
    lines: list[str] | None  # of its caption, none of an empty one; None: it has no caption
    label: int | str | None


def _checked(path: Path | None, listed: Path | None) -> Path:
    """The folder, which is there; the file of captions is of a kind that is read."""
    if path is None:
        raise UserError("the source folder needs path=, the folder of the images")
    if not path.is_dir():
        raise UserError(f"path={path} is not a folder")
    if listed is not None and listed.suffix.lower() not in CAPTION_FILES:
        raise UserError(
            f"captions={listed} is neither .csv nor .jsonl, nor one of {', '.join(get_args(Captions))} (what "
            "several lines of a caption give)"
        )
    return path


DEFAULTS = Defaults(
    image_size=64,
    channels=3,
    similarity=0.99,
    kinship=0.97,
    val=0.1,
    test=0.1,
    near_duplicates="same_caption",
)


def folder_source(path: Path | None, listed: Path | None, lines: Captions = "join") -> Source:
    """The images under `path` in the order of their names; those without a caption are dropped and named.

    listed: a caption file; lines: what several lines of a caption give, or "none". UserError when the folder
    or the caption file is missing or unreadable, or when nothing matches.
    """
    path = _checked(path, listed)
    dropped: list[Dropped] = []
    notes, used = Notes(), set[_File]()
    files = _files(path, dropped)
    if listed is not None and listed.exists():
        files = [file for file in files if not listed.samefile(file.path)]
    images = [file for file in files if is_image(file.name)]
    if not images:
        raise UserError(f"no image under {path}; images end in {', '.join(SUFFIXES)}")
    left = len(dropped)
    if listed is not None:
        found = _listed(path, images, listed, dropped)
    else:
        found = _beside(files, dropped, used, bare=lines == "none")
        if not found and _wordless(files, dropped[left:]):
            del dropped[left:]
            found = _beside(files, dropped, used, bare=True)
    _tell_captions(found, lines, notes)
    _tell(files, used, dropped, notes)
    if not found:
        raise UserError(_none(path, listed, images, dropped))
    classes = _classes(found, listed)
    way: Captions = lines if any(entry.lines for entry in found) else "none"
    return Source(
        name="folder",
        samples=[_raw(entry, way, classes) for entry in found],
        total=len(found),
        defaults=DEFAULTS,
        classes=classes,
        dropped=sorted(dropped, key=lambda entry: entry.name),
        notes=list(notes),
    )


def _raw(entry: _Found, way: Captions, classes: list[str] | None) -> Raw:
    name = entry.file.name
    u = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    label = classes.index(str(entry.label)) if classes is not None else None
    if way == "none" or entry.lines is None:
        return Raw(name, entry.file.path, None, label)
    return Raw(name, entry.file.path, caption_of(entry.lines, way, u=u), label)


def _wordless(files: list[_File], dropped: list[Dropped]) -> bool:
    """Whether a folder has no captions of any kind: no text, no table, no class of only some images."""
    texts = any(file.name.lower().endswith((*TEXTS, ".json", *CAPTION_FILES)) for file in files)
    return not texts and all(entry.reason.startswith("no caption") for entry in dropped)


def _files(path: Path, dropped: list[Dropped]) -> list[_File]:
    """All files below a folder and below the folders that it links to, by name; hidden ones are skipped."""
    found: list[_File] = []
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
                found.append(_File(shown, file))
            elif file.is_symlink():
                dropped.append(Dropped(shown, "a broken link"))
    return sorted(found)


def _beside(files: list[_File], dropped: list[Dropped], used: set[_File], *, bare: bool) -> list[_Found]:
    """Pair each image with the text of its name, noting what has no partner; used: the texts and classes.

    bare: without texts.
    """
    found: list[_Found] = []
    for group in grouped([file.name for file in files]).values():
        members = {suffix: files[number] for suffix, number in group}
        images = [files[number] for suffix, number in group if suffix in SUFFIXES]
        words = [members[suffix] for suffix in (*TEXTS, "json") if suffix in members and not bare]
        if images:
            used |= {*words[:1], *([members["cls"]] if "cls" in members else [])}
            dropped += [Dropped(text.name, f"a second caption, beside {words[0].name}") for text in words[1:]]
        else:
            dropped += [Dropped(text.name, "a caption without an image") for text in words]
        for suffix, number in group:
            if suffix.rpartition(".")[2] in SUFFIXES:
                text = words[0] if words and suffix in SUFFIXES else None
                lines, label, why = _words(files[number], text, members.get("cls"), bare=bare)
                if bare and suffix not in SUFFIXES:
                    why = f"it belongs to another image, {images[0].name}"
                if why:
                    dropped.append(Dropped(files[number].name, why))
                else:
                    found.append(_Found(files[number], lines, label))
    return sorted(found, key=lambda entry: entry.file)


def _words(
    image: _File, text: _File | None, cls: _File | None, *, bare: bool
) -> tuple[list[str] | None, int | None, str]:
    """The captions and class of an image, or why it has none; bare: it needs no captions."""
    if text is None and not bare:
        return None, None, f"no caption: {Path(image.name).with_suffix('.txt').name} is not there"
    lines, why = (None, "") if text is None else _lines(text)
    if why or cls is None:
        return lines, None, why
    return lines, *_class(cls)


def _lines(text: _File) -> tuple[list[str] | None, str]:
    """The captions of a file beside an image, or why there are none."""
    base = posixpath.basename(text.name)
    try:
        size = text.path.stat().st_size
        if size > 64 * MAX_CAPTION:
            raise BadText(f"it has {size:,} bytes, more than {MAX_CAPTION >> 10} KiB of text")
        value: object = decoded(text.path.read_bytes())
        if text.name.lower().endswith(".json"):
            fields = json.loads(str(value))
            if not isinstance(fields, dict) or "caption" not in fields:
                raise BadText("it is no JSON object with a 'caption'")
            value = fields["caption"]
        return captions(value), ""
    except BadText as error:
        return None, f"its caption {base} cannot be used: {error}"
    except (OSError, ValueError, RecursionError) as error:
        return None, f"its caption {base} cannot be read ({error})"


def _class(file: _File) -> tuple[int | None, str]:
    try:
        word = file.path.read_bytes().strip()
    except OSError as error:
        return None, f"its class cannot be read ({error.strerror})"
    if word.isdigit() and int(word) < MOST_CLASSES:
        return int(word), ""
    return None, f"its class {posixpath.basename(file.name)} is no integer from 0"


def _listed(path: Path, images: list[_File], listed: Path, dropped: list[Dropped]) -> list[_Found]:
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
    found: list[_Found] = []
    for image in images:
        row_of = rows.get(image.name)
        why = f"no caption: {listed.name} does not name it" if row_of is None else row_of.why
        if row_of is None or why:
            dropped.append(Dropped(image.name, why))
        else:
            found.append(_Found(image, row_of.lines, row_of.label))
    if any(entry.lines for entry in found):
        alone = f"no caption: {listed.name} gives it a label alone"
        dropped += [Dropped(entry.file.name, alone) for entry in found if entry.lines is None]
        found = [entry for entry in found if entry.lines is not None]
    return found


class _Names:
    """The images of a folder by any name that a caption file may give them."""

    def __init__(self, path: Path, listed: Path, images: list[_File]) -> None:
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


def _tell_captions(found: list[_Found], way: Captions, notes: Notes) -> None:
    """How many images have several captions, or that none has one."""
    if found and not any(entry.lines for entry in found):
        notes.add(BARE.format("" if found[0].label is None else " or label"), found[0].file.name, len(found))
    else:
        for entry in found:
            if entry.lines == []:
                notes.add(EMPTY, entry.file.name)
            if len(entry.lines or ()) > 1:
                notes.add(LINES[way], entry.file.name)
            if any("\ufffd" in line for line in entry.lines or ()):
                notes.add(LOST, entry.file.name)


def _tell(files: list[_File], used: set[_File], dropped: list[Dropped], notes: Notes) -> None:
    """What is left out, or read differently from other programs."""
    told = {entry.name for entry in dropped}
    for file in files:
        if is_image(file.name) or file in used or file.name in told or file.name.endswith(".txt"):
            continue
        table = file.name.lower().endswith(CAPTION_FILES)
        dropped.append(Dropped(file.name, TABLE if table else NO_IMAGE))
    folders = {part for file in files if is_image(file.name) for part in file.name.split("/")[:-1]}
    repeats = sorted(folder for folder in folders if _REPEATS.fullmatch(folder))
    if repeats:
        notes.add(REPEATS, repeats[0], len(repeats))


def _none(path: Path, listed: Path | None, images: list[_File], dropped: list[Dropped]) -> str:
    """Why no image is left, in one sentence."""
    names = {image.name for image in images}
    reasons = [
        entry for entry in dropped if entry.name in names and not entry.reason.startswith("no caption")
    ]
    if reasons:
        return f"no image under {path} can be used; {reasons[0].name}: {reasons[0].reason}"
    where = "a .txt of its name beside it" if listed is None else f"a line in {listed}"
    tables = [entry.name for entry in dropped if entry.reason == TABLE]
    way = f"; captions={path / tables[0]} reads that file" if tables and listed is None else ""
    none = "; captions=none takes them without" if listed is None else ""
    return f"no image under {path} has a caption: each needs {where} ({images[0].name} has none){way}{none}"


def _classes(found: list[_Found], listed: Path | None) -> list[str] | None:
    """The names of the classes, by number; UserError when only some pictures have one, or some in words."""
    labels = {entry.label for entry in found}
    if labels == {None}:
        return None
    bare = next((entry.file.name for entry in found if entry.label is None), None)
    if bare is not None:
        where = "some images have a class" if listed is None else f"{listed} gives a label to some images"
        raise UserError(f"{where} but not to {bare}; label all or none")
    words = sorted(label for label in labels if isinstance(label, str))
    numbers = [label for label in labels if isinstance(label, int)]
    if words and numbers:
        raise UserError(f"{listed} has labels in words ({words[0]}) and in numbers ({numbers[0]}); take one")
    return words or [str(number) for number in range(max(numbers) + 1)]
