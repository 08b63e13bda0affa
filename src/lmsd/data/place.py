"""Where shards lie: files are read in place, remote ones through the cache."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lmsd.data.index import Index, build_index, ensure, watched
from lmsd.data.remote import Cache
from lmsd.data.urls import is_remote

_THREADS = 8  # questions to the server at a time


class Place:
    """Local files of shards, whether they were local or not.

    folder, max_bytes: the cache of remote shards.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._cache = Cache(folder, max_bytes)

    def index(self, shards: Sequence[str]) -> Index:
        """The index of shards from anywhere; remote ones without an index are fetched once to make it."""
        if not any(map(is_remote, shards)):
            return build_index(shards)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda s: self._cache.index(s) if is_remote(s) else ensure(Path(s)), shards)
            files = list(watched(found, len(shards)))
        return Index(shards, files)

    def locate(self, index: Index) -> Callable[[int], str]:
        """Number of a shard → path of a local file of it, fetched now if it has to be."""
        return partial(_path, index, self._cache)

    def ahead(self, index: Index, window: int) -> Callable[[list[int]], None] | None:
        """Told the shards that come next, fetches them behind the reader's back; None when all are local.

        Raises UserError when the cache cannot hold the window that is read and the one that is fetched.
        """
        remote = [h.size for h, name in zip(index.headers, index.shards, strict=True) if is_remote(name)]
        if not remote:
            return None
        self._cache.require(sum(sorted(remote)[-2 * window :]), window)
        return partial(_ahead, index, self._cache)


def _path(index: Index, cache: Cache, shard: int) -> str:
    name = index.shards[shard]
    return str(cache.fetch(name, index.headers[shard])) if is_remote(name) else name


def _ahead(index: Index, cache: Cache, shards: list[int]) -> None:
    cache.ahead([(index.shards[n], index.headers[n]) for n in shards if is_remote(index.shards[n])])
