"""Shards in, shards out: img2dataset's and other webdataset tars as a source, with the fields of KEY.json."""

import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from lmsd.data.builders.entries import Entry
from lmsd.data.builders.source import Dropped
from lmsd.data.decode import SUFFIXES
from lmsd.data.scan import Member, samples_of
from lmsd.data.shards import split_word
from lmsd.data.text import BadText, captions, decoded
from lmsd.errors import UserError


def entries_of(files: list[tuple[str, Path]], dropped: list[Dropped]) -> Iterator[Entry]:
    """The samples of tar files, given by name and path; what has no image or no usable text is dropped.

    A sample's split is what the words of its shard's name say. UserError for a damaged tar.
    """
    for name, path in files:
        if path.stat().st_size == 0:
            raise UserError(
                f"the shard {path} is empty: it was not written to its end; fetch or build it again"
            )
        split = split_word(path.name)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for key, members in samples_of(path, data):
                shown = f"{name}/{key}"
                images = [suffix for suffix in members if suffix in SUFFIXES]
                if len(images) != 1:
                    dropped.append(Dropped(shown, f"it has {len(images)} images, where one is needed"))
                    continue
                try:
                    fields, lines, label = _words(members, data)
                except (BadText, ValueError, RecursionError) as error:
                    dropped.append(Dropped(shown, f"its caption cannot be used: {error}"))
                    continue
                picture = _picture(path, members[images[0]])
                yield Entry(shown, picture, lines, label, split, fields=fields)


def _words(
    members: Mapping[str, Member], data: mmap.mmap
) -> tuple[dict[str, object], list[str] | None, int | None]:
    """Fields of KEY.json, lines of the caption (KEY.txt, or its "caption") and the class of a sample."""

    def text(suffix: str) -> str:
        member = members[suffix]
        return decoded(data[member.offset : member.offset + member.length])

    found = json.loads(text("json")) if "json" in members else {}
    fields = dict(found) if isinstance(found, dict) else {}
    lines = captions(text("txt")) if "txt" in members else None
    if lines is None and "caption" in fields:
        lines = captions(fields["caption"])
    label = int(text("cls")) if "cls" in members else None
    return fields, lines, label


def _picture(path: Path, member: Member) -> Callable[[], bytes]:
    return partial(_bytes, path, member.offset, member.length)


def _bytes(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)
