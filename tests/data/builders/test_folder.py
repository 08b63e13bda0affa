import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from tiny_photographs import captioned, photograph

from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.builders.folder import folder_source
from lmsd.data.text import EMPTY
from lmsd.errors import UserError


@pytest.fixture
def images(tmp_path):
    for seed, name in enumerate(["a.png", "b.jpg", "deep/c.webp"]):
        captioned(tmp_path / "in", name, photograph(seed), f"field {seed}\n")
    return tmp_path / "in"


def reasons(source):
    return {entry.name: entry.reason for entry in source.dropped}


def test_captions_beside_the_images(images):
    source = folder_source(images, None)
    assert [(raw.name, raw.caption, raw.label) for raw in source.samples] == [
        ("a.png", "field 0", None),
        ("b.jpg", "field 1", None),
        ("deep/c.webp", "field 2", None),
    ]
    assert source.classes is None
    assert source.dropped == []


def test_what_has_no_partner_is_dropped_and_named(images):
    photograph(5).save(images / "lonely.png")
    photograph(6).save(images / "blank.png")
    photograph(7).save(images / "latin.png")
    (images / "blank.txt").write_text(" \n")
    (images / "latin.txt").write_bytes("café".encode("latin-1"))
    (images / "ghost.txt").write_text("a caption")
    (images / "notes.pdf").write_bytes(b"%PDF")
    (images / ".DS_Store").write_bytes(b"")
    source = folder_source(images, None)
    assert reasons(source) == {
        "lonely.png": "no caption: lonely.txt is not there",
        "latin.png": "its caption latin.txt cannot be used: it is not UTF-8 text (unexpected end of data at "
        "byte 3): save it as UTF-8",
        "ghost.txt": "a caption without an image",
        "notes.pdf": "not an image by its name",
    }
    assert source.total == 4
    assert list(source.notes) == [(EMPTY, 1, "blank.png")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_from_one_file(images, kind):
    rows = [
        ("a.png", 'a "red", field', 1),
        ("deep/c.webp", "größer", 0),
        ("gone.png", "nothing", 1),
        ("b.jpg", "", 1),
    ]
    path = images / f"metadata.{kind}"
    if kind == "csv":
        lines = [
            "file_name,text,label",
            'a.png,"a ""red"", field",1',
            "deep/c.webp,größer,0",
            "gone.png,nothing,1",
            "b.jpg,,1",
        ]
    else:
        lines = [json.dumps({"file": f, "caption": c, "label": n}) for f, c, n in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    source = folder_source(images, path)
    assert [(raw.name, raw.caption, raw.label) for raw in source.samples] == [rows[0], rows[3], rows[1]]
    assert source.classes == ["0", "1"]
    first = 2 if kind == "csv" else 1
    assert reasons(source) == {
        "gone.png": f"metadata.{kind} line {first + 2} names it, and it is no image under the folder",
    }


def test_images_that_the_file_does_not_name_are_named(images):
    (images / "c.csv").write_text("file,caption\na.png,one\n../in/b.jpg,out\n")
    assert reasons(folder_source(images, images / "c.csv")) == {
        "b.jpg": "no caption: c.csv does not name it",
        "deep/c.webp": "no caption: c.csv does not name it",
        "../in/b.jpg": "c.csv line 3 names it, and it is no image under the folder",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "name,words\na.png,one\n", "line 2 has none of file, file_name"),
        ("c.csv", "file,caption\na.png,one,two\n", "line 2 has more cells"),
        ("c.csv", "file,caption\na.png\n", "line 2: caption is None"),
        ("c.csv", 'file,caption\na.png,"one\n', "is not CSV"),
        ("c.csv", "file,caption\na.png,one\na.png,two\n", "twice, in lines 2 and 3"),
        ("c.csv", "file,caption,label\na.png,one,-1\n", "label '-1' is not an integer"),
        ("c.csv", "file,caption,label\na.png,one,1\nb.jpg,two,\n", r"but not to b\.jpg"),
        ("c.csv", "", "no image under .* has a caption"),
        ("c.csv", "file,caption\nz.png,one\n", "no image under .* has a caption"),
        ("c.jsonl", '{"file": "a.png", "caption": 3}\n', "line 1: caption is 3"),
        ("c.jsonl", '\n{"file": "a.png",\n', "line 2 is not JSON"),
        ("c.jsonl", '["a.png", "one"]\n', "line 1 is not an object"),
        ("c.yaml", "a.png: one", "neither .csv nor .jsonl"),
    ],
)
def test_a_caption_file_that_cannot_be_read_is_named(images, name, text, message):
    (images / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        folder_source(images, images / name)
    assert str(images) in str(caught.value)


def test_folders_that_are_not_there_or_hold_nothing(tmp_path, images):
    for path, captions, message in (
        (None, None, "needs path="),
        (tmp_path / "no", None, "is not a folder"),
        (images, images / "no.csv", "is not there"),
    ):
        with pytest.raises(UserError, match=message):
            folder_source(path, captions)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image under"):
        folder_source(tmp_path / "empty", None)


def test_mixed_modes_and_bad_images_through_the_whole_build(tmp_path):
    modes = ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"]
    for seed, mode in enumerate(modes):
        picture = photograph(seed, 40 + seed, 64).convert("L" if mode == "I;16" else mode)
        captioned(tmp_path / "in", f"{seed}.tif", picture.convert(mode) if mode == "I;16" else picture)
    cut = captioned(tmp_path / "in", "cut.png", photograph(20))
    cut.write_bytes(cut.read_bytes()[:200])
    captioned(tmp_path / "in", "text.png", photograph(21)).write_text("hello")
    options = BuildOptions(path=tmp_path / "in", pictures=Preparation(image_size=32))
    manifest = json.loads(build("folder", tmp_path / "out", options=options).read_text())
    assert sum(manifest["counts"].values()) == len(modes)
    dropped = {entry["name"]: entry["reason"] for entry in manifest["dropped"]["pictures"]}
    assert set(dropped) == {"cut.png", "text.png"}
    assert dropped["cut.png"].startswith("it cannot be decoded (")
    assert dropped["text.png"].startswith("it is not an image that can be decoded (JPEG, PNG, WEBP, ")
    assert manifest["dropped"]["count"] == 2
    assert manifest["channels"] == 3


def test_reasons_are_counted_without_their_particulars(images):
    for k in range(3):
        photograph(10 + k).save(images / f"blank{k}.png")
        captioned(images, f"white{k}.tif", Image.fromarray(np.full((8, 8), 0.5 + k, np.float32)))
    rows = [*(f"blank{k}.png,\n" for k in range(3)), *(f"gone{k}.png,a caption\n" for k in range(3))]
    rows += [f"white{k}.tif,a caption\n" for k in range(3)]
    (images / "c.csv").write_text("file,caption\na.png,one\n" + "".join(rows))
    options = BuildOptions(path=images, captions=images / "c.csv", pictures=Preparation(image_size=32))
    dropped = json.loads(build("folder", images.parent / "out", options=options).read_text())["dropped"]
    assert dropped["reasons"] == {
        "a line of the captions without an image": 3,
        "no caption": 2,
        "values without a known white": 3,
    }
    assert {entry["name"] for entry in dropped["pictures"]} >= {"gone0.png", "white1.tif"}


def test_images_alone_are_built_without_captions(tmp_path):
    for seed in range(4):
        (tmp_path / "in" / "deep").mkdir(parents=True, exist_ok=True)
        photograph(seed).save(tmp_path / "in" / "deep" / f"{seed}.png")
    source = folder_source(tmp_path / "in", None)
    assert [(raw.caption, raw.label) for raw in source.samples] == [(None, None)] * 4
    assert source.notes == [("images without captions, which train with conditioner=none", 4, "deep/0.png")]
    assert source.dropped == []
    manifest = build(
        "folder",
        tmp_path / "out",
        options=BuildOptions(path=tmp_path / "in", pictures=Preparation(image_size=16)),
    )
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        assert {name.rpartition(".")[2] for name in archive.getnames()} == {"png"}
    assert json.loads(manifest.read_text())["captions"] is False


def test_empty_captions_alone_are_none_and_not_told_as_trained(images):
    for name in ("a.txt", "b.txt", "deep/c.txt"):
        (images / name).write_text(" \n")
    source = folder_source(images, None)
    assert [raw.caption for raw in source.samples] == [None, None, None]
    assert source.notes == [("images without captions, which train with conditioner=none", 3, "a.png")]


def test_classes_alone_are_built_without_captions(tmp_path):
    (tmp_path / "in").mkdir()
    for seed in range(3):
        photograph(seed).save(tmp_path / "in" / f"{seed}.png")
        (tmp_path / "in" / f"{seed}.cls").write_text(f"{seed % 2}\n")
    source = folder_source(tmp_path / "in", None)
    assert [(raw.caption, raw.label) for raw in source.samples] == [(None, 0), (None, 1), (None, 0)]
    assert source.classes == ["0", "1"]
    assert source.notes[0][0] == "images without captions, which train with conditioner=none or label"
    (tmp_path / "in" / "2.cls").unlink()
    with pytest.raises(UserError, match=r"some images have a class but not to 2\.png; label all or none"):
        folder_source(tmp_path / "in", None)


def test_captions_are_left_out_on_demand_and_never_by_mistake(images):
    (images / "a.mask.png").write_bytes((images / "a.png").read_bytes())
    source = folder_source(images, None, "none")
    assert [(raw.name, raw.caption) for raw in source.samples] == [
        ("a.png", None), ("b.jpg", None), ("deep/c.webp", None)
    ]  # fmt: skip
    assert reasons(source) == {"a.mask.png": "it belongs to another image, a.png"}
    for text in images.rglob("*.txt"):
        text.rename(text.with_name(f"other-{text.name}"))
    with pytest.raises(UserError, match=r"\(a\.mask\.png has none\); captions=none takes them without"):
        folder_source(images, None)
    for text in images.rglob("*.txt"):
        text.unlink()
    (images / "words.csv").write_text("file,caption\na.png,one\n")
    with pytest.raises(UserError, match=r"captions=.*words\.csv reads that file; captions=none takes"):
        folder_source(images, None)


def test_a_table_may_give_classes_alone(images):
    (images / "l.csv").write_text("file,label\na.png,dog\nb.jpg,cat\n")
    source = folder_source(images, images / "l.csv")
    assert [(raw.name, raw.caption, raw.label) for raw in source.samples] == [
        ("a.png", None, 1), ("b.jpg", None, 0)
    ]  # fmt: skip
    assert source.classes == ["cat", "dog"]
    rows = ['{"file": "a.png", "label": 1, "caption": "one"}', '{"file": "b.jpg", "label": 0}']
    (images / "l.jsonl").write_text("\n".join(rows))
    assert reasons(folder_source(images, images / "l.jsonl"))["b.jpg"] == (
        "no caption: l.jsonl gives it a label alone"
    )
