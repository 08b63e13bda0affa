"""The meaning of `data.shards=` (folder, glob, brace range, http or s3 URL, or a list of these), and the
splits.

A shard's split is its file prefix, `train-`, `val-` or `test-`; otherwise the word of its name that means a
split (`cc3m-validation-0001`, `test_000`, `val0`), or of its folder's name if the shards are in several
folders. A name without such a word is train, and one with two is refused. Nothing here opens a shard, and no
name is ever passed to a shell (webdataset would run `pipe:`).
"""

import glob
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NoReturn, TypeAlias, get_args
from urllib.parse import urlsplit, urlunsplit

from lmsd.data.members import SUFFIX
from lmsd.data.urls import filesystem, is_remote, name_of, unreachable
from lmsd.errors import UserError

Split: TypeAlias = Literal["train", "val", "test"]
Source: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
SPLITS: tuple[Split, ...] = get_args(Split)

_REMOTE = ("http", "https", "s3")
_MEANT: dict[Split, str] = {
    "train": "train|training",
    "val": "val|valid|validation|dev|development|eval|evaluation|minival|holdout|heldout",
    "test": "test|testing|testdev|tst",
}


def split_of(shard: str) -> Split:
    """The split that a shard's file name means. Raises UserError for a name that means two."""
    return split_word(name_of(shard)) or "train"


def repeats_of(shard: str) -> int:
    """How often samples of a train shard come in an epoch: 10 for `train-repeat10-000000.tar`, else once."""
    found = re.match(r"train-repeat(\d{1,3})-", name_of(shard))
    return max(int(found[1]), 1) if found else 1


def split_word(name: str) -> Split | None:
    """The split that the words of a name mean, or None."""
    prefix = next((split for split in SPLITS if name.startswith(f"{split}-")), None)
    if prefix is not None:
        return prefix
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    found = [s for s in SPLITS if any(re.fullmatch(f"({_MEANT[s]})(set|split|data|s)?", w) for w in words)]
    if len(found) > 1:
        raise UserError(
            f"the name {name} means both {' and '.join(found)}: call it {found[0]}-{name} or "
            f"{found[1]}-{name}, whichever it is"
        )
    return found[0] if found else None


def resolve(source: Source) -> tuple[str, ...]:
    """Every shard that a source names, sorted by file name, then by path.

    Raises UserError for a missing file or folder, a scheme other than http, https and s3, a shard named
    twice.
    """
    found = [shard for part in words_of(source) for shard in _expand(part)]
    if not found:
        raise UserError(f"data.shards={source!r} names no shard: give a folder, a glob or a brace range")
    ordered = sorted(found, key=lambda shard: (name_of(shard), shard))
    for shard, following in pairwise(ordered):
        if shard == following:
            raise UserError(f"data.shards={source!r} names {shard} twice: name each shard once")
    return tuple(ordered)


def words_of(source: Source) -> list[str]:
    """The words of a source, one for each item of a list."""
    return [os.fspath(word) for word in ([source] if isinstance(source, str | os.PathLike) else source)]


def by_split(shards: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    """Shards by the split that their names mean, or those of their folders if there are several."""
    folders = {shard.rpartition("/")[0] for shard in shards}
    found: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for shard in shards:
        folder = name_of(shard.rpartition("/")[0]) if len(folders) > 1 else ""
        found[split_word(name_of(shard)) or split_word(folder) or "train"].append(shard)
    return {split: tuple(names) for split, names in found.items()}


def chosen(source: Source, split: Split) -> tuple[str, ...]:
    """The shards of `data.val=` or `data.test=`: those of the split, or all if none is."""
    shards = resolve(source)
    return by_split(shards)[split] or shards


def _expand(part: str) -> list[str]:
    part = part.strip()
    scheme = part.partition(":")[0] if ":" in part else ""
    if scheme == "pipe" or part.startswith("|"):
        raise UserError(f"{part!r}: a shard is never a command; name a file, or an http or s3 URL")
    if is_remote(part) and scheme not in _REMOTE:
        raise UserError(f"{part!r}: shards are read from files, http, https and s3, not from {scheme!r}")
    names = _braces(part)
    if is_remote(part):
        return [url for name in names for url in _remote(name)]
    names = [os.path.expanduser(name) for name in names]
    gone = [name for name in names if not os.path.exists(name) and not glob.has_magic(name)]
    if len(gone) > 1:
        told = f"{', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}"
        raise UserError(
            f"{len(gone)} of {len(names)} shards of {part} are missing: {told}; fetch or build them "
            "again, or name the existing ones by a glob such as 'train-*.tar'"
        )
    return [os.path.abspath(path) for name in names for path in _local(name)]


def _braces(part: str) -> list[str]:
    """`a-{000..002}` and `{a,b}` expanded, by the library that webdataset uses."""
    if "{" not in part:
        return [part]
    import braceexpand

    try:
        return list(braceexpand.braceexpand(part))
    except ValueError as error:  # unbalanced braces
        raise UserError(f"{part!r}: {error}; a range is written NAME-{{000000..000009}}.tar") from error


def _local(name: str) -> list[str]:
    if os.path.isdir(name):
        entries = sorted(os.listdir(name))
        found = [os.path.join(name, entry) for entry in entries if entry.lower().endswith(".tar")]
        return found or _refuse_folder(name, entries)
    if os.path.isfile(name):
        return [name]
    if glob.has_magic(name):
        found = sorted(path for path in glob.glob(name) if os.path.isfile(path))
        if not found:
            raise UserError(f"no file matches {name}: check the pattern, or name the folder")
        return found
    raise UserError(f"the shard {name} is missing: check its name, or fetch the file again")


def _refuse_folder(name: str, entries: list[str]) -> NoReturn:
    packed = [entry for entry in entries if re.search(r"\.(tgz|tar\.\w+)$", entry.lower())]
    packed = [entry for entry in packed if not entry.endswith(SUFFIX)]
    below = [
        entry for entry in entries if glob.glob(os.path.join(glob.escape(name), glob.escape(entry), "*.tar"))
    ]
    if packed:
        raise UserError(
            f"the folder {name} contains compressed shards ({packed[0]}), but samples are read at their "
            "offsets in an uncompressed tar file: unpack them once, e.g. gunzip *.tar.gz"
        )
    if below:
        raise UserError(
            f"the folder {name} contains no .tar shard, but its subfolder {below[0]} does: name that, or "
            f"'{name}/*/*.tar'"
        )
    raise UserError(f"the folder {name} contains no .tar shard: build some with `lmsd data build`")


def _remote(url: str) -> list[str]:
    parts = urlsplit(url)
    if not parts.netloc:
        raise UserError(
            f"{url!r} names no {'bucket' if parts.scheme == 's3' else 'server'}: check the address"
        )
    if any(sign in parts.path for sign in "*?["):
        return _listed(url)
    if name_of(url).endswith(".tar"):
        return [url]
    if parts.path.lower().endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise UserError(f"{url!r} is compressed, but samples are read at their offsets: unpack it once")
    return _listed(urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/*.tar")))


def _listed(pattern: str) -> list[str]:
    """A listing, which s3 offers and http does not."""
    if not pattern.startswith("s3://"):
        raise UserError(
            f"{pattern!r}: http has no folders to list; give a range such as .../train-{{000000..000009}}.tar"
        )
    try:
        found = [f"s3://{path}" for path in filesystem(pattern).glob(pattern)]
    except UserError:
        raise
    except Exception as error:  # every backend of fsspec has its own errors
        raise unreachable(pattern, error) from error
    if not found:
        raise UserError(f"no object matches {pattern}: check the bucket, the prefix and the credentials")
    return sorted(str(path) for path in found)
