"""Files are old or new, never half; the cache folder."""

import errno
import os
from pathlib import Path

import pytest

from lmsd.files import cache_folder, replacing, write_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.json"


def test_what_is_written_is_on_the_disk_before_it_has_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    write_text(path, "{}")
    assert done == ["sync", "replace", "sync"]

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, '{"state": "done"}')
    assert [file.name for file in path.parent.iterdir()] == ["status.json"]
    assert path.read_text() == "{}"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_content_alone(path: Path, error: BaseException) -> None:
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            assert (temporary.parent, temporary.match("status.json.tmp.*")) == (path.parent, True)
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("status.json", "old")]


def test_what_is_true_of_the_old_file_alone_goes_between(path: Path) -> None:
    stale = path.with_suffix(".sha256")
    write_text(path, "old")
    write_text(stale, "of the old one")
    with replacing(path, stale=stale) as temporary:
        temporary.write_text("new")
        assert stale.is_file()
    assert not stale.exists()
    assert path.read_text() == "new"


def test_two_writers_do_not_meet_in_one_temporary_file(path: Path) -> None:
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"  # the block that ends last


def test_text_is_utf_8_in_any_locale(path: Path) -> None:
    write_text(path, "λ·x̂₀")
    assert path.read_bytes() == "λ·x̂₀".encode()


def test_the_cache_folder_is_the_users_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMSD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LMSD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lmsd"
