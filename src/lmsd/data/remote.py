"""Remote shards: fetched whole, ahead of use, into a bounded cache that holds verified files only.

    fetch      to a temporary name; size and sha256 are compared with the index before it is renamed
    evict      least recently used first, before each fetch, so that the cache stays within its limit
    index      the file beside the remote shard if there is one; otherwise made from the shard, fetched once

Processes on one machine share the cache: a lock file for each shard lets one process fetch while the others
wait. A file that is evicted while another process reads it stays readable for that process. Files are named
by the hashes of URLs, never by the URLs.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lmsd.data.index import say_renewed
from lmsd.data.members import SUFFIX, Header, is_older, load_header
from lmsd.data.scan import scan
from lmsd.data.urls import beside, filesystem, unreachable
from lmsd.errors import UserError
from lmsd.files import sha256_of

_THREADS = 2
_TRIES = 2


class Cache:
    """Local copies of remote shards and their indexes below `folder`, at most `max_bytes` of shards."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._running: set[str] = set()

    def require(self, needed: int, window: int) -> None:
        """Raise UserError when the cache is smaller than two windows of shards."""
        if needed > self.max_bytes:
            raise UserError(
                f"data.cache.gigabytes={self.max_bytes / 1e9:g} is less than two windows of {window} "
                f"shards ({needed / 1e9:.3g} GB): raise data.cache.gigabytes= or lower data.train.window="
            )

    def index(self, url: str, *, decoding: bool = False) -> Path:
        """The index of a remote shard, valid for its current size; decoding: made again, decoding all."""
        file = self._name(url, SUFFIX)
        size = _remote_size(url)
        with self._locked(url):
            header = load_header(file) if file.is_file() else None
            if decoding or header is None or header.size != size:
                self._obtain_index(url, size, file, decoding=decoding)
        return file

    def fetch(self, url: str, header: Header) -> Path:
        """The verified local file of a shard, fetched if it is not there."""
        path = self._name(url, ".tar")
        with self._locked(url):
            if not _touched(path, header.size):
                self._download(url, header.size, path, header.sha256)
        return path

    def ahead(self, wanted: list[tuple[str, Header]]) -> None:
        """Start fetching shards in the background, in this order."""
        if self._pool is None or self._pool[0] != os.getpid():  # threads do not outlive a fork
            self._pool = os.getpid(), ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
            self._running = set()
        for url, header in wanted:
            if url not in self._running:
                self._running.add(url)
                self._pool[1].submit(self._quietly, url, header)

    def _quietly(self, url: str, header: Header) -> None:
        # what fails here fails again, with a message, where the shard is read
        with contextlib.suppress(UserError, OSError):
            self.fetch(url, header)
        self._running.discard(url)

    def _obtain_index(self, url: str, size: int, file: Path, *, decoding: bool) -> None:
        fetched = file.with_suffix(".fetched")
        if not decoding:
            with contextlib.suppress(OSError):  # there need not be one
                _get(beside(url, SUFFIX), fetched)
        header = load_header(fetched) if fetched.is_file() else None
        if header is not None and header.size == size:
            os.replace(fetched, file)
            return
        older = any(is_older(old) for old in (fetched, file) if old.is_file())
        fetched.unlink(missing_ok=True)
        path = self._name(url, ".tar")
        if not _touched(path, size):
            self._download(url, size, path, None)
        try:
            scan(path, decoding=decoding).save(file)
        except UserError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{url}: {error}") from error
        if older:
            say_renewed(self.folder)

    def _download(self, url: str, size: int, path: Path, sha256: str | None) -> None:
        room, part = path.with_suffix(".room"), path.with_suffix(".part")
        why = ""
        for _ in range(_TRIES):
            with self._locked("evict"):
                self._evict(size, room)
                room.touch()
                os.truncate(room, size)  # counted from now on, while the bytes arrive beside it
            try:
                _get(url, part)
                why = _wrong(part, size, sha256)
            except OSError as error:
                why = str(error) or type(error).__name__
            with self._locked("evict"):  # others see either the reserved room or the shard
                if not why:
                    os.replace(part, path)
                room.unlink(missing_ok=True)
            if not why:
                return
            part.unlink(missing_ok=True)
        raise UserError(
            f"{url} could not be fetched completely in {_TRIES} tries: {why}; check the copy on the server, "
            "or index it again"
        )

    def _evict(self, coming: int, room: Path) -> None:
        """Delete least recently used shards until `coming` more bytes fit."""
        held = [other for other in self.folder.glob("*.room") if other != room and not self._abandoned(other)]
        shards = sorted(_present(self.folder.glob("*.tar")), key=lambda pair: pair[1].st_mtime_ns)
        total = sum(status.st_size for _, status in [*_present(held), *shards]) + coming
        for path, status in shards:
            if total <= self.max_bytes:
                return
            total -= status.st_size
            path.unlink(missing_ok=True)

    def _abandoned(self, room: Path) -> bool:
        """Delete what a killed process left behind: no process holds its lock."""
        with room.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            room.with_suffix(".part").unlink(missing_ok=True)
            room.unlink(missing_ok=True)
            return True

    @contextlib.contextmanager
    def _locked(self, word: str) -> Iterator[None]:
        with self._name(word, ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _name(self, url: str, suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / (hashlib.sha256(url.encode()).hexdigest()[:32] + suffix)


def _present(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Files with their status, without those that another process has renamed or deleted meanwhile."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path, path.stat()


def _touched(path: Path, size: int) -> bool:
    """Whether a file of this size exists; marks it as just used."""
    try:
        os.utime(path)
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _wrong(part: Path, size: int, sha256: str | None) -> str:
    found = part.stat().st_size
    if found != size:
        return f"{found} bytes arrived, {size} were announced"
    same = sha256 is None or sha256_of(part) == sha256
    return "" if same else "its sha256 differs from the one in its index"


def _remote_size(url: str) -> int:
    try:
        size = filesystem(url).size(url)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"the shard {url} is missing, or its server is: check data.shards=") from error
    except Exception as error:  # every backend of fsspec has its own errors
        raise unreachable(url, error) from error
    if size is None:
        raise UserError(
            f"the server does not report the size of {url}: use one that does, or fetch the file yourself"
        )
    return int(size)


def _get(url: str, target: Path) -> None:
    """Fetch a file. Raises OSError (FileNotFoundError if it does not exist)."""
    try:
        filesystem(url).get_file(url, str(target))
    except (OSError, UserError):
        raise
    except Exception as error:  # every backend of fsspec has its own errors
        raise OSError(f"{type(error).__name__}: {error}") from error
