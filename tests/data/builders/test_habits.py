"""What people's folders hold besides clean pairs: read as meant, or left out and named, and told."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_photographs import captioned, photograph
from webdataset import WebDataset

from lmsd.cli.verbs.data import build as build_verb
from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.builders.folder import REPEATS, TABLE, folder_source
from lmsd.data.builders.prepare import OTHER_CAPTION
from lmsd.errors import UserError


def words(source):
    return {raw.name: raw.caption for raw in source.samples}


def reasons(source):
    return {entry.name: entry.reason for entry in source.dropped}


def put(folder: Path, name: str, text: bytes | str | None = None, seed: int = 0) -> Path:
    """A picture, and a .txt beside it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed).save(path, "JPEG" if path.suffix.lower() in (".jfif", ".jpe") else None)
    if text is not None:
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_suffixes_in_capitals_dots_and_both_ways_of_writing_an_accent_are_paired(tmp_path):
    photograph(0).save(tmp_path / "IMG_1.JPG")
    (tmp_path / "IMG_1.TXT").write_text("capitals")
    put(tmp_path, "22.05.png", "dots")
    put(tmp_path, "23.05.png", "more dots")
    photograph(3).save(tmp_path / f"{unicodedata.normalize('NFD', 'é')}.png")
    (tmp_path / "é.txt").write_text("a Mac")
    photograph(4).save(tmp_path / "f.png")
    (tmp_path / "f.caption").write_text("another suffix")
    put(tmp_path, "g.jfif", "it is JPEG")
    photograph(6).save(tmp_path / "h.png")
    (tmp_path / "h.json").write_text(json.dumps({"caption": ["as", "JSON"]}))
    source = folder_source(tmp_path, None)
    found = {unicodedata.normalize("NFC", name): caption for name, caption in words(source).items()}
    assert found == {
        "IMG_1.JPG": "capitals",
        "22.05.png": "dots",
        "23.05.png": "more dots",
        "é.png": "a Mac",
        "f.png": "another suffix",
        "g.jfif": "it is JPEG",
        "h.png": "as JSON",
    }
    assert source.dropped == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a dog".encode("utf-16-le"), "a NUL character at 1, as does UTF-16 or UTF-32 read as UTF-8"),
        ("a dog".encode("utf-16"), "not UTF-8 text but UTF-16"),
        (b"a\x00dog", "a NUL character"),
        (b"a \x1b[31mdog", "the control character '\\x1b' at 2"),
        ("caf\x93".encode(), "the control character '\\x93'"),
        ("café".encode("cp1252"), "it is not UTF-8 text"),
        (b"x" * 100_000, "100,000 bytes, more than 64 KiB"),
        (b"x" * 5_000_000, "5,000,000 bytes, more than 64 KiB"),
    ],
)
def test_what_is_no_text_is_dropped_with_the_users_file_and_the_reason(tmp_path, content, why):
    put(tmp_path, "a.png", content)
    put(tmp_path, "b.png", "a cat", seed=1)
    source = folder_source(tmp_path, None)
    assert words(source) == {"b.png": "a cat"}
    assert reasons(source)["a.png"].startswith("its caption a.txt ")
    assert why in reasons(source)["a.png"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"can be used; a\.png: its caption a\.txt "):
        folder_source(tmp_path, None)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_half_a_character_in_a_table_drops_its_picture_alone(tmp_path, kind):
    for number in range(2):
        put(tmp_path, f"{number}.png", seed=number)
    table = tmp_path / f"c.{kind}"
    if kind == "jsonl":
        table.write_text('{"file":"0.png","caption":"cut \\ud83d"}\n{"file":"1.png","caption":"fine"}\n')
    else:
        table.write_text("file,caption\n0.png,a\x07b\n1.png,fine\n")
    source = folder_source(tmp_path, table)
    assert words(source) == {"1.png": "fine"}
    line = 1 if kind == "jsonl" else 2
    assert f"(c.{kind} line {line}) cannot be used" in reasons(source)["0.png"]


def test_names_that_are_not_utf8_are_written_down(tmp_path):
    folder = tmp_path / "in"
    put(folder, "a.png", "fine")
    odd = os.fsencode(folder) + b"/b\xff.png"
    Path(os.fsdecode(odd)).write_bytes(put(folder, "z.png", seed=1).read_bytes())
    Path(os.fsdecode(odd[:-3] + b"txt")).write_text("an odd name")
    Path(os.fsdecode(os.fsencode(folder) + b"/c\xfe.pdf")).write_bytes(b"%PDF")
    manifest = build(
        "folder", tmp_path / "out", options=BuildOptions(path=folder, pictures=Preparation(image_size=16))
    )
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    assert sum(facts["counts"].values()) == 2
    assert {entry["name"] for entry in facts["dropped"]["pictures"]} == {"c\\xfe.pdf", "z.png"}


def test_linked_folders_are_read_and_broken_links_are_named(tmp_path):
    put(tmp_path / "elsewhere" / "deep", "a.png", "linked")
    put(tmp_path / "in", "b.png", "beside", seed=1)
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    source = folder_source(tmp_path / "in", None)
    assert words(source) == {"b.png": "beside", "more/deep/a.png": "linked"}
    assert reasons(source) == {"gone.png": "a broken link", "loop": "a link to a folder that it lies in"}


def test_habits_of_other_programs_are_told(tmp_path, capsys):
    put(tmp_path / "in", "10_dog/a.png", "a dog")
    put(tmp_path / "in", "1_house/b.png", "a house", seed=1)
    put(tmp_path / "in", "c.png", "one\r\ntwo\n\nthree", seed=2)
    (tmp_path / "in" / "c.caption").write_text("another")
    (tmp_path / "in" / "metadata.jsonl").write_text("{}\n")
    assert build_verb(["folder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "image_size=16"]) == 0
    said = capsys.readouterr().out
    assert "1 a second caption (c.caption)" in said
    assert "1 a caption file that is not read (metadata.jsonl)" in said
    assert "2 folders named like repeats (10_dog), which are not followed" in said
    assert "1 captions of several lines, joined into one (c.png)" in said
    source = folder_source(tmp_path / "in", None)
    assert words(source)["c.png"] == "one two three"
    assert reasons(source)["metadata.jsonl"] == TABLE
    assert (REPEATS, 2, "10_dog") in source.notes


def test_of_several_lines_one_is_taken_where_that_is_asked_for(tmp_path):
    for number in range(40):
        put(tmp_path, f"{number}.png", f"one {number}\ntwo\nthree", seed=number)
    assert set(words(folder_source(tmp_path, None, "first")).values()) == {f"one {n}" for n in range(40)}
    drawn = words(folder_source(tmp_path, None, "draw"))
    assert drawn == words(folder_source(tmp_path, None, "draw"))
    count = [sum(caption.startswith(word) for caption in drawn.values()) for word in ("one", "two", "three")]
    assert min(count) >= 6
    assert sum(count) == 40


@pytest.mark.parametrize("word", ["captions=first", "lines=first"])
def test_the_word_of_the_command_line(tmp_path, word):
    put(tmp_path / "in", "a.png", "one\ntwo")
    build_verb(["folder", f"path={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "image_size=16", word])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["lines"] == "first"


def test_tables_written_elsewhere_find_their_pictures(tmp_path):
    for number, name in enumerate(["train/0.png", "train/1.png", "é.png", "d.png", "E.PNG", "f.png"]):
        put(tmp_path, name, seed=number)
    rows = [
        ("train\\0.png", "Windows"),
        ("1.png", "beside the table"),
        (unicodedata.normalize("NFD", "é.png"), "a Mac"),
        (str(tmp_path.resolve() / "d.png"), "absolute"),
        ("e.png", "small letters"),
        ("./train/../f.png", "a way around"),
        ("C:\\data\\x.png", "another machine"),
        ("/data/y.png", "another place"),
    ]
    table = tmp_path / "train" / "metadata.jsonl"
    table.write_text("".join(json.dumps({"file_name": n, "text": c}) + "\n" for n, c in rows))
    source = folder_source(tmp_path, table)
    assert sorted(words(source).values()) == sorted(caption for _, caption in rows[:6])
    why = reasons(source)
    assert "line 7 names it" in why["C:\\data\\x.png"]
    assert "a place on a Windows machine" in why["C:\\data\\x.png"]
    assert "a place elsewhere" in why["/data/y.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('file,caption\na.png,"a "big" dog"\nb.png,x\n', r'line 2 is not CSV .*is written ""'),
        ('file,caption\n\n"a.png","two\nlines"\nb.png,"a "big" dog"\n', "line 5 is not CSV"),
        ("file,caption,label\na.png,one,cat\nb.png,two,1\n", r"labels in words \(cat\) and in numbers \(1\)"),
        ("file,caption,label\na.png,one,1700000000\n", "line 2: label 1700000000 is too large for a class"),
        ("file,caption,label\na.png,one,c\x07t\n", "line 2: the label .* the control character"),
        ("file,caption,label\na.png,one,1.5\n", r"line 2: label '1\.5' is not an integer from 0, nor a word"),
    ],
)
def test_the_line_of_a_table_is_the_editors(tmp_path, text, message):
    for number, name in enumerate(["a.png", "b.png"]):
        put(tmp_path, name, seed=number)
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        folder_source(tmp_path, tmp_path / "c.csv")


def test_words_are_classes_and_other_separators_are_read(tmp_path):
    for number, name in enumerate(["a.png", "b.png", "c.png"]):
        put(tmp_path, name, seed=number)
    (tmp_path / "c.csv").write_text("file;caption;label\na.png;a, b;dog\nb.png;x;cat\nc.png;y;dog\n")
    source = folder_source(tmp_path, tmp_path / "c.csv")
    assert source.classes == ["cat", "dog"]
    assert [(raw.caption, raw.label) for raw in source.samples] == [("a, b", 1), ("x", 0), ("y", 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "\ufeffFilename;Caption\r\na.png;one, two\r\n"),
        ("sheet.tsv", "FILE_NAME\tText\na.png\tone, two\n"),
        ("lines.jsonl", '{"Image": "a.png", "Caption": "one, two"}\n'),
    ],
)
def test_a_tables_columns_may_be_in_capitals_and_between_tabs(tmp_path, name, text):
    put(tmp_path, "a.png")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    source = folder_source(tmp_path, tmp_path / name)
    assert [raw.caption for raw in source.samples] == ["one, two"]


def test_a_folder_of_other_pictures_says_what_is_there(tmp_path):
    for name in ("IMG_1.HEIC", "raw.cr2"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"\(there are \.cr2, \.heic\); images end in jpg"):
        folder_source(tmp_path, None)


def test_a_table_in_the_folder_is_named_where_nothing_else_has_captions(tmp_path):
    put(tmp_path, "train/0.png")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n')
    with pytest.raises(UserError, match=r"captions=.*train/metadata\.jsonl reads that file"):
        folder_source(tmp_path, None)


def light(color: tuple[int, int, int], place: int) -> Image.Image:
    """A traffic light in a street: one lamp of three is lit."""
    image = photograph(3, 64, 64)
    image.paste((20, 20, 20), (29, 24, 35, 42))
    image.paste(color, (31, 26 + 6 * place, 33, 28 + 6 * place))
    return image


def test_near_duplicates_with_other_captions_stay_in_one_split(tmp_path):
    lamps = {"red": (230, 30, 30), "yellow": (230, 220, 30), "green": (30, 200, 30), "off": (20, 20, 20)}
    for number, (name, color) in enumerate(lamps.items()):
        for copy in range(2):
            image = np.asarray(light(color, number % 3)).copy()
            image[0, copy] += 1
            captioned(tmp_path / "in", f"{name}{copy}.png", Image.fromarray(image), f"the light is {name}")
    for seed in range(20):
        captioned(tmp_path / "in", f"x{seed}.png", photograph(seed + 50), "another street")
    facts = {}
    for way in (None, "drop", "group"):
        options = BuildOptions(
            path=tmp_path / "in", pictures=Preparation(near_duplicates=way, val=0.3, test=0.3)
        )
        facts[way] = json.loads(build("folder", tmp_path / f"out-{way}", options=options).read_text())
    count = {way: sum(entry["counts"].values()) for way, entry in facts.items()}
    assert count == {None: 24, "drop": 21, "group": 28}
    assert [(note["what"], note["count"]) for note in facts[None]["notes"]] == [(OTHER_CAPTION, 3)]
    assert facts[None]["dropped"]["reasons"] == {"near duplicate": 4}
    told = facts["drop"]["dropped"]["reasons"]
    assert told == {"near duplicate": 1, "near duplicate with another caption": 6}
    assert facts[None]["options"]["near_duplicates"] == "same_caption"
    lights = {}
    for split in ("train", "val", "test"):
        if (tmp_path / "out-None" / f"{split}-000000.tar").is_file():
            shard = WebDataset(str(tmp_path / "out-None" / f"{split}-000000.tar"), shardshuffle=False)
            lights[split] = sum(sample["txt"].startswith(b"the light") for sample in shard)
    assert sorted(lights.values())[-1] == 4
    assert sum(lights.values()) == 4  # all in one split


def test_a_folder_and_rows_with_names_that_cannot_be_written_do_not_end_a_build(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xff"))
    put(folder, "a.png")
    table = folder / os.fsdecode(b"c\xfe.jsonl")
    table.write_text('{"file":"a.png","caption":"x"}\n{"file":"\\ud83d.png","caption":"y"}\n')
    options = BuildOptions(path=folder, captions=table, pictures=Preparation(image_size=16))
    facts = json.loads(build("folder", tmp_path / "out", options=options).read_text(encoding="utf-8"))
    assert facts["options"]["path"] == "in\\xff"
    [entry] = facts["dropped"]["pictures"]
    assert entry["name"] == "\\ud83d.png"
    assert entry["reason"].startswith("c\\xfe.jsonl line 2 names it")
