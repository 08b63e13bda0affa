"""log.txt: what a run said, without its progress bar and its secrets."""

import io
import re
import sys
from pathlib import Path

import pytest

from lmsd.cli.runs.transcript import transcript
from lmsd.errors import UserError

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.*)")


def lines(folder: Path) -> list[str]:
    return [LINE.fullmatch(line)[1] for line in (folder / "log.txt").read_text().splitlines()]


def test_both_streams_are_copied_line_by_line_and_put_back(tmp_path: Path, capsys) -> None:
    before = sys.stdout, sys.stderr
    for session in ("first", "second"):
        with transcript(tmp_path, active=True):
            print(f"{session}, ", end="")
            print("one line\n")
            print("a warning", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert lines(tmp_path) == ["first, one line", "a warning", "second, one line", "a warning"]
    said = capsys.readouterr()
    assert said.out == "first, one line\n\nsecond, one line\n\n"
    assert said.err == "a warning\n" * 2


def test_a_bar_on_a_terminal_is_drawn_and_not_kept(tmp_path: Path, monkeypatch) -> None:
    from rich.console import Console
    from rich.progress import Progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with transcript(tmp_path, active=True), Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("twenty images", total=20)
        for _ in range(20):
            bar.advance(task)
        print("96 images, fd 1.2", file=sys.stderr)
        bar.refresh()
    assert "━" in screen.getvalue()
    assert "twenty images" in screen.getvalue()
    assert lines(tmp_path) == ["96 images, fd 1.2"]


def test_a_failure_is_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(UserError), transcript(tmp_path, active=True):
        raise UserError("the shard is damaged: build it again")
    with pytest.raises(ZeroDivisionError), transcript(tmp_path, active=True):
        raise ZeroDivisionError("by nothing\nat all")
    assert lines(tmp_path) == [
        "lmsd: the shard is damaged: build it again",
        "lmsd: ZeroDivisionError: by nothing at all",
    ]


def test_secrets_are_hidden_and_one_rank_writes(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with transcript(tmp_path, active=True):
        print("the key is 0123456789abcdef")
    assert lines(tmp_path) == ["the key is ***"]
    (tmp_path / "other").mkdir()
    with transcript(tmp_path / "other", active=False):
        print("said by another rank")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys) -> None:
    (tmp_path / "log.txt").mkdir()
    with transcript(tmp_path, active=True):
        print("still said")
    assert capsys.readouterr().out == "still said\n"
