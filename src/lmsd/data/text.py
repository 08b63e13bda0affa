"""Captions from bytes: the only reader of text, for builders and readers.

Text is UTF-8; a byte order mark is not part of it. Other encodings are refused, as are control characters
(UTF-16 without a mark shows as NULs), halves of surrogate pairs, and more than `MAX_CAPTION` bytes. White
space of any kind and length becomes one space. Lines are separate captions, joined by a space by default.
"""

import codecs
import unicodedata
from collections.abc import Sequence
from typing import Literal, TypeAlias

Lines: TypeAlias = Literal["join", "first", "draw"]
"""What several lines of a caption become: all joined into one, the first, or a random one."""

MAX_CAPTION = 64 << 10
EMPTY = "empty captions, trained as no words at all"
LOST = "captions with U+FFFD, which marks lost characters"

_BLANKS = "\t\n\v\f\r\x85"  # control characters that count as white space
_MARK = "\ufeff"
_MARKS = '.,;:!?"()[]'
_UNSEEN = "\u200b\u200c\u200d\u200e\u200f\u2060\u00ad "  # a line of only these is empty


class BadText(ValueError):
    """Bytes or a value that cannot be used as text; the message says why."""


def decoded(content: bytes) -> str:
    """UTF-8 text without its byte order mark. Raises BadText saying what it is instead."""
    try:
        return content.decode().removeprefix(_MARK)
    except UnicodeDecodeError as error:
        if content[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
            raise BadText("it is not UTF-8 text but UTF-32: save it as UTF-8") from error
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadText("it is not UTF-8 text but UTF-16: save it as UTF-8") from error
        raise BadText(
            f"it is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def captions(value: object) -> list[str]:
    """The captions of a text, one per line, or of a list of texts; none for None. Raises BadText."""
    if isinstance(value, str) and value.isprintable() and len(value) < MAX_CAPTION // 4:  # nearly all
        line = " ".join(value.split()) if "  " in value else value.strip()
        return [line] if line else []
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [line for item in value for line in captions(item)]
    if not isinstance(value, str):
        raise BadText(f"the caption is {value!r}, not a text")
    _check(value)
    lines = value.replace(_MARK, "").replace("\r", "\n").split("\n")
    return [line for line in (" ".join(line.split()) for line in lines) if line.strip(_UNSEEN)]


def caption_of(lines: Sequence[str], way: Lines = "join", *, u: float = 0.0) -> str:
    """The caption that the lines become, "" for none; u in [0, 1) selects a random one."""
    if way == "join" or len(lines) < 2:
        return " ".join(lines)
    return lines[int(u * len(lines)) if way == "draw" else 0]


def words_of(caption: str) -> list[str]:
    """The words of a caption: what stands between white space, without punctuation around it."""
    return [word for each in caption.split() if (word := each.strip(_MARKS))]


def _check(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise BadText(
            f"it contains half a character ({half!r} at {error.start}, a surrogate without its pair)"
        ) from error
    if size > MAX_CAPTION:
        raise BadText(f"it has {size:,} bytes, more than {MAX_CAPTION >> 10} KiB of text")
    for place, sign in enumerate(text):
        if unicodedata.category(sign) == "Cc" and sign not in _BLANKS:
            what = "a NUL character" if sign == "\0" else f"the control character {sign!r}"
            told = ", as does UTF-16 or UTF-32 read as UTF-8: save it as UTF-8" if sign == "\0" else ""
            raise BadText(f"it contains {what} at {place}{told}")
