"""The source `folder`: images under a folder, each with a caption, or none of them with one.

Captions come from a .txt beside each image (dog.jpg, dog.txt; .caption, or the `caption` of a .json, where
there is no .txt), or from one file (`captions`). Where no file is one, and with captions=none, images have
no captions, but classes where KEY.cls lies beside each. Linked folders are read. Names in a caption file are
relative to the folder or to the file itself; Windows' separators, absolute names of files inside the folder
and the two ways of writing é are understood. What is left out is named with the reason.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import get_args

from lmsd.data.builders.captions import MOST_CLASSES
from lmsd.data.builders.captions import SUFFIXES as CAPTION_FILES
from lmsd.data.builders.entries import Entry, File, files_under, source_of
from lmsd.data.builders.listed import by_table
from lmsd.data.builders.source import Captions, Dropped, Source
from lmsd.data.decode import SUFFIXES
from lmsd.data.names import TEXTS, grouped, is_image
from lmsd.data.notes import Notes
from lmsd.data.text import MAX_CAPTION, BadText, captions, decoded
from lmsd.errors import UserError

REPEATS = "folders named like repeats (10_dog), which are not followed: each picture counts once"

NO_IMAGE = "not an image by its name"
TABLE = "a caption file that is not read: captions=FILE takes one"

_REPEATS = re.compile(r"\d+_.+")


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


def folder_source(path: Path | None, listed: Path | None, lines: Captions = "join") -> Source:
    """The images under `path` in the order of their names; those without a caption are dropped and named.

    listed: a caption file; lines: what several lines of a caption give, or "none". UserError when the folder
    or the caption file is missing or unreadable, or when nothing matches.
    """
    path = _checked(path, listed)
    dropped: list[Dropped] = []
    notes, used = Notes(), set[File]()
    files = files_under(path, dropped)
    if listed is not None and listed.exists():
        files = [file for file in files if not listed.samefile(file.path)]
    images = [file for file in files if is_image(file.name)]
    if not images:
        there = sorted({Path(file.name).suffix.lower() for file in files} - {""})
        told = f" (there are {', '.join(there[:5])})" if there else ""
        raise UserError(f"no image under {path}{told}; images end in {', '.join(SUFFIXES)}")
    left = len(dropped)
    if listed is not None:
        found = by_table(path, images, listed, dropped)
    else:
        found = beside(files, dropped, used, bare=lines == "none")
        if not found and _wordless(files, dropped[left:]):
            del dropped[left:]
            found = beside(files, dropped, used, bare=True)
    tell_rest(files, used, dropped, notes)
    if not found:
        raise UserError(_none(path, listed, images, dropped))
    where = "some images" if listed is None else str(listed)
    return source_of("folder", found, lines, dropped=dropped, notes=notes, where=where)


def _wordless(files: list[File], dropped: list[Dropped]) -> bool:
    """Whether a folder has no captions of any kind: no text, no table, no class of only some images."""
    texts = any(file.name.lower().endswith((*TEXTS, ".json", *CAPTION_FILES)) for file in files)
    return not texts and all(entry.reason.startswith("no caption") for entry in dropped)


def beside(files: list[File], dropped: list[Dropped], used: set[File], *, bare: bool) -> list[Entry]:
    """Pair each image with the text of its name, noting what has no partner; used: the texts and classes.

    bare: without texts.
    """
    found: list[Entry] = []
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
                    found.append(Entry(*files[number], lines, label))
    return sorted(found, key=lambda entry: entry.name)


def _words(
    image: File, text: File | None, cls: File | None, *, bare: bool
) -> tuple[list[str] | None, int | None, str]:
    """The captions and class of an image, or why it has none; bare: it needs no captions."""
    if text is None and not bare:
        return None, None, f"no caption: {Path(image.name).with_suffix('.txt').name} is not there"
    lines, why = (None, "") if text is None else caption_lines(text)
    if why or cls is None:
        return lines, None, why
    return lines, *_class(cls)


def caption_lines(text: File) -> tuple[list[str] | None, str]:
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


def _class(file: File) -> tuple[int | None, str]:
    try:
        word = file.path.read_bytes().strip()
    except OSError as error:
        return None, f"its class cannot be read ({error.strerror})"
    if word.isdigit() and int(word) < MOST_CLASSES:
        return int(word), ""
    return None, f"its class {posixpath.basename(file.name)} is no integer from 0"


def tell_rest(files: list[File], used: set[File], dropped: list[Dropped], notes: Notes) -> None:
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


def _none(path: Path, listed: Path | None, images: list[File], dropped: list[Dropped]) -> str:
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
