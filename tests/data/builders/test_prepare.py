import io
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tiny_photographs import pixels

from lmsd.data.builders import BuildOptions, Preparation
from lmsd.data.builders.building import prepare_pictures
from lmsd.data.builders.chunks import Chunk, content_hash
from lmsd.data.builders.plan import plan_of
from lmsd.data.builders.pool import Pool
from lmsd.data.builders.prepare import SAME_PIXELS, decide, split_of
from lmsd.data.builders.source import Defaults, Raw, Source
from lmsd.data.notes import Notes
from lmsd.errors import UserError


def jpeg(image, quality=80):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def brighter(image):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(1.15))


def source(samples, **changes):
    names = {entry.name for entry in fields(Defaults)}
    own = {name: changes.pop(name) for name in names & changes.keys()}
    defaults = Defaults(32, 3, similarity=0.99, kinship=0.97, val=0.3, test=0.3)
    return Source("folder", samples, len(samples), replace(defaults, **own), **changes)


def raws(count, first=0):
    return [Raw(f"{seed:03d}.png", pixels(seed), f"field {seed}") for seed in range(first, first + count)]


def prepared(samples, options=None, *, folder=None, progress=None, **changes):
    with TemporaryDirectory() as temporary:
        folder, found = folder or Path(temporary), source(samples, **changes)
        plan, notes = plan_of(found, options or BuildOptions()), Notes(found.notes)
        made = prepare_pictures(found, plan, folder / "chunks", pool=Pool(1), progress=progress)
        catalog = decide(made.chunks, plan, notes, folder=folder, progress=progress)
        return SimpleNamespace(
            samples=list(catalog.chosen()), dropped=[*found.dropped, *catalog.dropped()], notes=list(notes)
        )


def splits(result):
    return {sample.name: sample.split for sample in result.samples}


def planted(count):
    """Pictures with three copies each: compressed, brighter, and a quarter turned."""
    return [
        copy
        for raw in raws(count)
        for copy in (
            raw,
            replace(raw, name=f"{raw.name} jpeg", picture=jpeg(raw.picture)),
            replace(raw, name=f"{raw.name} brighter", picture=brighter(raw.picture)),
            replace(raw, name=f"{raw.name} turned", picture=np.ascontiguousarray(np.rot90(raw.picture))),
        )
    ]


def test_copies_are_dropped_and_named():
    result = prepared(planted(40))
    assert sorted(splits(result)) == sorted(n for r in raws(40) for n in (r.name, f"{r.name} turned"))
    reasons = {entry.name: entry.reason for entry in result.dropped}
    assert reasons["007.png jpeg"] == "near duplicate of 007.png"
    assert len(reasons) == 80


@pytest.mark.parametrize("mode", ["drop", "group"])
def test_copies_never_straddle_two_splits(mode):
    split = splits(prepared(planted(80), BuildOptions(pictures=Preparation(near_duplicates=mode))))
    assert len(split) == (160 if mode == "drop" else 320)
    groups = {}
    for name, where in split.items():
        groups.setdefault(name[:7], set()).add(where)
    assert all(len(found) == 1 for found in groups.values())
    assert set.union(*groups.values()) == {"train", "val", "test"}


def test_without_looking_copies_do_straddle():
    split = splits(prepared(planted(80), BuildOptions(pictures=Preparation(near_duplicates="keep"))))
    assert len(split) == 320
    assert any(len({split[f"{raw.name}{copy}"] for copy in ("", " jpeg", " turned")}) > 1 for raw in raws(80))


def test_no_picture_moves_when_others_come_or_go():
    few, many = splits(prepared(raws(60))), splits(prepared(raws(90, first=0)[::-1]))
    assert few == {name: many[name] for name in few}
    assert len(many) == 90


def test_the_order_of_the_source_moves_no_group():
    options = BuildOptions(pictures=Preparation(near_duplicates="group"))
    assert splits(prepared(planted(40), options)) == splits(prepared(planted(40)[::-1], options))


def test_parts_are_as_asked():
    keys = [
        content_hash(np.full((1, 1, 1), 0, np.uint8) + np.uint8(i)) + str(j)
        for i in range(200)
        for j in range(50)
    ]
    found = [split_of(key, val=0.1, test=0.25) for key in keys]
    assert found.count("test") / 10_000 == pytest.approx(0.25, abs=0.015)
    assert found.count("val") / 10_000 == pytest.approx(0.10, abs=0.01)


def test_exact_duplicates_keep_the_first_and_tell_of_another_caption():
    first = raws(1)[0]
    result = prepared(
        [first, replace(first, name="again.png"), replace(first, name="other.png", caption="else")]
    )
    assert [entry.reason for entry in result.dropped] == [
        "exact duplicate of 000.png",
        "exact duplicate of 000.png with another caption",
    ]
    assert [sample.caption for sample in result.samples] == ["field 0"]


@pytest.mark.parametrize("way", ["same_caption", "group", "keep"])
@pytest.mark.parametrize("flat", [False, True])
def test_exact_duplicates_with_another_caption_stay_in_one_split(way, flat):
    samples = [
        Raw(f"{raw.name}{copy}", np.full((8, 8, 3), seed, np.uint8) if flat else raw.picture, f"copy {copy}")
        for seed, raw in enumerate(raws(20))
        for copy in range(3)
    ]
    again = replace(samples[0], name="again.png")
    result = prepared([*samples, again], BuildOptions(pictures=Preparation(near_duplicates=way)))
    assert sorted(splits(result)) == sorted(raw.name for raw in samples)
    assert [entry.reason for entry in result.dropped] == ["exact duplicate of 000.png0"]
    assert list(result.notes) == [(SAME_PIXELS, 40, "000.png1")]
    for raw in raws(20):
        assert len({splits(result)[f"{raw.name}{copy}"] for copy in range(3)}) == 1
    assert len({sample.key[:20] for sample in result.samples}) == 60
    assert {sample.key for sample in result.samples} >= {sample.content for sample in result.samples}


def test_exact_duplicates_of_a_fixed_test_picture_leave_train_whatever_their_caption():
    pixels_of = raws(1)[0].picture
    both = [Raw("a", pixels_of, "one", split="train"), Raw("b", pixels_of, "two", split="test")]
    for way in ("same_caption", "keep"):
        result = prepared(both, BuildOptions(pictures=Preparation(near_duplicates=way)))
        assert splits(result) == {"b": "test"}
        assert [entry.reason for entry in result.dropped] == ["kin of a test picture"]


def test_copies_of_another_class_are_of_another_kind():
    first = raws(1)[0]
    both = [replace(first, name=f"{label}", caption="", label=label) for label in (0, 1)]
    assert (
        len(prepared(both, BuildOptions(pictures=Preparation(near_duplicates="same_caption"))).samples) == 2
    )


def test_what_is_near_a_fixed_test_picture_leaves_train():
    base = [replace(raw, split="train") for raw in raws(30)]
    tests = [
        Raw("exact", base[3].picture, "e", split="test"),
        Raw("near", jpeg(base[5].picture), "n", split="test"),
        Raw("turned", np.ascontiguousarray(np.rot90(base[7].picture)), "t", split="test"),
    ]
    result = prepared([*base, *tests], test=0.0)
    split = splits(result)
    assert {name for name, where in split.items() if where == "test"} == {"exact", "near", "turned"}
    assert {entry.name: entry.reason for entry in result.dropped} == {
        "003.png": "exact duplicate of exact with another caption",
        "005.png": "near duplicate of near with another caption",
        "007.png": "kin of a test picture",
    }
    assert "val" in split.values()


def test_bytes_and_words_are_those_of_the_picture(tmp_path):
    raw = Raw("x", pixels(4), "a field", 3)
    sample = prepared([raw], folder=tmp_path).samples[0]
    data = Chunk(tmp_path / "chunks", 0).file("images").read_bytes()[sample.at :][: sample.length]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), raw.picture)
    assert (sample.caption, sample.label, sample.key) == ("a field", 3, content_hash(raw.picture))


def test_progress_ends_at_the_total():
    seen = []
    prepared(raws(270), progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[2] == "pictures"] == [
        (256, 270, "pictures"),
        (270, 270, "pictures"),
    ]
    assert (270, 270, "near duplicates") in seen


def test_nothing_usable_is_an_error_that_says_why(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png: it is not an image"):
        prepared([Raw("x.png", tmp_path / "x.png", "c")])
