"""A file of captions: a CSV table or JSON lines, each row with a file, a caption and, where it has one, a
class.

    CSV, TSV   a header with a file column (file, file_name, image, path, ...) and a caption column (caption,
               text, prompt, ...)
    JSONL      one object a line with the same names; a caption may be a list of texts
    Parquet    columns of the same names (needs pyarrow)

`label` is the class: integers from 0, or words, which are numbered in alphabetical order. Lines are counted
as an editor counts them. What cannot be read at all ends the build; a caption that is no text to train on
drops its picture alone. A table of files and labels gives classes alone.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmsd.data.builders.arrow import table_rows
from lmsd.data.text import BadText, captions, decoded
from lmsd.errors import UserError

FILE = ("file", "file_name", "image", "path", "filename", "image_path", "filepath", "image_file")
CAPTION = ("caption", "text", "prompt", "title", "captions", "description")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_ADDRESS = ("url", "image_url", "URL")

MOST_CLASSES = 1_000_000

_NUMBER = re.compile(r"[-+\d.,\s]*\d[-+\d.,\s]*")


@dataclass(frozen=True)
class Row:
    """One row: its line, the file that it names, the caption's lines or why there are none, its class.

    A class alone has neither lines nor a reason. fields: all of its cells by name.
    """

    line: int
    file: str
    lines: list[str] | None
    why: str
    label: int | str | None
    fields: Mapping[str, object] = field(default_factory=dict)


def read_rows(path: Path) -> list[Row]:
    """The rows of a caption file. Raises UserError naming the line that cannot be read."""
    if not path.is_file():
        raise UserError(f"captions={path} is not there")
    if path.suffix.lower() == ".parquet":
        return [_row(path, line, row) for line, row in table_rows(path)]
    try:
        text = decoded(path.read_bytes())
    except BadText as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"captions={path} cannot be read ({error.strerror})") from error
    if "\0" in text:
        raise UserError(
            f"{path} contains NUL characters, as does UTF-16 or UTF-32 read as UTF-8: save it as UTF-8"
        )
    lines = re.split(r"\r\n|\r|\n", text)
    rows = _csv_rows(path, lines) if path.suffix.lower() in (".csv", ".tsv") else _jsonl_rows(path, lines)
    return [_row(path, line, {name.lower(): cell for name, cell in row.items()}) for line, row in rows]


def _csv_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    head = next((line for line in lines if line.strip()), "")
    signs = "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"
    delimiter = next((sign for sign in signs if sign in head), ",")
    reader = csv.reader((f"{line}\n" for line in lines), strict=True, delimiter=delimiter)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f'{path} line {line} is not CSV ({error}): a quotation mark within a cell is written ""'
            ) from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if any("://" in cell for cell in header):
                raise UserError(
                    f"{path} has no header and names addresses ({header[-1][:60]}): fetch the images with "
                    "img2dataset first, and build from its shards"
                )
            continue
        if len(cells) > len(header):
            raise UserError(f"{path} line {line} has more cells than the header; quote commas")
        yield line, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True))


def _jsonl_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {line} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f'{path} line {line} is not an object like {{"file": ..., "caption": ...}}')
        if next((row[name] for name in CAPTION if name in row), "") is None:
            row = {**row, **{name: "" for name in CAPTION if name in row}}
        yield line, row


def _row(path: Path, line: int, row: Mapping[str, object]) -> Row:
    file = _field(row, FILE, path, line)
    if not isinstance(file, str):
        raise UserError(f"{path} line {line}: the file is {file!r}, not a name")
    label = _label(row.get("label"), path, line)
    if label is not None and not any(name in row for name in CAPTION):
        return Row(line, file, None, "", label, row)
    value = _field(row, CAPTION, path, line)
    if not isinstance(value, str | list):
        name = next(name for name in CAPTION if name in row)
        raise UserError(f"{path} line {line}: {name} is {value!r}, not a text")
    try:
        found = captions(value)
    except BadText as error:
        return Row(line, file, None, f"its caption ({path.name} line {line}) cannot be used: {error}", label)
    return Row(line, file, found, "", label, row)


def _field(row: Mapping[str, object], names: tuple[str, ...], path: Path, line: int) -> object:
    """The first of `names` that the row has."""
    name = next((name for name in names if name in row), None)
    address = next((name for name in _ADDRESS if name in row), None)
    if name is None and names == FILE and address is not None:
        raise UserError(
            f"{path} names images by their addresses ({address}): fetch them with img2dataset and build from "
            "its shards"
        )
    if name is None:
        there = ", ".join(map(str, row)) or "nothing"
        raise UserError(f"{path} line {line} has none of {', '.join(names)}; it has {there}")
    return row[name]


def _label(value: object, path: Path, line: int) -> int | str | None:
    if value is None or value == "":
        return None
    if isinstance(value, int | str) and not isinstance(value, bool):
        word = str(value).strip()
        if word.isdecimal() and int(word) < MOST_CLASSES:
            return int(word)
        if word.isdecimal():
            raise UserError(
                f"{path} line {line}: label {word} is too large for a class: number them from 0 without gaps"
            )
        if not _NUMBER.fullmatch(word):
            return _word(word, path, line)
    raise UserError(f"{path} line {line}: label {value!r} is not an integer from 0, nor a word")


def _word(word: str, path: Path, line: int) -> str:
    try:
        return " ".join(captions(word))
    except BadText as error:
        raise UserError(f"{path} line {line}: the label {word!r} cannot be used: {error}") from error
