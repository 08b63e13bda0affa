"""What `data.shards=` may name, and what it may not."""

from pathlib import Path

import pytest
import webdataset

from lmsd.data.shards import by_split, chosen, resolve
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
    with pytest.raises(UserError, match=r"holds no \.tar shard"):
        resolve(tmp_path / "empty")
    with pytest.raises(UserError, match="twice"):
        resolve([folder, folder / "other.tar"])


def test_val_takes_its_prefix_or_everything(folder):
    assert names(chosen(folder, "val")) == ["val-000000.tar"]
    assert names(chosen(str(folder / "other.tar"), "val")) == ["other.tar"]
