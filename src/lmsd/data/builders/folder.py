"""The source `folder`: images under a folder, each with a caption.

Captions come from a .txt beside each image (dog.jpg, dog.txt), or from one file:

    CSV     a header with a file column (file, file_name, image or path) and a caption column (caption, text)
    JSONL   one object a line with the same names

and, in either, an optional `label`: the class as an integer from 0. Files are named relative to the folder.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmsd.data.builders.pictures import SUFFIXES
from lmsd.data.builders.source import Dropped, Raw, Source
from lmsd.errors import UserError

FILE = ("file", "file_name", "image", "path")
CAPTION = ("caption", "text")


@dataclass(frozen=True)
class _Words:
    caption: str
    label: int | None
    line: int


def folder_source(path: Path | None, captions: Path | None) -> Source:
    """The images under `path` in the order of their names; those without a caption are dropped and named.

    UserError when the folder or the caption file is missing or unreadable, or when nothing matches.
    """
    if path is None:
        raise UserError("the source folder needs path=, the folder of the images")
    if not path.is_dir():
        raise UserError(f"path={path} is no folder")
    images, others = _files(path)
    if not images:
        raise UserError(f"no image under {path}; images end in {', '.join(sorted(SUFFIXES))}")
    dropped: list[Dropped] = []
    if captions is None:
        samples = list(_beside(path, images, others, dropped))
    else:
        others = [name for name in others if not captions.exists() or not captions.samefile(path / name)]
        samples = list(_listed(path, images, captions, dropped))
    dropped += [Dropped(n, "not an image by its name") for n in others if not n.endswith(".txt")]
    if not samples:
        where = "a .txt of its name beside it" if captions is None else f"a line in {captions}"
        raise UserError(f"no image under {path} has a caption: each needs {where} ({images[0]} has none)")
    return Source(
        name="folder",
        samples=samples,
        total=len(samples),
        image_size=64,
        channels=3,
        similarity=0.99,
        kinship=0.97,
        val=0.1,
        test=0.1,
        classes=_classes(samples, captions),
        dropped=sorted(dropped, key=lambda entry: entry.name),
    )


def _files(path: Path) -> tuple[list[str], list[str]]:
    """Relative names of the images and of all other files, sorted; hidden ones are left alone."""
    names = sorted(
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if entry.is_file() and not any(part.startswith(".") for part in entry.relative_to(path).parts)
    )
    images = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    chosen = set(images)
    return images, [name for name in names if name not in chosen]


def _beside(path: Path, images: list[str], others: list[str], dropped: list[Dropped]) -> Iterator[Raw]:
    """Pair each image with the .txt of its name, noting what has no partner."""
    texts = {str(Path(name).with_suffix("")): name for name in others if name.endswith(".txt")}
    stems = {str(Path(name).with_suffix("")) for name in images}
    dropped += [
        Dropped(name, "a caption without an image") for stem, name in texts.items() if stem not in stems
    ]
    for name in images:
        text = texts.get(str(Path(name).with_suffix("")))
        if text is None:
            dropped.append(Dropped(name, f"no caption: {Path(name).with_suffix('.txt').name} is not there"))
            continue
        try:
            caption = " ".join((path / text).read_text(encoding="utf-8-sig").split())
        except UnicodeDecodeError:
            dropped.append(Dropped(name, f"its caption {Path(text).name} is not UTF-8"))
            continue
        if caption:
            yield Raw(name, path / name, caption)
        else:
            dropped.append(Dropped(name, f"its caption {Path(text).name} is empty"))


def _listed(path: Path, images: list[str], captions: Path, dropped: list[Dropped]) -> Iterator[Raw]:
    """Pair each image with its line of the caption file, noting what has no partner."""
    words = _read_captions(captions)
    known = set(images)
    dropped += [
        Dropped(name, f"{captions.name} line {entry.line} names it, and it is no image under the folder")
        for name, entry in words.items()
        if name not in known
    ]
    for name in images:
        if name not in words:
            dropped.append(Dropped(name, f"no caption: {captions.name} does not name it"))
        elif not words[name].caption:
            dropped.append(Dropped(name, f"its caption is empty ({captions.name} line {words[name].line})"))
        else:
            yield Raw(name, path / name, words[name].caption, words[name].label)


def _read_captions(captions: Path) -> dict[str, _Words]:
    """File name → words, from a CSV or JSONL file; UserError naming the line that cannot be read."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows}
    if captions.suffix.lower() not in readers:
        raise UserError(f"captions={captions} is neither .csv nor .jsonl")
    if not captions.is_file():
        raise UserError(f"captions={captions} is not there")
    result: dict[str, _Words] = {}
    try:
        for line, row in readers[captions.suffix.lower()](captions):
            name = Path(_field(row, FILE, captions, line)).as_posix()
            caption = " ".join(_field(row, CAPTION, captions, line).split())
            words = _Words(caption, _label(row.get("label"), captions, line), line)
            old = result.setdefault(name, words)
            if old.line != line:
                raise UserError(f"{captions} names {name} twice, in lines {old.line} and {line}; remove one")
    except UnicodeDecodeError as error:
        raise UserError(f"{captions} is not UTF-8 ({error}); save it as UTF-8") from error
    return result


def _csv_rows(captions: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with captions.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for row in reader:
                if None in row:
                    raise UserError(
                        f"{captions} line {reader.line_num} has more cells than the header; quote commas"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{captions} line {reader.line_num} is not CSV: {error}") from error


def _jsonl_rows(captions: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with captions.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{captions} line {line} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise UserError(f'{captions} line {line} is no object like {{"file": ..., "caption": ...}}')
            yield line, row


def _field(row: Mapping[str, object], names: tuple[str, ...], captions: Path, line: int) -> str:
    """The first of `names` that the row has, as a string."""
    name = next((name for name in names if name in row), None)
    if name is None:
        there = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{captions} line {line} has none of {', '.join(names)}; it has {there}")
    value = row[name]
    if not isinstance(value, str):
        raise UserError(f"{captions} line {line}: {name} is {value!r}, not a text")
    return value


def _label(value: object, captions: Path, line: int) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, int | str) and str(value).strip().isdecimal():
        return int(value)
    raise UserError(f"{captions} line {line}: label {value!r} is not an integer from 0")


def _classes(samples: list[Raw], captions: Path | None) -> list[str] | None:
    """The class numbers as names; UserError when only some pictures have a label."""
    labels = {sample.label for sample in samples}
    if labels == {None}:
        return None
    bare = next((sample.name for sample in samples if sample.label is None), None)
    if bare is not None:
        raise UserError(f"{captions} gives a label to some images but not to {bare}; label all or none")
    return [str(number) for number in range(max(label for label in labels if label is not None) + 1)]
