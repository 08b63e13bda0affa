"""Prompts as they are meant: files by their marks and line ends alone, words by what was typed."""

import shlex
from pathlib import Path

import pytest

from lmsd.cli.config import options
from lmsd.cli.verbs.edit import EditOptions
from lmsd.cli.verbs.sample import SampleOptions, prompts
from lmsd.errors import UserError

TEXT = "a red\u2028circle\na blue\u0085ring\r\n\n100 % \f star\rlast。"
LINES = ["a red\u2028circle", "a blue\u0085ring", "100 % \f star", "last。"]


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_holds_a_prompt_a_line(coding: str, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(TEXT.encode(coding))
    assert prompts((str(path),)) == LINES


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    for content, said in (
        (TEXT.encode("utf-16-le"), "cannot be read as text|NUL"),
        (b"a\0b", "NUL characters"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            prompts((str(path),))


STRANGE = [
    "a cat。",
    "half # whole",
    "100 % red",
    "at @ home",
    "a&b",
    "what?",
    "a; b",
    "red!",
    "1/2 <b> | c",
    "~ x",
]


@pytest.mark.parametrize("prompt", STRANGE)
def test_a_prompt_is_read_as_it_was_typed(prompt: str) -> None:
    chosen = options.read(SampleOptions, ["run=last", f"prompts={prompt}"], verb="sample")
    assert chosen.prompts == (prompt,)
    edit = options.read(EditOptions, ["run=last", "image=x.png", f"prompt={prompt}"], verb="edit")
    assert edit.prompt == prompt


@pytest.mark.parametrize("items", [["a cat。", "b # c"], ["one。", "at @ home"]])
def test_the_advice_for_a_list_works_as_it_stands(items: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"quote every item, prompts=.*, or write them into a text file"
    ) as told:
        options.read(SampleOptions, ["run=last", f"prompts=[{', '.join(items)}]"], verb="sample")
    advice = str(told.value).partition("quote every item, ")[2].rpartition(", or write")[0]
    (word,) = shlex.split(advice)
    assert options.read(SampleOptions, ["run=last", word], verb="sample").prompts == tuple(items)


def test_a_file_of_prompts_is_one_in_capitals_too_and_never_a_prompt_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P.TXT").write_text("a three\n")
    (tmp_path / "bad.txt").write_text("a \x01 three\n")
    assert prompts(("P.TXT",)) == ["a three"]
    with pytest.raises(UserError, match=r"holds the file P\.TXT: give one file alone"):
        prompts(("a", "P.TXT"))
    with pytest.raises(UserError, match=r"holds the control character '\\x01'"):
        prompts(("bad.txt",))
