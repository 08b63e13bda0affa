"""Where shards are stored: local files are read in place, remote ones through the cache."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.data.index import Index, build_index, counted, ensure
from lmsd.data.remote import Cache
from lmsd.data.urls import is_remote
from lmsd.errors import Measure
from lmsd.files import cache_folder

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress

_THREADS = 8  # concurrent requests to the server


class Storage:
    """Local files of shards, wherever these are stored.

    folder, gigabytes: the cache of remote shards, by default in the user's own cache folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, gigabytes: Measure = 20.0) -> None:
        self._cache = Cache(Path(folder) if folder else cache_folder() / "shards", int(gigabytes * 1e9))

    def index(
        self, shards: Sequence[str], *, decoding: bool = False, progress: "Progress | None" = None
    ) -> Index:
        """The index of local and remote shards; a remote shard without an index is fetched once to make it.

        decoding: read all of them again and decode every image.
        """
        if not any(map(is_remote, shards)):
            return build_index(shards, decoding=decoding, progress=progress)

        def one(shard: str) -> Path:
            if is_remote(shard):
                return self._cache.index(shard, decoding=decoding)
            return ensure(Path(shard), decoding=decoding)

        with ThreadPoolExecutor(_THREADS) as pool:
            files = list(counted(pool.map(one, shards), len(shards), progress))
        return Index(shards, files)

    def locate(self, index: Index) -> Callable[[int], str]:
        """Number of a shard → path of its local file, which is fetched if necessary."""
        return partial(_path, index, self._cache)

    def ahead(self, index: Index, window: int) -> Callable[[list[int]], None] | None:
        """A function that fetches the shards that come next in the background; None if all are local.

        Raises UserError if the cache cannot hold both the window that is read and the one that is fetched.
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
