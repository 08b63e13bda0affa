"""Builds by several processes, in parts, and after kills: the same bytes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tiny_photographs import pixels

from lmsd.data.builders import (
    BuildOptions,
    Preparation,
    Work,
    build,
    chunks,
    merge_parts,
    prepare,
    sharding,
)
from lmsd.data.builders import building as module
from lmsd.data.builders.catalog import Catalog
from lmsd.data.builders.chunks import COUNT
from lmsd.errors import UserError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """600 pictures, three chunks, with copies of every kind that lie in other chunks than the first."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(600):
        image = Image.fromarray(pixels(number % 570)[:16, :16])
        if number in (5, 300, 595):
            image = Image.new("RGB", (16, 16), "white")
        image = image.rotate(90) if number % 7 == 0 and number > 569 else image
        image.save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text("other" if number % 5 == 0 else f"picture {number % 570}")
    (folder / "0003.png").write_bytes(b"damaged")
    return folder


def sized(path, side):
    return BuildOptions(pictures=Preparation(image_size=side), path=path, shard_size=200)


@pytest.fixture(scope="module")
def options(photos):
    return sized(photos, 16)


def hashes(folder):
    """sha256 by name; indexes tell when a shard was written, so they are left out."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix in (".tar", ".json")
    }


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    build("folder", out, options=options)
    return hashes(out)


def test_two_processes_write_the_bytes_of_one(options, whole, tmp_path):
    build("folder", tmp_path / "out", options=options, work=Work(workers=2))
    assert hashes(tmp_path / "out") == whole
    assert len(whole) > 4


@pytest.mark.parametrize("of", [2, 3, 5])  # of three chunks: five parts leave some empty
def test_parts_joined_are_one_build(options, whole, tmp_path, of):
    parts = [tmp_path / f"{number}" for number in range(1, of + 1)]
    for number, part in enumerate(parts, 1):
        build("folder", part, options=options, work=Work(part=f"{number}/{of}"))
    manifest = merge_parts(parts[::-1], tmp_path / "out", workers=1, overwrite=False)
    assert hashes(manifest.parent) == whole


def test_parts_that_do_not_belong_together_are_refused(options, photos, tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    build("folder", one, options=options, work=Work(part="1/2"))
    build("folder", two, options=options, work=Work(part="2/2"))
    small = sized(photos, 8)
    build("folder", other, options=small, work=Work(part="2/2"))

    def refused(*parts):
        with pytest.raises(UserError) as error:
            merge_parts(parts, tmp_path / "out", workers=1, overwrite=False)
        return str(error.value)

    assert refused(one) == "part 2 of 2 is missing: build it by part=2/2"
    assert "are both part 1" in refused(one, one)
    assert "image_size is 8 and 16" in refused(one, other)
    assert "is no part of a build" in refused(one, photos)
    (one / "00000000.rows").rename(tmp_path / "aside")
    assert "one lacks 00000000.rows: copy the whole part again" in refused(one, two)
    (tmp_path / "aside").rename(one / "00000000.rows")
    told = json.loads((one / "part.json").read_text())
    plan = json.loads(told["plan"])
    newer = json.dumps({**plan, "recipe": {**plan["recipe"], "of_another_day": 1}})
    for change in ({"version": 2}, {"plan": newer}):
        for part in (one, two):
            text = json.loads((part / "part.json").read_text())
            (part / "part.json").write_text(json.dumps({**text, "version": 1, **change}))
        assert "was prepared by another version of LMSD" in refused(one, two)
    for part in (one, two):
        text = json.loads((part / "part.json").read_text())
        (part / "part.json").write_text(json.dumps({**text, "plan": told["plan"]}))
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)
    (copy / "0001.txt").write_text("another caption")
    shutil.rmtree(two)
    changed = sized(copy, 16)
    build("folder", two, options=changed, work=Work(part="2/2"))
    assert "path is copy and photos" in refused(one, two)


class Killed(BaseException):
    """What takes a process down between two steps, as far as the files can tell."""


def killed(*arguments, **named):
    raise Killed


def test_a_build_that_ends_anywhere_goes_on_with_what_there_is(options, whole, tmp_path, monkeypatch):
    out, made = tmp_path / "out", []

    def dying(function, after):
        calls = iter(range(after))

        def call(*arguments, **named):
            if next(calls, None) is None:
                raise Killed
            made.append(function.__name__)
            return function(*arguments, **named)

        call.__name__ = function.__name__
        return call

    steps = [
        ("prepare_chunk", 1),
        ("prepare_chunk", 1),
        ("decide", 0),
        ("write_manifest", 0),
        ("build_index", 0),
    ]
    for name, after in steps:
        monkeypatch.setattr(module, name, dying(getattr(module, name), after))
        with pytest.raises(Killed):
            build("folder", out, options=options)
        monkeypatch.undo()
        assert not out.exists()
    assert made == ["prepare_chunk"] * 2
    count = len(list((tmp_path / ".out.building" / "chunks").glob("*.rows")))
    assert count == -(-600 // COUNT)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out.building" / "data").glob("*.tar")}
    build("folder", out, options=options)
    assert hashes(out) == whole
    assert {path.name: time for path, time in before.items()} == {
        path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_half_written_comes_into_no_build(tmp_path, monkeypatch):
    out, work = tmp_path / "out", tmp_path / ".out.building"
    for step, folder in (("decide", "chunks"), ("write_manifest", "data")):
        monkeypatch.setattr(module, step, killed)
        with pytest.raises(Killed):
            build("digits", out)
        monkeypatch.undo()
        (work / folder / "train-000000.tar.tmp.0a1b2c3d").write_bytes(b"half")
    build("digits", out)
    assert not list(out.glob("*.tmp.*"))
    monkeypatch.setattr(module, "put", killed)
    with pytest.raises(Killed):
        build("digits", tmp_path / "part", work=Work(part="1/2"))
    monkeypatch.undo()
    (tmp_path / ".part.building" / "chunks" / "00000000.rows.tmp.0a1b2c3d").write_bytes(b"half")
    build("digits", tmp_path / "part", work=Work(part="1/2"))
    assert not list((tmp_path / "part").glob("*.tmp.*"))


def test_what_changed_since_the_kill_is_made_again(photos, tmp_path, monkeypatch):
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(photos, copy)
    options = sized(copy, 16)

    monkeypatch.setattr(module, "build_index", killed)
    with pytest.raises(Killed):
        build("folder", out, options=options)
    monkeypatch.undo()
    Image.fromarray(pixels(999)[:16, :16]).save(copy / "0001.png")
    build("folder", out, options=options)
    build("folder", tmp_path / "fresh", options=options)
    assert hashes(out) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("gone", [["4"], ["3", "4"], ["0"]], ids=["last chunk", "more", "first"])
def test_pictures_that_are_gone_since_the_kill_are_in_no_shard(gone, tmp_path, monkeypatch):
    """A whole chunk vanishes, so that none is made anew: the shards are of the pictures that there are."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(5):
        Image.fromarray(pixels(number)[:8, :8]).save(source / f"{number}.png")
        (source / f"{number}.txt").write_text(f"picture {number}")
    options = sized(source, 8)
    for each in (module, sharding, prepare):
        monkeypatch.setattr(each, "COUNT", 2)
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_manifest", killed)
        with pytest.raises(Killed):
            build("folder", out, options=options)
    for name in gone:
        (source / f"{name}.png").unlink()
        (source / f"{name}.txt").unlink()
    build("folder", out, options=options)
    build("folder", tmp_path / "fresh", options=options)
    assert hashes(out) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize(
    "text",
    ["[]", "5", "", '{"part": 1}', '{"part": [3, 2]}', '{"part": [1, 2], "listing": []}'],
    ids=["list", "number", "empty", "one", "outside", "listing"],
)
def test_a_part_that_tells_nothing_is_refused(text, tmp_path):
    (tmp_path / "part.json").write_text(text)
    with pytest.raises(UserError, match=r"is no part of a build \(it has no part.json that can be read\)"):
        merge_parts([tmp_path], tmp_path / "out", workers=1, overwrite=False)


def test_other_options_begin_anew_and_another_build_of_the_same_is_refused(options, photos, tmp_path):
    out = tmp_path / "out"
    with module.work_folder(out, ["a"], overwrite=False) as folder:
        (folder / "chunks").mkdir()
        with (
            pytest.raises(UserError, match=r"another build of .* is under way"),
            module.work_folder(out, ["a"], overwrite=False),
        ):
            pass
        assert (folder / "chunks").is_dir()
    folder.mkdir()
    (folder / "plan.json").write_text('["a"]')
    (folder / "chunks").mkdir()
    with module.work_folder(out, ["b"], overwrite=False) as again:
        assert sorted(path.name for path in again.iterdir()) == ["lock", "plan.json"]


def test_the_table_forgets_nothing_when_it_is_small(tmp_path):
    """Copies across chunks: the first is kept, under the name whose split ranks first."""
    catalog = Catalog(tmp_path / "table")

    def row(name, split, content, caption="c"):
        return chunks.Row(name, caption, None, split, 1, "", content, 0, 0, [])

    catalog.add(0, [row("a", "train", "x"), row("b", None, "y")], worded=True)
    catalog.add(
        COUNT, [row("c", "val", "x"), row("d", "test", "x"), row("e", None, "x", "other")], worded=True
    )
    catalog.drop_copies()
    assert [catalog.named(each)[0] for each in range(len(catalog))] == ["d", "b", "e"]
    assert [catalog.copied(each) for each in range(len(catalog))] == [False, False, True]
    assert [(each.name, each.reason) for each in catalog.dropped()] == [
        ("a", "exact duplicate of c"),
        ("c", "exact duplicate of d"),
    ]
    assert catalog.places().tolist() == [0, 1, COUNT + 2]
    catalog.relate(np.arange(3), [])
    catalog.split(lambda key, fixed: fixed or "train")
    assert sorted((each.name, each.split) for each in catalog.chosen()) == [
        ("b", "train"),
        ("d", "test"),
        ("e", "test"),
    ]


@pytest.mark.slow
def test_a_build_killed_ten_times_ends_with_the_same_bytes(photos, whole, tmp_path):
    words = f"data build {photos} out={tmp_path / 'out'} image_size=16 shard_size=200 workers=2"
    command = [sys.executable, "-m", "lmsd.cli", *words.split()]
    for number in range(10):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(0.4 + 0.25 * number)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        if (tmp_path / "out").exists():
            break
    if not (tmp_path / "out").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert hashes(tmp_path / "out") == whole
