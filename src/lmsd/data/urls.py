"""What a shard's name says: a path, or an http, https or s3 URL; and who opens URLs."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lmsd.errors import UserError


def is_remote(shard: str) -> bool:
    """Whether a shard is named by an http, https or s3 URL."""
    return "://" in shard


def name_of(shard: str) -> str:
    """The file name of a path or URL."""
    return Path(urlsplit(shard).path if is_remote(shard) else shard).name


def filesystem(url: str) -> Any:
    """Return fsspec's view of a URL's scheme. Raises UserError when the scheme's package is missing."""
    import fsspec

    try:
        return fsspec.filesystem(url.partition("://")[0])
    except ImportError as error:
        raise UserError(
            f"{url} needs a package that is not installed: pip install 'lmsd[s3]' ({error})"
        ) from error
