"""Files written whole or not at all, and the folder for what is kept between runs.

write    to PATH.tmp.ID, in the same folder
fsync    the file; rename it to PATH; fsync the folder, so that power may fail right after
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """LMSD_CACHE, or ~/.cache/lmsd."""
    root = os.environ.get("LMSD_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "lmsd"


@contextmanager
def replacing(path: Path, *, stale: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path` for the block to write, which then replaces `path` durably.

    stale: a file that is only true of the old content, removed once the new content is on the disk, before
    the rename. If the block raises, `path` is as it was and the temporary file is gone.
    """
    temporary = path.with_name(f"{path.name}.tmp.{os.urandom(4).hex()}")
    try:
        yield temporary
        sync(temporary)
        if stale is not None:
            stale.unlink(missing_ok=True)
            sync(stale.parent)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content, UTF-8, entirely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
