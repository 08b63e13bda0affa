"""Parquet files: tables of captions, and data sets whose images lie in a column (Hugging Face's layout).

An image column holds a struct {bytes, path}, or bytes. Pictures are read when they are asked for, a row group
at a time, so that no more than one is in memory. Needs pyarrow (`pip install 'lmsd[parquet]'`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from lmsd.data.builders.arrow import opened
from lmsd.data.builders.captions import CAPTION
from lmsd.data.builders.entries import Entry, Spilled
from lmsd.data.builders.source import Dropped
from lmsd.data.shards import split_word
from lmsd.data.text import BadText, captions
from lmsd.errors import UserError

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "image_bytes", "bytes")
_LABELS = ("label", "fine_label", "cls", "class")


def image_column(path: Path) -> str | None:
    """The column that holds encoded images, or None."""
    from pyarrow import types

    found = []
    for column in opened(path).schema_arrow:
        struct = types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0
        binary = types.is_binary(column.type) or types.is_large_binary(column.type)
        if struct or (binary and column.name.lower() in _IMAGES):
            found.append(column.name)
    if len(found) > 1:
        raise UserError(
            f"{path} has several columns of images ({', '.join(found)}), and one is read: drop the others"
        )
    return found[0] if found else None


def entries_of(files: list[tuple[str, Path]], dropped: list[Dropped]) -> tuple[Spilled, list[str] | None]:
    """The pictures of Parquet files with images, given by name and path, and the names of their classes.

    A file's split is what the words of its name say, or of the folders that it lies in.
    """
    names: list[list[str]] = []
    entries = Spilled(_entries(files, dropped, names))
    worded = bool(names) and any(entry.label in names[-1] for entry in entries)
    return entries, names[-1] if worded else None


def _entries(
    files: list[tuple[str, Path]], dropped: list[Dropped], classes: list[list[str]]
) -> Iterator[Entry]:
    """The pictures; classes: takes the names that files have."""
    for name, path in files:
        column = image_column(path)
        if column is None:
            raise UserError(f"{path} has no column of images (a struct with bytes, or bytes called image)")
        names = _class_names(path) or (classes[-1] if classes else None)
        classes += [] if names is None else [names]
        split = next((said for part in reversed(name.split("/")) if (said := split_word(part))), None)
        for group, place, row in _rows(path, column):
            shown = f"{name}:{group}/{place}"
            lines, why = _lines(row)
            if why:
                dropped.append(Dropped(shown, why))
                continue
            label = next((row[each] for each in _LABELS if row.get(each) is not None), None)
            if isinstance(label, int) and names is not None and 0 <= label < len(names):
                label = names[label]
            kept = label if isinstance(label, int | str) else None
            yield Entry(shown, _picture(path, column, group, place), lines, kept, split, fields=row)


def _rows(path: Path, column: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Row group, place in it and cells but the image's, of every row."""
    file = opened(path)
    others = [name for name in file.schema_arrow.names if name != column]
    for group in range(file.num_row_groups):
        if others:
            rows = file.read_row_group(group, columns=others).to_pylist()
        else:
            rows = [{} for _ in range(file.metadata.row_group(group).num_rows)]
        yield from ((group, place, row) for place, row in enumerate(rows))


def _lines(row: Mapping[str, object]) -> tuple[list[str] | None, str]:
    """The captions of a row, or why there are none; None for a row without any such column."""
    name = next((name for name in CAPTION if name in row), None)
    if name is None:
        return None, ""
    try:
        return captions(row[name]), ""
    except BadText as error:
        return None, f"its {name} cannot be used: {error}"


def _picture(path: Path, column: str, group: int, place: int) -> Callable[[], bytes]:
    return partial(_cell, path, column, group, place)


def _cell(path: Path, column: str, group: int, place: int) -> bytes:
    value = _group(path, column, group)[place].as_py()
    found = value.get("bytes") if isinstance(value, dict) else value
    return found or b""


@lru_cache(maxsize=1)
def _group(path: Path, column: str, group: int) -> Any:
    """One row group's images: an array of pyarrow."""
    return opened(path).read_row_group(group, columns=[column]).column(column)


def _class_names(path: Path) -> list[str] | None:
    """The names of classes that Hugging Face stores in the schema."""
    stored = (opened(path).schema_arrow.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    try:
        features = json.loads(stored)["info"]["features"]
        return next((features[name]["names"] for name in _LABELS if "names" in features.get(name, {})), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # another program's words under that key
