"""Remote shards against a local server: fetched ahead, verified, bounded."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tars import data_module, write_shards, write_tar
from test_index import make_older

from lmsd.data.index import build_index
from lmsd.data.remote import Cache
from lmsd.data.storage import Storage
from lmsd.engine.datamodule import ShardDataModule
from lmsd.errors import UserError


class Server:
    """A folder over http; counts what is asked for, and can damage what it sends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: Counter[str] = Counter()
        self.damage: set[str] = set()
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                server.fetched[name] += 1
                if name in server.damage:
                    content = bytearray((folder / name).read_bytes())
                    content[700] ^= 1
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    running = Server(tmp_path / "served")
    yield running
    running.close()


def module_of(server: Server, shards: int, cache: Path, **options) -> ShardDataModule:
    source = f"{server.url}/train-{{000000..{shards - 1:06d}}}.tar"
    options = {"batch_size": 4, "image_size": 8, "window": 1, "memory_gb": 0.0} | options
    return data_module(source, cache_dir=cache, **options)


def texts(module: ShardDataModule, batches: int) -> list[str]:
    loader = iter(module.train_dataloader())
    return [text for _ in range(batches) for text in next(loader).text]


def sizes(folder: Path) -> dict[Path, int]:
    found = {}
    for path in [*folder.glob("*.tar"), *folder.glob("*.room")]:
        with suppress(FileNotFoundError):  # evicted since it was listed
            found[path] = path.stat().st_size
    return found


def used(folder: Path) -> int:
    """Bytes in the cache, counted while no file came or went."""
    while (found := sizes(folder)).keys() != sizes(folder).keys():
        pass
    return sum(found.values())


@pytest.mark.parametrize("indexed", [True, False])
def test_remote_shards_stream_as_local_ones(server, tmp_path, indexed):
    paths = write_shards(server.folder, [4] * 3)
    local = data_module(server.folder, batch_size=4, image_size=8, window=1)
    expected = texts(local, 6)
    if not indexed:
        for path in server.folder.glob("*.idx.npz"):
            path.unlink()
    module = module_of(server, 3, tmp_path / "cache")
    assert texts(module, 6) == expected
    assert module.state_dict()["index_hash"] == local.state_dict()["index_hash"]
    assert all(server.fetched[Path(path).name] == 1 for path in paths)  # whole, once
    again = module_of(server, 3, tmp_path / "cache")
    assert texts(again, 3) == expected[:12]
    assert all(server.fetched[Path(path).name] == 1 for path in paths)  # kept from run to run


def test_making_indexes_is_resumed_where_it_stopped(server, tmp_path):
    write_shards(server.folder, [4] * 3)
    good = (server.folder / "train-000002.tar").read_bytes()
    (server.folder / "train-000002.tar").write_bytes(good[:-11_000])
    with pytest.raises(UserError, match=r"train-000002\.tar.*cut off"):
        module_of(server, 3, tmp_path / "cache").shards.index("train")
    (server.folder / "train-000002.tar").write_bytes(good)
    assert len(module_of(server, 3, tmp_path / "cache").shards.index("train")) == 12
    assert server.fetched["train-000000.tar"] == 1
    assert server.fetched["train-000002.tar"] == 2


def test_the_cache_stays_below_its_bound_and_evicts_the_oldest(server, tmp_path):
    paths = write_shards(server.folder, [4] * 6)
    build_index(paths)
    size = Path(paths[0]).stat().st_size
    cache = tmp_path / "cache"
    module = module_of(server, 6, cache, cache_gb=3.5 * size / 1e9)
    expected = texts(data_module(server.folder, batch_size=4, image_size=8, window=1), 12)
    loader, seen = iter(module.train_dataloader()), []
    for _ in range(12):
        seen += next(loader).text
        assert used(cache) <= 3.5 * size
    assert seen == expected
    assert len(list(cache.glob("*.tar"))) <= 3


def test_a_cache_too_small_for_two_windows_is_refused(server, tmp_path):
    paths = write_shards(server.folder, [4] * 4)
    build_index(paths)
    size = Path(paths[0]).stat().st_size
    module = module_of(server, 4, tmp_path / "cache", window=2, cache_gb=3.5 * size / 1e9)
    with pytest.raises(UserError, match=r"raise data\.cache\.gigabytes="):
        module.train_dataloader()


def test_the_next_window_is_fetched_before_it_is_read(server, tmp_path):
    build_index(write_shards(server.folder, [8] * 4))
    module = module_of(server, 4, tmp_path / "cache")
    loader = module.train_dataloader()
    next(iter(loader))
    order = loader.dataset.order
    after = order.shards(*order.following(0, 0))[0]
    deadline = time.monotonic() + 20
    name = f"train-{after:06d}.tar"
    path = tmp_path / "cache" / (hashlib.sha256(f"{server.url}/{name}".encode()).hexdigest()[:32] + ".tar")
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()
    assert sum(server.fetched[f"train-{k:06d}.tar"] for k in range(4)) == 2  # and nothing further


def test_a_corrupt_download_is_refused_and_does_not_stay(server, tmp_path):
    build_index(write_shards(server.folder, [4] * 2))
    server.damage = {"train-000000.tar", "train-000001.tar"}
    module = module_of(server, 2, tmp_path / "cache")
    with pytest.raises(UserError, match="sha256 differs from the one in its index"):
        texts(module, 1)
    time.sleep(0.2)  # let what is fetched ahead fail too
    assert list((tmp_path / "cache").glob("*.tar")) == []
    server.damage = set()
    assert len(texts(module, 2)) == 8


def test_a_shard_that_changed_on_the_server_is_indexed_anew(server, tmp_path):
    write_shards(server.folder, [4])
    first = module_of(server, 1, tmp_path / "cache").shards.index("train")
    write_shards(server.folder, [40])
    second = module_of(server, 1, tmp_path / "cache").shards.index("train")
    assert (len(first), len(second)) == (4, 40)
    assert first.hash != second.hash


def test_missing_shards_and_servers_are_told(server, tmp_path):
    with pytest.raises(UserError, match=r"train-000000\.tar is missing"):
        module_of(server, 1, tmp_path / "cache").shards.index("train")
    module = data_module(
        "http://127.0.0.1:9/train-0.tar", batch_size=1, image_size=8, cache_dir=tmp_path / "cache"
    )
    with pytest.raises(UserError, match=r"train-0\.tar is missing, or its server is"):
        module.shards.index("train")


def test_names_in_the_cache_are_hashes(server, tmp_path):
    write_shards(server.folder, [2])
    texts(module_of(server, 1, tmp_path / "cache", batch_size=2), 1)
    for path in (tmp_path / "cache").iterdir():
        assert len(path.stem.partition(".")[0]) == 32


def test_many_readers_fetch_a_shard_once(server, tmp_path):
    paths = write_shards(server.folder, [20])
    index = build_index(paths)
    url = f"{server.url}/train-000000.tar"
    caches = [Cache(tmp_path / "cache", 10**9) for _ in range(8)]
    threads = [threading.Thread(target=cache.fetch, args=(url, index.headers[0])) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.fetched["train-000000.tar"] == 1


def test_what_a_killed_download_left_does_not_count(server, tmp_path):
    paths = write_shards(server.folder, [4] * 2)
    index = build_index(paths)
    size = index.headers[0].size
    folder = tmp_path / "cache"
    folder.mkdir()
    left = folder / ("0" * 32 + ".room")
    left.write_bytes(b"x" * (2 * size))
    left.with_suffix(".part").write_bytes(b"x")
    cache = Cache(folder, int(2.5 * size))
    for name in ("train-000000.tar", "train-000001.tar"):
        cache.fetch(f"{server.url}/{name}", index.headers[int(name[6:12])])
    assert not left.exists()
    assert not list(folder.glob("*.part"))
    assert len(list(folder.glob("*.tar"))) == 2


def test_workers_read_remote_shards_too(server, tmp_path):
    build_index(write_shards(server.folder, [4] * 3))
    expected = texts(module_of(server, 3, tmp_path / "a"), 6)
    assert texts(module_of(server, 3, tmp_path / "b", num_workers=2), 6) == expected


def test_local_and_remote_shards_may_be_mixed(server, tmp_path):
    write_shards(server.folder, [4])
    local = write_tar(tmp_path / "train-9.tar", [("z.jpg", _first_jpeg(server.folder)), ("z.txt", b"here")])
    storage = Storage(tmp_path / "cache", 1.0)
    index = storage.index([f"{server.url}/train-000000.tar", str(local)])
    assert index.sizes.tolist() == [4, 1]
    assert storage.locate(index)(1) == str(local)
    assert Path(storage.locate(index)(0)).read_bytes() == (server.folder / "train-000000.tar").read_bytes()
    assert storage.ahead(build_index([local]), 1) is None


def test_a_presigned_url_streams_and_its_index_is_asked_for_in_the_path(server, tmp_path):
    build_index(write_shards(server.folder, [4]))
    url = f"{server.url}/train-000000.tar?X-Amz-Signature=abc&download=true"
    module = data_module(url, cache_dir=tmp_path / "cache", batch_size=4, image_size=8, memory_gb=0.0)
    assert sorted(texts(module, 1)) == [f"picture {k}" for k in range(4)]
    asked = set(server.fetched)
    assert asked == {f"train-000000.tar{end}?X-Amz-Signature=abc&download=true" for end in ("", ".idx.npz")}


def test_an_older_index_beside_a_remote_shard_is_made_again_in_the_cache(server, tmp_path, caplog):
    path = Path(write_shards(server.folder, [4])[0])
    build_index([path])
    make_older(Path(f"{path}.idx.npz"))
    for _ in range(2):
        assert len(module_of(server, 1, tmp_path / "cache").shards.index("train")) == 4
    assert server.fetched == {"train-000000.tar.idx.npz": 1, "train-000000.tar": 1}
    assert caplog.text.count("older version") == 1


def _first_jpeg(folder: Path) -> bytes:
    path = folder / "train-000000.tar"
    start, length, _ = build_index([path]).shard(0).column("jpg")[0].tolist()
    return path.read_bytes()[start : start + length]
