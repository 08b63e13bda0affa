"""What `data.shards=` may name, and what it may not."""

from pathlib import Path

import pytest
import webdataset
from botocore.exceptions import NoCredentialsError

from lmsd.data import shards as module
from lmsd.data.shards import by_split, chosen, resolve, split_of
from lmsd.data.urls import beside, name_of
from lmsd.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train-000001.tar", "train-000000.tar", "val-000000.tar", "test-000000.tar", "other.tar"):
        (tmp_path / name).touch()
    (tmp_path / "train-000000.tar.idx.npz").touch()
    (tmp_path / "manifest.json").touch()
    return tmp_path


def names(shards: tuple[str, ...]) -> list[str]:
    return [Path(shard).name for shard in shards]


def test_a_folder_gives_its_shards_by_split(folder):
    split = by_split(resolve(folder))
    assert names(split["train"]) == ["other.tar", "train-000000.tar", "train-000001.tar"]
    assert names(split["val"]) == ["val-000000.tar"]
    assert names(split["test"]) == ["test-000000.tar"]


def test_globs_braces_and_lists_name_the_same(folder):
    expected = names(resolve(str(folder / "train-*.tar")))
    assert expected == ["train-000000.tar", "train-000001.tar"]
    assert names(resolve(f"{folder}/train-{{000000..000001}}.tar")) == expected
    assert names(resolve([f"{folder}/train-000001.tar", f"{folder}/train-000000.tar"])) == expected
    brace = f"{folder}/{{train,val}}-000000.tar"
    assert sorted(resolve(brace)) == sorted(webdataset.SimpleShardList(brace).urls)


def test_relative_paths_become_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert resolve("val-000000.tar") == (str(folder / "val-000000.tar"),)


def test_urls_are_kept_and_expanded():
    found = resolve("https://host/data/train-{000000..000002}.tar")
    assert found == tuple(f"https://host/data/train-00000{k}.tar" for k in range(3))
    assert by_split(["http://host/val-0.tar?token=train-1"])["val"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pipe:cat x.tar", "never a command"),
        ("pipe:touch x|", "never a command"),
        ("|cat x.tar", "never a command"),
        ("ftp://host/x.tar", "not from 'ftp'"),
        ("file:///x.tar", "not from 'file'"),
        ("http://host/folder", "no folders to list"),
        ("http://host/folder?token=1", "no folders to list"),
        ("https://host/train-*.tar?x=1", "no folders to list"),
        ("https://host/a.tar.gz?token=1", "is compressed"),
        ("https://host/train-*.tar", "no folders to list"),
        ("missing.tar", "missing.tar is missing"),
        ("none-*.tar", "no file matches"),
        ("x-{000..001}.tar", "2 of 2 shards of x-.* are missing: x-000.tar, x-001.tar"),
        ("x-{000..001.tar", "Unbalanced"),
        ([], "names no shard"),
    ],
)
def test_bad_sources_are_told(tmp_path, monkeypatch, source, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        resolve(source)


def test_empty_folders_and_doubles_are_told(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"contains no \.tar shard"):
        resolve(tmp_path / "empty")
    with pytest.raises(UserError, match="twice"):
        resolve([folder, folder / "other.tar"])


def test_val_takes_its_prefix_or_everything(folder):
    assert names(chosen(folder, "val")) == ["val-000000.tar"]
    assert names(chosen(str(folder / "other.tar"), "val")) == ["other.tar"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("test_000", "test"),
        ("val_0", "val"),
        ("validation-0000", "val"),
        ("cc3m-validation-0001", "val"),
        ("valid.00001", "val"),
        ("imagenet-dev-3", "val"),
        ("Test0001", "test"),
        ("coco_val2017_00", "val"),
        ("TestSet-1", "test"),
        ("eval", "val"),
        ("laion-training-00", "train"),
        ("trainval-0", "train"),
        ("train-test-0", "train"),
        ("latest-contest-0", "train"),
        ("interval-value-00", "train"),
        ("00000", "train"),
    ],
)
def test_the_split_is_read_from_any_spelling(name, split):
    assert split_of(f"/test/{name}.tar") == split
    assert split_of(f"https://host/train/{name}.tar?download=true") == split


def test_a_name_that_says_two_splits_is_refused():
    with pytest.raises(UserError, match="means both train and val: call it train-set-train-val-0"):
        split_of("set-train-val-0.tar")


def test_the_folder_says_the_split_where_there_are_several(tmp_path):
    for name in ("train/0.tar", "validation/0.tar", "test/0.tar", "test/val-1.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    split = by_split(resolve(str(tmp_path / "*" / "*.tar")))
    found = {name: [str(Path(path).relative_to(tmp_path)) for path in paths] for name, paths in split.items()}
    assert found == {
        "train": ["train/0.tar"],
        "val": ["validation/0.tar", "test/val-1.tar"],
        "test": ["test/0.tar"],
    }
    assert names(by_split(resolve(tmp_path / "test"))["train"]) == ["0.tar"]  # who names one folder means it
    with pytest.raises(UserError, match=r"contains no \.tar shard, but its subfolder test does"):
        resolve(tmp_path)


def test_compressed_shards_and_capitals(tmp_path):
    for name in ("a.tar.gz", "b.tar.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"compressed shards \(a\.tar\.gz\).*gunzip"):
        resolve(tmp_path)
    (tmp_path / "C.TAR").touch()
    assert names(resolve(tmp_path)) == ["C.TAR"]


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/data/val-0.tar?X-Amz-Signature=train-1&Expires=3", "val-0.tar"),
        ("https://host/val-0.tar?download=true", "val-0.tar"),
        ("https://host/get?file=val-0.tar&token=1", "val-0.tar"),
    ],
)
def test_what_follows_the_name_of_a_url_stays(url, name):
    assert resolve(url) == (url,)
    assert name_of(url) == name
    assert beside("https://host/a.tar?t=1", ".idx") == "https://host/a.tar.idx?t=1"


def test_a_bucket_without_keys_is_one_sentence(monkeypatch):
    class Bucket:
        def glob(self, pattern):
            raise NoCredentialsError

    monkeypatch.setattr(module, "filesystem", lambda url: Bucket())
    with pytest.raises(UserError, match=r"cannot be reached \(Unable to locate cred.*AWS_ACCESS_KEY_ID"):
        resolve("s3://bucket/prefix")
