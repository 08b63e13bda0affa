import hashlib
import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits
from tiny_photographs import captioned, photograph

from lmsd.data.builders import BuildOptions, Drawing, build
from lmsd.data.builders.shapes import WORDS, check, class_names, parse_caption
from lmsd.data.index import build_index
from lmsd.errors import UserError
from lmsd.flat import flat, nested

SMALL = BuildOptions(shard_size=25, drawing=Drawing(train_count=60, val_count=20, test_count=40))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return build("digits", tmp_path_factory.mktemp("digits") / "out").parent


def read(folder, split):
    shards = [str(shard) for shard in sorted(folder.glob(f"{split}-*.tar"))]
    return list(webdataset.WebDataset(shards, shardshuffle=False))


def hashes(folder):
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_digit_is_there_once_with_its_words(digits):
    loaded = load_digits()
    expected = Counter(
        (np.round(image * (255 / 16)).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(loaded.images, loaded.target, strict=True)
    )
    found = Counter()
    for sample in (sample for split in ("train", "val", "test") for sample in read(digits, split)):
        image = Image.open(io.BytesIO(sample["png"]))
        assert image.mode == "L"
        found[np.asarray(image).tobytes(), int(sample["cls"])] += 1
        words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        assert sample["txt"].decode() == f"a handwritten {words[int(sample['cls'])]}"
    assert found == expected


def test_held_out_digits_suffice_for_two_label_matched_halves(digits):
    manifest = json.loads((digits / "manifest.json").read_text())
    assert 280 <= manifest["counts"]["val"] <= 320
    labels = Counter(int(sample["cls"]) for sample in read(digits, "test"))
    assert sum(count // 2 for count in labels.values()) >= 250
    assert manifest["counts"]["train"] > 950


def test_the_manifest_tells_what_is_there(digits):
    manifest = json.loads((digits / "manifest.json").read_text())
    assert manifest["counts"] == {split: len(read(digits, split)) for split in ("train", "val", "test")}
    assert {name: entry["sha256"] for name, entry in manifest["shards"].items()} == {
        name: digest for name, digest in hashes(digits).items() if name.endswith(".tar")
    }
    assert (manifest["classes"], manifest["image_size"], manifest["channels"]) == (10, 8, 1)
    assert manifest["class_names"][7] == "seven"
    assert manifest["dropped"]["count"] == 0
    assert manifest["options"]["test"] == 0.28


def test_the_index_is_built_and_counts_the_same(digits):
    shards = sorted(digits.glob("*.tar"))
    assert all((digits / f"{shard.name}.idx.npz").is_file() for shard in shards)
    assert len(build_index(shards)) == 1797


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = (build("shapes", tmp_path / name, options=SMALL).parent for name in ("a", "b"))
    assert hashes(first) == hashes(second)
    other = build("shapes", tmp_path / "c", options=nested(BuildOptions, {**flat(SMALL), "seed": 1})).parent
    assert hashes(first)["train-000000.tar"] != hashes(other)["train-000000.tar"]


def test_nothing_in_a_tar_tells_who_wrote_it_or_when(tmp_path):
    folder = build("shapes", tmp_path / "50%", options=SMALL).parent
    assert [path.name for path in sorted(folder.glob("train-*.tar"))] == [
        f"train-{n:06d}.tar" for n in range(3)
    ]
    with tarfile.open(folder / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uname, m.gname, m.uid, m.gid, m.mode) for m in members} == {
        (0, "lmsd", "lmsd", 0, 0, 0o444)
    }
    assert not any(member.pax_headers for member in members)


def test_shapes_show_what_their_captions_say_and_held_out_pairs_are_in_test_alone(tmp_path):
    options = BuildOptions(
        drawing=Drawing(train_count=150, val_count=50, test_count=300, holdout=("red circle", "blue ring"))
    )
    folder = build("shapes", tmp_path / "out", options=options).parent
    seen = {}
    for split in ("train", "val", "test"):
        samples = read(folder, split)
        images = np.stack([np.asarray(Image.open(io.BytesIO(sample["png"]))) for sample in samples])
        captions = [sample["txt"].decode() for sample in samples]
        assert check(images, captions)["all"].all()
        assert [parse_caption(c).label for c in captions] == [int(sample["cls"]) for sample in samples]
        seen[split] = {class_names()[int(sample["cls"])] for sample in samples}
    assert {"red circle", "blue ring"}.isdisjoint(seen["train"] | seen["val"])
    assert {"red circle", "blue ring"} <= seen["test"]


def test_mismatched_training_captions_have_one_wrong_word_and_name_no_held_out_pair(tmp_path):
    holdout = ("red circle", "blue ring")
    options = BuildOptions(
        drawing=Drawing(train_count=400, val_count=50, test_count=50, holdout=holdout, mismatch=0.4)
    )
    folder = build("shapes", tmp_path / "out", options=options).parent
    wrong = {}
    for split in ("train", "val", "test"):
        samples = read(folder, split)
        images = np.stack([np.asarray(Image.open(io.BytesIO(sample["png"]))) for sample in samples])
        captions = [sample["txt"].decode() for sample in samples]
        found = check(images, captions)
        wrong[split] = sum((~found[word]).astype(int) for word in WORDS)
        named = {f"{parse_caption(c).color} {parse_caption(c).shape}" for c in captions}
        assert split == "test" or named.isdisjoint(holdout)
    assert wrong["train"].max() == 1
    assert 0.33 < wrong["train"].mean() < 0.47  # 0.4 ± 2.9 standard errors
    assert not wrong["val"].any()
    assert not wrong["test"].any()


def test_a_taken_folder_is_left_alone_unless_told_otherwise(tmp_path):
    out = tmp_path / "out"
    build("shapes", out, options=SMALL)
    before = hashes(out)
    with pytest.raises(UserError, match="overwrite=true"):
        build("shapes", out, options=SMALL)
    assert hashes(out) == before
    fewer = BuildOptions(overwrite=True, drawing=Drawing(train_count=10, val_count=0, test_count=0))
    build("shapes", out, options=fewer)
    assert [path.name for path in out.glob("*.tar")] == ["train-000000.tar"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a data set of ours"):
        build("shapes", tmp_path / "mine", options=fewer)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_build_that_fails_leaves_nothing_and_keeps_the_old(tmp_path):
    captioned(tmp_path / "in", "x.png", photograph(0)).write_bytes(b"damaged")
    out = tmp_path / "out"
    build("shapes", out, options=SMALL)
    before = hashes(out)
    with pytest.raises(UserError, match=r"x\.png"):
        build("folder", out, options=BuildOptions(path=tmp_path / "in", overwrite=True))
    assert hashes(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mnist", {}, "no source 'mnist'"),
        ("digits", {"path": "x"}, "no option path"),
        ("digits", {"holdout": ("red circle",)}, "no option holdout"),
        ("shapes", {"val": 0.1}, "no option val"),
        ("shapes", {"holdout": ("red dog",)}, "'red dog'"),
        ("digits", {"mismatch": 0.1}, "no option mismatch"),
        ("shapes", {"mismatch": 1.5}, "mismatch=1.5"),
        ("shapes", {"holdout": tuple(class_names())}, "every pair"),
        ("shapes", {"image_size": 8}, "image_size=16"),
        ("shapes", {"train_count": 0}, "train_count=0"),
        ("digits", {"val": 0.6, "test": 0.5}, "nothing for train"),
        ("digits", {"test": 1.5}, "test=1.5"),
        ("digits", {"similarity": 0.0}, "similarity=0.0"),
        ("digits", {"channels": 4}, "channels=4"),
        ("digits", {"denoise": "wavelet"}, "denoise='wavelet'"),
        ("digits", {"image_size": 0}, "image_size=0"),
        ("digits", {"shard_size": 0}, "shard_size=0"),
    ],
)
def test_bad_options_are_named(tmp_path, source, options, message):
    with pytest.raises(UserError, match=message):
        build(source, tmp_path / "out", options=nested(BuildOptions, options))
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lmsd\[digits\]'"):
        build("digits", tmp_path / "out")
