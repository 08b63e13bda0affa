"""Shards on S3: the client's own protocol against a small server of ours, found by AWS_ENDPOINT_URL."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import fsspec.config
import pytest
from tars import data_module, write_shards

from lmsd.data.index import build_index
from lmsd.data.urls import filesystem
from lmsd.engine.datamodule import ShardDataModule
from lmsd.errors import UserError

BUCKET = "s3://pictures/set"
EMPTY = b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>"


class Bucket:
    """A folder as the bucket `pictures`, path style: HeadObject, GetObject, ListObjectsV2, errors in XML.

    Requests that are not signed with the key "reader" are refused, unless the bucket is public.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.got: Counter[str] = Counter()
        self.signed: set[bool] = set()
        self.public = False
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                parts = urlsplit(self.path)
                key = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
                bucket.signed.add(bool(key))
                path = bucket.folder / parts.path.removeprefix("/pictures/")
                if key != "reader" and not bucket.public:
                    self.send(403, b"<Error><Code>AccessDenied</Code></Error>")
                elif "list-type" in parse_qs(parts.query):
                    self.send(200, EMPTY)
                elif not path.is_file():
                    self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
                else:
                    bucket.got[path.name] += self.command == "GET"
                    self.send(200, path.read_bytes(), kind="application/x-tar")

            def send(self, status: int, content: bytes, *, kind: str = "application/xml") -> None:
                self.send_response(status)
                self.send_header("ETag", '"1"')
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    import s3fs

    (tmp_path / "served" / "set").mkdir(parents=True)
    running = Bucket(tmp_path / "served")
    s3fs.S3FileSystem.clear_instance_cache()  # clients are kept, with the address they were made for
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not a secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # where a machine of Amazon's finds its keys
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    yield running
    running.close()
    s3fs.S3FileSystem.clear_instance_cache()


def module_of(cache: Path, shards: str = "train-{000000..000002}.tar", **options) -> ShardDataModule:
    options = {"batch_size": 4, "image_size": 8, "window": 1, "memory_gb": 0.0} | options
    return data_module(f"{BUCKET}/{shards}", cache_dir=cache, **options)


def texts(module: ShardDataModule, batches: int) -> list[str]:
    loader = iter(module.train_dataloader())
    return [text for _ in range(batches) for text in next(loader).text]


@pytest.mark.parametrize(("indexed", "workers"), [(True, 0), (False, 0), (True, 2)])
def test_a_bucket_streams_as_local_shards_do(bucket, tmp_path, indexed, workers):
    folder = bucket.folder / "set"
    write_shards(folder, [4] * 3)
    local = data_module(folder, batch_size=4, image_size=8, window=1)
    expected = texts(local, 6)
    if not indexed:
        for path in folder.glob("*.idx.npz"):
            path.unlink()
    module = module_of(tmp_path / "cache", num_workers=workers)
    assert texts(module, 6) == expected
    assert module.state_dict()["index_hash"] == local.state_dict()["index_hash"]
    assert {name: n for name, n in bucket.got.items() if name.endswith(".tar")} == {
        f"train-{k:06d}.tar": 1 for k in range(3)
    }
    assert bucket.signed == {True}


def test_a_public_bucket_is_read_without_keys(bucket, tmp_path, monkeypatch):
    write_shards(bucket.folder / "set", [4] * 3)
    bucket.public = True
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"cannot be reached \(.*credentials.*AWS_ACCESS_KEY_ID"):
        module_of(tmp_path / "cache").shards.index("train")
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    fsspec.config.set_conf_env(fsspec.config.conf, {"FSSPEC_S3_ANON": "1"})  # as a new process does
    assert len(module_of(tmp_path / "cache").shards.index("train")) == 12
    assert bucket.signed == {False}


def test_refused_missing_and_unreachable_are_told_with_the_way_out(bucket, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"train-000000\.tar is missing"):
        module_of(tmp_path / "cache", "train-000000.tar").shards.index("train")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    type(filesystem(BUCKET)).clear_instance_cache()
    with pytest.raises(UserError, match=r"train-000000\.tar cannot be reached.*AWS_ACCESS_KEY_ID"):
        module_of(tmp_path / "cache", "train-000000.tar").shards.index("train")


def test_a_damaged_object_is_refused_and_does_not_stay(bucket, tmp_path):
    folder = bucket.folder / "set"
    build_index(write_shards(folder, [4]))
    content = bytearray((folder / "train-000000.tar").read_bytes())
    content[700] ^= 1
    (folder / "train-000000.tar").write_bytes(content)
    with pytest.raises(UserError, match="sha256 differs from the one in its index"):
        texts(module_of(tmp_path / "cache", "train-000000.tar"), 1)
    assert list((tmp_path / "cache").glob("*.tar")) == []


def test_without_its_package_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"pip install 'lmsd\[s3\]'"):
        filesystem("s3://bucket/train-0.tar")
