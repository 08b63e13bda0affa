"""The index of many shards: kept, renewed when a shard changes, the same wherever the shards lie."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tars import jpeg, write_shards, write_tar

from lmsd.data import index as module
from lmsd.data.index import build_index
from lmsd.data.members import VERSION, load_header
from lmsd.errors import UserError


@pytest.fixture
def scans(monkeypatch):
    """Names of the shards that are read whole."""
    seen = []
    original = module.scan

    def counted(path, **options):
        seen.append(path.name)
        return original(path, **options)

    monkeypatch.setattr(module, "scan", counted)
    return seen


def test_an_index_is_made_once_and_lies_beside_its_shard(tmp_path, scans):
    paths = write_shards(tmp_path, [3, 2])
    first = build_index(paths)
    assert first.sizes.tolist() == [3, 2]
    assert len(first) == 5
    assert (tmp_path / "train-000000.tar.idx.npz").is_file()
    assert build_index(paths).hash == first.hash
    assert len(scans) == 2
    build_index(paths, refresh=True)
    assert len(scans) == 4


def test_a_changed_shard_is_indexed_again(tmp_path, scans):
    paths = write_shards(tmp_path, [3])
    before = build_index(paths).hash
    write_shards(tmp_path, [4])
    after = build_index(paths)
    assert after.sizes.tolist() == [4]
    assert after.hash != before
    assert len(scans) == 2


def test_a_touched_shard_is_checked_by_its_sha_alone(tmp_path, scans):
    paths = write_shards(tmp_path, [3])
    build_index(paths)
    os.utime(paths[0], (1, 1))
    build_index(paths)
    assert len(scans) == 1
    header = load_header(Path(paths[0] + ".idx.npz"))
    assert header is not None
    assert header.mtime_ns == 10**9  # noted, so that the next start need not read it either


def test_same_size_and_other_bytes_is_another_shard(tmp_path, scans):
    path = Path(write_shards(tmp_path, [3])[0])
    build_index([path])
    content = bytearray(path.read_bytes())
    content[-1 - 10240 + 600 : -10240 + 600] = b"\0"
    at = content.index(b"picture 1")
    content[at : at + 9] = b"picture 7"
    path.write_bytes(bytes(content))
    os.utime(path, (5, 5))
    build_index([path])
    assert len(scans) == 2


def test_the_hash_does_not_depend_on_the_folder(tmp_path):
    here = build_index(write_shards(tmp_path / "a", [3, 2])).hash
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert build_index(sorted((tmp_path / "b").glob("*.tar"))).hash == here
    assert build_index(sorted((tmp_path / "b").glob("*.tar"))[::-1]).hash != here


def test_a_folder_that_may_not_be_written_stays_as_it_is(tmp_path, scans, own_cache):
    paths = write_shards(tmp_path / "a", [3])
    (tmp_path / "a").chmod(0o555)
    try:
        build_index(paths)
        build_index(paths)
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["train-000000.tar"]
        assert len(list((own_cache / "index").iterdir())) == 1
        assert len(scans) == 1
    finally:
        (tmp_path / "a").chmod(0o755)


@pytest.mark.parametrize("damage", [b"", b"no zip at all", b"half"])
def test_a_damaged_index_is_made_again(tmp_path, damage):
    paths = write_shards(tmp_path, [3])
    truth = build_index(paths).hash
    file = Path(paths[0] + ".idx.npz")
    file.write_bytes(file.read_bytes()[:300] if damage == b"half" else damage)
    assert build_index(paths).hash == truth
    assert load_header(file) is not None


def test_an_index_with_a_pickle_inside_is_not_loaded(tmp_path):
    paths = write_shards(tmp_path, [3])
    truth = build_index(paths)
    np.savez(paths[0] + ".idx.npz", header=np.array([{"version": 1}], dtype=object))
    again = build_index(paths)
    assert again.hash == truth.hash


def test_missing_and_mixed_shards_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.tar is missing"):
        build_index([tmp_path / "gone.tar"])
    worded = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(1)), ("a.txt", b"1"), ("a.cls", b"1")])
    classed = write_tar(tmp_path / "b.tar", [("a.jpg", jpeg(1)), ("a.cls", b"1")])
    with pytest.raises(UserError, match=r"b\.tar has none"):
        build_index([worded, classed])
    plain = write_tar(tmp_path / "c.tar", [("a.jpg", jpeg(1)), ("a.txt", b"1")])
    assert not build_index([worded, plain]).labels
    assert build_index([worded, plain]).captions == {"txt"}


def make_older(file: Path) -> None:
    """Write an index as version 1 had it."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header = json.loads(arrays["header"].tobytes())
    header["version"] = 1
    del header["changed"], header["notes"]
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(file, **arrays)


def test_indexes_of_an_older_version_are_made_again_by_themselves_and_that_is_said_once(
    tmp_path, scans, caplog
):
    paths = write_shards(tmp_path / "b", [3, 2])
    truth = build_index(paths).hash
    for path in paths:
        make_older(Path(path + ".idx.npz"))
    assert build_index(paths).hash == truth
    assert build_index(paths).hash == truth
    assert len(scans) == 4
    assert caplog.text.count("older version") == 1
    assert load_header(Path(paths[0] + ".idx.npz")).version == VERSION


def test_beside_shards_that_may_not_be_written_the_cache_takes_the_new_index(
    tmp_path, scans, caplog, own_cache
):
    paths = write_shards(tmp_path / "a", [3])
    build_index(paths)
    make_older(Path(paths[0] + ".idx.npz"))
    (tmp_path / "a").chmod(0o555)
    try:
        build_index(paths)
        build_index(paths)
        assert len(scans) == 2
        assert len(list((own_cache / "index").iterdir())) == 1
        assert f"are made again, once, in {own_cache / 'index'}" in caplog.text
    finally:
        (tmp_path / "a").chmod(0o755)


def test_progress_is_told_shard_by_shard(tmp_path):
    seen = []
    build_index(write_shards(tmp_path, [1, 1, 1]), progress=lambda *step: seen.append(step))
    assert seen == [(k, 3, "indexing shards") for k in (1, 2, 3)]


def test_a_shard_of_empty_captions_alone_is_one_among_others(tmp_path):
    worded = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(1)), ("a.txt", b"one")])
    empty = write_tar(tmp_path / "b.tar", [("b.jpg", jpeg(2)), ("b.txt", b" \n")])
    assert build_index([worded, empty]).captions == {"txt"}
    assert build_index([empty]).captions == frozenset()
