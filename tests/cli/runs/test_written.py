"""Where a picture or a page may be written, and what happens where it may not."""

import os
from pathlib import Path

import pytest

from lmsd.cli.runs.written import check_out, writing
from lmsd.cli.verbs.sample import prompts
from lmsd.errors import UserError


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=r"out=.*file is a file, no folder"):
        check_out(tmp_path / "file" / "new" / "x.png")
    check_out(tmp_path / "new" / "folder" / "x.PNG")
    with monkeypatch.context() as patch:  # whoever runs this may be allowed everything
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        with pytest.raises(UserError, match=rf"{tmp_path} may not be written; name another place"):
            check_out(tmp_path / "new" / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_the_system_refuses_in_the_end_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    refused = pytest.raises(UserError, match=r"cannot be written: .*; name another place")
    with refused, writing(tmp_path / "file" / "x.png"):
        pytest.fail("there is no such folder")
    with writing(tmp_path / "new" / "x.png"):
        assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"prompt\na red circle\n", "are read from a .txt file"),
        ("a.txt", b"\n \n", "has no prompts"),
        ("a.txt", b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        prompts((str(tmp_path / name),))
    assert prompts(("a circle.", name)) == ["a circle.", name]
