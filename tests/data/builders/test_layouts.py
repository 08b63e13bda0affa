"""Data as other tools leave them: recognized without a source name, and read as they are meant."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_photographs import photograph

from lmsd.cli.verbs.data import build as build_verb
from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.builders.layouts import layout_source, recognized
from lmsd.data.shardset import ShardSet, Streaming
from lmsd.errors import UserError

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photograph(seed).save(path)
    return path


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    photograph(seed).save(stream, "PNG")
    return stream.getvalue()


def found(name, path, lines="join"):
    """Name → (caption, class's name, split, repeats) of every picture that is read."""
    source = layout_source(name, path, lines)
    names = source.classes
    return {
        raw.name: (raw.caption, names[raw.label] if names else None, raw.split, raw.repeats)
        for raw in source.samples
    }


def reasons(name, path):
    return {entry.name: entry.reason for entry in layout_source(name, path, "join").dropped}


def with_texts(root):
    picture(root / "a.png", 0).with_suffix(".txt").write_text("one")
    picture(root / "deep" / "b.png", 1).with_suffix(".txt").write_text("two")
    return {"a.png": ("one", None, None, 1), "deep/b.png": ("two", None, None, 1)}


def with_caption_files(root):
    picture(root / "a.png", 0).with_suffix(".caption").write_text("one")
    picture(root / "b.png", 1).with_suffix(".caption").write_text("two")
    return {"a.png": ("one", None, None, 1), "b.png": ("two", None, None, 1)}


def imagefolder_jsonl(root):
    for split, seed in (("train", 0), ("validation", 2), ("test", 3)):
        picture(root / split / "0001.png", seed)
        row = {"file_name": "0001.png", "text": f"of {split}", "license": 3}
        (root / split / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    return {
        "test/0001.png": ("of test", None, "test", 1),
        "train/0001.png": ("of train", None, "train", 1),
        "validation/0001.png": ("of validation", None, "val", 1),
    }


def imagefolder_csv(root):
    picture(root / "images" / "a.png", 0)
    picture(root / "b.png", 1)
    (root / "metadata.csv").write_text("file_name,text\nimages/a.png,one\nb.png,two\n")
    return {"b.png": ("two", None, None, 1), "images/a.png": ("one", None, None, 1)}


def imagefolder_parquet(root):
    import pyarrow

    picture(root / "a.png", 0)
    picture(root / "b.png", 1)
    table = pyarrow.table({"file_name": ["a.png", "b.png"], "text": ["one", "two"]})
    parquet.write_table(table, root / "metadata.parquet")
    return {"a.png": ("one", None, None, 1), "b.png": ("two", None, None, 1)}


def class_folders(root):
    for seed, name in enumerate(("train/cat/1.png", "train/dog/1.png", "test/cat/1.png")):
        picture(root / name, seed)
    return {
        "test/cat/1.png": (None, "cat", "test", 1),
        "train/cat/1.png": (None, "cat", "train", 1),
        "train/dog/1.png": (None, "dog", "train", 1),
    }


def kohya(root):
    picture(root / "img" / "10_sks dog" / "1.png", 0).with_suffix(".txt").write_text("sks dog, outdoors")
    picture(root / "img" / "10_sks dog" / "2.png", 1)
    picture(root / "img" / "3_cat" / "1.png", 2).with_suffix(".caption").write_text("a cat")
    picture(root / "reg" / "1_dog" / "1.png", 3)
    return {
        "img/10_sks dog/1.png": ("sks dog, outdoors", None, None, 10),
        "img/10_sks dog/2.png": ("sks dog", None, None, 10),
        "img/3_cat/1.png": ("a cat", None, None, 3),
    }


def coco(root):
    for split, seed in (("train2017", 0), ("val2017", 1)):
        picture(root / split / "000000000009.png", seed)
        told = {
            "info": {},
            "licenses": [],
            "images": [{"id": 9, "file_name": "000000000009.png", "height": 48, "width": 48}],
            "annotations": [
                {"id": 1, "image_id": 9, "caption": f"first of {split}. \n"},
                {"id": 2, "image_id": 9, "caption": f"second of {split}"},
            ],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(told))
    return {
        "train2017/000000000009.png": ("first of train2017. second of train2017", None, "train", 1),
        "val2017/000000000009.png": ("first of val2017. second of val2017", None, "val", 1),
    }


def table_tsv(root):
    picture(root / "images" / "a.png", 0)
    picture(root / "images" / "b.png", 1)
    (root / "list.tsv").write_text("filepath\ttitle\nimages/a.png\tone, and more\nimages/b.png\ttwo\n")
    return {"images/a.png": ("one, and more", None, None, 1), "images/b.png": ("two", None, None, 1)}


def images_in_parquet(root):
    import pyarrow

    (root / "data").mkdir(parents=True)
    for name, seeds in (("train-00000-of-00002", (0, 1)), ("train-00001-of-00002", (2,)), ("test-0", (3,))):
        rows = [
            {"image": {"bytes": png(seed), "path": f"{seed}.png"}, "label": seed % 2, "text": f"no. {seed}"}
            for seed in seeds
        ]
        names = {"label": {"names": ["even", "odd"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        stored = {"huggingface": json.dumps({"info": {"features": names}})}
        table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(stored)
        parquet.write_table(table, root / "data" / f"{name}.parquet", row_group_size=1)
    return {
        "data/test-0.parquet:0/0": ("no. 3", "odd", "test", 1),
        "data/train-00000-of-00002.parquet:0/0": ("no. 0", "even", "train", 1),
        "data/train-00000-of-00002.parquet:1/0": ("no. 1", "odd", "train", 1),
        "data/train-00001-of-00002.parquet:0/0": ("no. 2", "even", "train", 1),
    }


def img2dataset(root):
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as archive:
            for number in range(2):
                key, seed = f"{shard:05d}{number:04d}", 2 * shard + number
                fields = {"caption": f"no. {seed}", "width": 48, "similarity": seed / 10, "url": "http://x/y"}
                members = {
                    "png": png(seed),
                    "txt": f"no. {seed}".encode(),
                    "json": json.dumps(fields).encode(),
                }
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        (root / f"{shard:05d}_stats.json").write_text("{}")
        (root / f"{shard:05d}.parquet").write_bytes(b"of no use here")
    return {
        f"{shard:05d}.tar/{shard:05d}{n:04d}": (f"no. {2 * shard + n}", None, None, 1)
        for shard in range(2)
        for n in range(2)
    }


LAYOUTS = [
    (with_texts, "folder"),
    (with_caption_files, "folder"),
    (imagefolder_jsonl, "imagefolder"),
    (imagefolder_csv, "imagefolder"),
    (imagefolder_parquet, "imagefolder"),
    (class_folders, "classes"),
    (kohya, "kohya"),
    (coco, "coco"),
    (table_tsv, "table"),
    (images_in_parquet, "parquet"),
    (img2dataset, "tars"),
]


@pytest.mark.parametrize(("write", "name"), LAYOUTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_layout_is_recognized_and_read_as_its_tool_means_it(tmp_path, write, name):
    expected = write(tmp_path / "in")
    assert recognized(tmp_path / "in")[0] == name
    assert found(name, tmp_path / "in") == expected


@pytest.mark.parametrize(("write", "name"), LAYOUTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_layout_is_built_without_a_source_name(tmp_path, write, name, capsys):
    expected = write(tmp_path / "in")
    out = tmp_path / "out"
    assert build_verb([str(tmp_path / "in"), f"out={out}", "image_size=16", "near_duplicates=keep"]) == 0
    assert f"{tmp_path / 'in'}: {name} (" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["source"]["name"] == name
    assert sum(manifest["counts"].values()) == len(expected)


def test_what_kohya_repeats_comes_as_often_in_an_epoch(tmp_path):
    kohya(tmp_path / "in")
    options = BuildOptions(
        path=tmp_path / "in", pictures=Preparation(image_size=16, val=0, test=0, near_duplicates="keep")
    )
    build("kohya", tmp_path / "out", options=options)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == ["train-repeat10-000000.tar", "train-repeat3-000000.tar"]
    data = ShardSet(tmp_path / "out", image_size=16, train=Streaming(flip=False))
    stream = data.stream(seed=3)
    batch = stream[np.arange(23)]
    texts = batch.text
    assert {text: texts.count(text) for text in texts} == {"sks dog, outdoors": 10, "sks dog": 10, "a cat": 3}
    again = ShardSet(tmp_path / "out", image_size=16).stream(seed=3)[np.arange(7, 12)]
    assert again.text == texts[7:12]
    assert data.samples == 3
    assert reasons("kohya", tmp_path / "in")["reg/1_dog/1.png"].startswith("regularization images")


def test_a_year_is_no_number_of_repeats(tmp_path):
    picture(tmp_path / "2020_summer" / "1.png", 0)
    assert recognized(tmp_path)[0] == "folder"


def test_all_captions_of_an_image_are_kept_and_one_is_drawn(tmp_path):
    coco(tmp_path / "in")
    build(
        "coco",
        tmp_path / "out",
        options=BuildOptions(path=tmp_path / "in", pictures=Preparation(image_size=16, val=0)),
    )
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        member = next(name for name in archive.getnames() if name.endswith(".txt"))
        assert archive.extractfile(member).read() == b"first of train2017.\nsecond of train2017"
    stream = ShardSet(tmp_path / "out", image_size=16, captions="draw").stream(seed=0)
    drawn = stream[np.arange(40)].text
    assert {*drawn} == {"first of train2017.", "second of train2017"}
    notes = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]
    assert any("data.captions=draw" in note["what"] for note in notes)


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("similarity > 0.05 and similarity <= 0.2", {"no. 1", "no. 2"}),
        ("not caption == 'no. 1' and words == 2", {"no. 0", "no. 2", "no. 3"}),
        ("'3' in caption or width < 48", {"no. 3"}),
        ("caption in ['no. 0', 'no. 2'] and -1 < similarity < .15", {"no. 0"}),
        ("length >= 5 and height == 48", {"no. 0", "no. 1", "no. 2", "no. 3"}),
    ],
)
def test_where_takes_what_meets_a_condition(tmp_path, condition, kept):
    img2dataset(tmp_path / "in")
    options = BuildOptions(
        path=tmp_path / "in",
        pictures=Preparation(image_size=16, near_duplicates="keep", val=0, test=0, where=condition),
    )
    build("tars", tmp_path / "out", options=options)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        texts = {
            archive.extractfile(name).read().decode() for name in archive.getnames() if name.endswith("txt")
        }
    assert texts == kept
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["where"] == condition
    assert manifest["dropped"]["count"] == 4 - len(kept)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("width >", "is no condition"),
        ("simlarity > 1", "there is no field 'simlarity'; there are caption,"),
        ("similarity > 'a'", "compares what cannot be compared"),
        ("__import__('os')", "is not read; a condition compares"),
        ("caption.upper() == 'A'", "is not read; a condition compares"),
        ("width ** 9999999", "is not read; a condition compares"),
    ],
)
def test_a_condition_that_is_none_is_refused(tmp_path, condition, said):
    img2dataset(tmp_path / "in")
    with pytest.raises(UserError, match="where=") as caught:
        build(
            "tars",
            tmp_path / "out",
            options=BuildOptions(path=tmp_path / "in", pictures=Preparation(where=condition)),
        )
    assert said in str(caught.value)


def test_a_field_that_a_picture_lacks_is_neither_more_nor_less(tmp_path):
    picture(tmp_path / "in" / "a.png", 0)
    picture(tmp_path / "in" / "b.png", 1)
    rows = [{"file": "a.png", "text": "one", "score": 5}, {"file": "b.png", "text": "two"}]
    (tmp_path / "in" / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for condition, kept in (
        ("score > 1", 1),
        ("score < 9", 1),
        ("score == None or score > 9", 1),
        ("not score > 1", 1),
    ):
        out = tmp_path / condition.replace(" ", "_")
        build(
            "table",
            out,
            options=BuildOptions(path=tmp_path / "in", pictures=Preparation(val=0, test=0, where=condition)),
        )
        assert json.loads((out / "manifest.json").read_text())["counts"]["train"] == kept


MIXED = {
    "tars_and_images": (
        lambda root: (img2dataset(root), with_texts(root)),
        "looks like tars (00000.tar) and folder",
    ),
    "metadata_and_coco": (lambda root: (imagefolder_csv(root), coco(root)), "looks like coco"),
    "kohya_and_others": (lambda root: (kohya(root), with_texts(root)), "looks like kohya"),
    "nothing": (lambda root: root.mkdir(), "holds no images"),
    "two_tables": (
        lambda root: (table_tsv(root), (root / "other.csv").write_text("file,caption\n")),
        "several tables may hold the captions",
    ),
    "unfinished_download": (
        lambda root: (with_texts(root), (root / "c.png.incomplete").write_bytes(b"")),
        "a download that did not end",
    ),
    "unfinished_shard": (
        lambda root: (img2dataset(root), (root / "00001_stats.json").unlink()),
        "img2dataset has not finished it",
    ),
}


@pytest.mark.parametrize("case", MIXED)
def test_what_is_mixed_or_half_written_is_refused_in_a_sentence(tmp_path, case):
    write, said = MIXED[case]
    write(tmp_path / "in")
    with pytest.raises(UserError) as caught:
        recognized(tmp_path / "in")
    assert said in str(caught.value)


def test_a_source_that_is_named_overrules(tmp_path, capsys):
    kohya(tmp_path / "in")
    with_texts(tmp_path / "in")
    words = [str(tmp_path / "in"), f"out={tmp_path / 'out'}", "source=folder", "image_size=16"]
    assert build_verb(words) == 0
    assert "dropped" in capsys.readouterr().out
    with pytest.raises(UserError, match="source=kohja is no layout; did you mean kohya"):
        build_verb([str(tmp_path / "in"), f"out={tmp_path / 'other'}", "source=kohja"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.parquet", b"PAR1....", "is no whole Parquet file"),
        ("cc3m.tsv", b"a dog\thttp://a.b/c.jpg\n", "no header and names addresses"),
        ("laion.csv", b"url,caption\nhttp://a.b/c.jpg,a dog\n", "by their addresses (url): fetch them with"),
        ("cut.tar", b"", "is empty: it was not written to its end"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, said):
    picture(tmp_path / "a.png", 0)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        layout_source(recognized(tmp_path / name)[0], tmp_path / name, "join")
    assert said in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("label", [-1, 1_900_000_000])
def test_a_number_that_is_no_class_is_refused_at_once(tmp_path, label):
    members = [("0.png", png(0)), ("0.cls", b"0"), ("1.png", png(1)), ("1.cls", str(label).encode())]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match=f"has the class {label}: number classes from 0 to 999,999"):
        layout_source("tars", tmp_path, "join")


def test_coco_without_captions_says_which_file_has_them(tmp_path):
    picture(tmp_path / "a.png", 0)
    told = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}],
    }
    (tmp_path / "instances_val.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="has no captions: captions_"):
        layout_source("coco", tmp_path, "join")


@pytest.mark.parametrize("second", ["captions_train_more.json", "captions_val.json"])
def test_an_image_of_two_files_of_coco_has_the_captions_of_both_and_one_split(tmp_path, second):
    picture(tmp_path / "a.png", 0)
    for number, name in enumerate(["captions_train.json", second]):
        told = {
            "images": [{"id": 1, "file_name": "a.png"}],
            "annotations": [{"image_id": 1, "caption": text} for text in ("a cat", f"cat {number}")],
        }
        (tmp_path / name).write_text(json.dumps(told))
    if "val" in second:
        with pytest.raises(UserError, match=r"is in two splits, by captions_train\.json and by captions_val"):
            layout_source("coco", tmp_path, "join")
        return
    build(
        "coco",
        tmp_path / "out",
        options=BuildOptions(path=tmp_path, pictures=Preparation(image_size=16, val=0)),
    )
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        member = next(name for name in archive.getnames() if name.endswith(".txt"))
        assert archive.extractfile(member).read() == b"a cat\ncat 0\ncat 1"
