"""`lmsd data`: every option changed alone gives other files, or is refused; what is said of them is true."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmsd import cli
from lmsd.cli.verbs.data import FeaturesOptions, IndexOptions, ShowOptions
from lmsd.data.builders import BuildOptions
from lmsd.data.builders.shapes import class_names
from lmsd.flat import flat

SHAPES = ["shapes", "train_count=12", "val_count=4", "test_count=4", "image_size=16"]
FOLDER = ["folder", "path=in", "image_size=8"]
BUILD: dict[str, tuple[list[str], str]] = {
    "path": (FOLDER, "path=in/sub"),
    "captions": (FOLDER, "captions=c.csv"),
    "lines": (FOLDER, "captions=first"),
    "image_size": (FOLDER, "image_size=9"),
    "channels": (FOLDER, "channels=1"),
    "val": (FOLDER, "val=0.6"),
    "test": (FOLDER, "test=0.6"),
    "train_count": (SHAPES, "train_count=13"),
    "val_count": (SHAPES, "val_count=5"),
    "test_count": (SHAPES, "test_count=5"),
    "holdout": (SHAPES, f"holdout=[{','.join(class_names()[::2])}]"),
    "mismatch": (SHAPES, "mismatch=1"),
    "seed": (SHAPES, "seed=1"),
    "denoise": (FOLDER, "denoise=median"),
    "near_duplicates": (FOLDER, "near_duplicates=drop"),
    "similarity": (FOLDER, "similarity=0.2"),
    "image_format": (FOLDER, "image_format=jpg"),
    "shard_size": (FOLDER, "shard_size=2"),
    "where": (FOLDER, "where=words<5"),
}
"""Option → the command, and the option at another value; `overwrite` and `out` are about places."""
SHOW = {
    "n": "n=3",
    "image_size": "image_size=24",
    "channels": "channels=1",
    "captions": "captions=first",
    "seed": "seed=1",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "in" / "sub").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = Image.fromarray(draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)).resize((16, 16))
        place = folder / "in" / ("sub" if number % 2 else "")
        pixels.save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"picture {number}\nanother line")
    twin = np.asarray(pixels).copy()
    twin[0, 0] ^= 4
    Image.fromarray(twin).save(folder / "in" / "twin.png")
    (folder / "in" / "twin.txt").write_text("a near duplicate with other words")
    (folder / "c.csv").write_text("file,caption\n0.png,from a table\n2.png,too\n")
    return folder


def ran(*words: str) -> int:
    return cli.run(["data", *words])


def shards(folder: Path) -> dict[str, str]:
    """Name → content of the shards of a data set."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def bases(home: Path) -> dict[str, dict[str, str]]:
    """What the two commands of the table give as they stand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for words in (SHAPES, FOLDER):
            assert ran("build", *words, f"out=base-{words[0]}") == 0
    return {words[0]: shards(home / f"base-{words[0]}") for words in (SHAPES, FOLDER)}


def test_the_table_has_every_option() -> None:
    assert {*BUILD, "overwrite"} == set(flat(BuildOptions()))
    assert {field.name for field in fields(IndexOptions)} == {"decode"}
    assert {field.name for field in fields(FeaturesOptions)} == {*FEATURES, "out"}
    assert {field.name for field in fields(ShowOptions)} == {*SHOW, "out"}


@pytest.mark.parametrize("name", BUILD)
def test_every_option_of_build_changes_what_is_built(home, bases, name, monkeypatch) -> None:
    monkeypatch.chdir(home)
    words, changed = BUILD[name]
    kept = [word for word in words if word.partition("=")[0] != changed.partition("=")[0]]
    assert ran("build", *kept, changed, f"out=out-{name}") == 0
    assert shards(home / f"out-{name}") != bases[words[0]]
    options = json.loads((home / f"out-{name}" / "manifest.json").read_text())
    assert name in options or name in options["options"]


def test_the_options_about_places(home, bases, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    assert ran("build", *FOLDER, "out=base-folder") == 2
    assert (
        "already there; choose another folder, or replace it with overwrite=true" in capsys.readouterr().err
    )
    assert ran("build", *FOLDER, "out=base-folder", "overwrite=true") == 0
    assert shards(home / "base-folder") == bases["folder"]
    assert ran("build", *FOLDER, "out=elsewhere") == 0
    assert shards(home / "elsewhere") == bases["folder"]


def test_index_says_what_it_checked_and_decodes_when_asked(home, bases, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    assert ran("build", *FOLDER, "out=damaged", "val=0", "test=0") == 0
    assert ran("index", "damaged") == 0
    said = capsys.readouterr().out
    assert "headers of images checked, pixels not (decode=true)" in said
    assert ran("index", "damaged", "decode=true") == 0
    assert "all images decoded" in capsys.readouterr().out
    path = home / "damaged" / "train-000000.tar"
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT")
    content[start + 10 : start + 40] = bytes(30)  # the header stays sound
    path.write_bytes(content)
    assert ran("index", "damaged") == 0
    assert ran("index", "damaged", "decode=true") == 2
    assert "it cannot be decoded" in capsys.readouterr().err


def test_every_option_of_show_changes_the_page(home, monkeypatch, capsys) -> None:
    monkeypatch.chdir(home)
    assert ran("build", *FOLDER, "captions=keep", "out=shown") == 0
    base = {"n": "n=2", "image_size": "image_size=16"}

    def page(name: str, *words: str) -> str:
        capsys.readouterr()
        assert ran("show", "shown", *words, f"out={name}.html") == 0
        assert capsys.readouterr().out.strip() == f"{name}.html"
        return Path(f"{name}.html").read_text()

    first = page("base", *base.values())
    assert page("again", *base.values()) == first
    for name, changed in SHOW.items():
        assert page(name, *{**base, name: changed}.values()) != first, name


def test_a_bucket_without_keys_is_one_sentence_and_exit_2(tmp_path) -> None:
    gone = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "FSSPEC_S3_ANON", "AWS_ENDPOINT_URL"}
    alone = {name: value for name, value in os.environ.items() if name not in gone}
    alone |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), "LMSD_CACHE": str(tmp_path)}
    for url in ("s3://bucket/prefix", "s3://bucket/x.tar"):
        words = [sys.executable, "-m", "lmsd.cli", "data", "index", url]
        done = subprocess.run(words, env=alone, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "cannot be reached" in done.stderr
        assert "AWS_ACCESS_KEY_ID" in done.stderr


FEATURES: dict[str, str] = {
    "kind": "kind=ssl",
    "image_size": "image_size=16",
    "channels": "channels=1",
    "images": "images=256",
    "augment": "augment=none",
    "seed": "seed=1",
}


@pytest.mark.slow
def test_every_option_of_features_changes_the_extractor(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMSD_CACHE", str(tmp_path / "cache"))
    assert ran("build", "shapes", "train_count=64", "val_count=32", "test_count=0", "out=d") == 0
    base = {"image_size": "image_size=8", "images": "images=128"}

    def weights(name: str, *words: str) -> str:
        assert ran("features", "d", *words, f"out={name}") == 0
        files = sorted(path for path in Path(name).iterdir() if path.suffix != ".json")
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    first = weights("base", *base.values())
    assert weights("again", *base.values()) == first
    for name, changed in FEATURES.items():
        assert weights(name, *{**base, name: changed}.values()) != first, name
