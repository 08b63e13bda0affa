"""Which files form a sample: the only pairing of names, for folders and shards.

`dir/KEY.jpg` and `dir/KEY.txt` have the key `dir/KEY`; suffixes may be in upper case, keys are compared in
Unicode's composed form (macOS stores é as two characters), and Windows separators are read as `/`. A key may
contain dots. What is not a sample by itself (an image with its own text) belongs to the shortest key that it
extends and that has an image, as in webdataset: beside `KEY.jpg`, `KEY.mask.png` is the member `mask.png` of
KEY. Without a `KEY.txt`, `KEY.jpg.txt` is the caption of `KEY.jpg`. Hidden files (`.x`, and macOS's
`._x.jpg`) belong to no sample.
"""

import unicodedata
from collections.abc import Iterator, Sequence

from lmsd.data.decode import SUFFIXES

TEXTS = ("txt", "caption")
"""Suffixes of captions; the first one that exists is read."""

_IMAGES = frozenset(SUFFIXES)
_WORDS = frozenset((*TEXTS, "json", "cls"))


def printable(name: str) -> str:
    """A name in which bytes that are not UTF-8 are escaped, so that it can be printed and saved."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a surrogate pair, from JSON
        return name.encode("utf-8", "backslashreplace").decode()


def composed(name: str) -> str:
    """A name in the form in which names are compared."""
    return unicodedata.normalize("NFC", printable(name.replace("\\", "/")))


def hidden(name: str) -> bool:
    """Whether the name of the file itself begins with a dot."""
    return name.replace("\\", "/").rpartition("/")[2].startswith(".")


def parted(name: str) -> tuple[str, str]:
    """The key and the suffix (in lower case, "" for none) of a single name."""
    folder, slash, base = composed(name).rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if dot else (f"{folder}{slash}{base}", "")


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return parted(name)[1] in _IMAGES and not hidden(name)


def grouped(names: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
    """Key → (suffix, number of the name), in the order of the names, without hidden files and bare names."""
    parts = [("", "") if hidden(name) else parted(name) for name in names]
    images = {key for key, suffix in parts if suffix in _IMAGES}
    samples = images & {key for key, suffix in parts if suffix in _WORDS}
    groups: dict[str, list[tuple[str, int]]] = {}
    for number, (key, suffix) in enumerate(parts):
        if not suffix:
            continue
        owner = key if key in samples else next((k for k in _shorter(key) if k in images), key)
        rest = f"{key[len(owner) + 1 :]}.{suffix}" if owner != key else suffix
        groups.setdefault(owner, []).append((rest.lower(), number))
    return {key: _plain(group) for key, group in groups.items()}


def _plain(group: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """KEY.jpg.txt beside KEY.jpg is its caption, where it has no KEY.txt."""
    there = {suffix for suffix, _ in group}
    return [
        (word if dot and image in there & _IMAGES and word in TEXTS and word not in there else suffix, number)
        for suffix, number in group
        for image, dot, word in [suffix.partition(".")]
    ]


def _shorter(key: str) -> Iterator[str]:
    """The keys that a key with dots extends, shortest first."""
    start = key.rfind("/") + 1
    at = key.find(".", start + 1)
    while at > 0:
        yield key[:at]
        at = key.find(".", at + 1)
