"""Names of shards, which are paths or http, https and s3 URLs, and what opens the URLs."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from lmsd.errors import UserError

_S3 = (
    "s3 reads AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (FSSPEC_S3_ANON=1 for public buckets), and "
    "AWS_ENDPOINT_URL for servers that are not Amazon's"
)


def is_remote(shard: str) -> bool:
    """Whether a shard is named by an http, https or s3 URL."""
    return "://" in shard


def name_of(shard: str) -> str:
    """The file name of a path or URL; if a URL names its file after the `?`, that one."""
    if not is_remote(shard):
        return Path(shard).name
    parts = urlsplit(shard)
    asked = [] if parts.path.endswith(".tar") else [value for _, value in parse_qsl(parts.query)]
    return Path(next((value for value in asked if value.endswith(".tar")), parts.path)).name


def beside(url: str, suffix: str) -> str:
    """The URL of the file beside another that has its name and a suffix; the query is kept."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path + suffix))


def unreachable(url: str, error: Exception) -> UserError:
    """The error of a backend of fsspec in one sentence."""
    said = " ".join(str(error).split()) or type(error).__name__
    keys = f"; {_S3}" if url.startswith("s3://") else ""
    return UserError(f"{url} cannot be reached ({said}): check the address{keys}")


def filesystem(url: str) -> Any:
    """Return fsspec's view of a URL's scheme. Raises UserError when the scheme's package is missing."""
    import fsspec

    try:
        return fsspec.filesystem(url.partition("://")[0])
    except ImportError as error:
        raise UserError(
            f"{url} needs a package that is not installed: pip install 'lmsd[s3]' ({error})"
        ) from error
