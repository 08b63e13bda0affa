"""A reader that goes away: `lmsd ... | head -1` ends quietly."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["--help"], ["train", "--options"]], ids=" ".join)
def test_output_that_nobody_reads_ends_quietly(words: list[str]) -> None:
    """Short output meets the closed pipe at its last flush, long output in the middle."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lmsd.cli", *words], stdout=writer, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_output_is_no_failure() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m lmsd.cli --version >&-"], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_another_pipe_that_breaks_is_a_failure(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from lmsd import cli

    def broken(arguments: list[str]) -> int:
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr("lmsd.cli.verbs.runs.main", broken)
    assert cli.run(["runs"]) == 1
    assert "BrokenPipeError: a worker's" in capsys.readouterr().err
