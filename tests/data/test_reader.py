"""Reading by number: what was indexed or nothing, and a damaged sample is named or replaced."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tars import encoded, flip_byte, jpeg, members_of, picture, write_shards, write_tar

from lmsd.data.decode import decode
from lmsd.data.index import build_index
from lmsd.data.reader import Form, Reader
from lmsd.data.transforms import fit
from lmsd.errors import UserError


def reader_of(paths, *, size=8, channels=3, caption="txt", keep=False, whole=0) -> Reader:
    index = build_index(paths)
    return Reader(
        index,
        lambda shard: index.shards[shard],
        Form(image_size=size, channels=channels, caption=caption),
        keep=keep,
        whole=whole,
    )


def everything(paths, sizes):
    shard = np.repeat(np.arange(len(sizes)), sizes)
    sample = np.concatenate([np.arange(count) for count in sizes])
    return shard, sample


@pytest.mark.parametrize(("keep", "whole"), [(False, 0), (False, 1), (False, 3), (True, 0)])
def test_pixels_captions_and_classes_equal_webdataset_and_pillow(tmp_path, keep, whole):
    sizes = [5, 3, 4]
    paths = write_shards(tmp_path, sizes)
    reader = reader_of(paths, keep=keep, whole=whole)
    expected = list(webdataset.WebDataset(paths, shardshuffle=False))
    shard, sample = everything(paths, sizes)
    for _ in range(2):  # the second time from memory, where it is kept
        order = np.random.default_rng(0).permutation(12)
        found = reader.read(shard[order], sample[order])
        assert not found.substituted.any()
        for slot, number in enumerate(order):
            assert np.array_equal(found.pixels[slot], decode(expected[number]["jpg"]))
            assert found.text[slot] == expected[number]["txt"].decode()
            assert found.label[slot] == int(expected[number]["cls"])


def test_sizes_and_kinds_may_be_mixed(tmp_path):
    files = [jpeg(0, 8), jpeg(1, 24), encoded(picture(2, 20)), encoded(picture(3, 8, 1)), jpeg(4, 5)]
    names = ["jpg", "jpeg", "png", "png", "jpg"]
    members = []
    for number, (content, suffix) in enumerate(zip(files, names, strict=True)):
        members += [(f"{number}.{suffix}", content), (f"{number}.txt", b"x")]
    path = write_tar(tmp_path / "a.tar", members)
    for channels in (3, 1):
        reader = reader_of([path], channels=channels)
        found = reader.read(np.zeros(5, int), np.arange(5)).pixels.copy()
        assert found.shape == (5, 8, 8, channels)
        for pixels, content in zip(found, files, strict=True):
            expected = fit(decode(content, channels=channels), 8)
            # the luma of a JPEG is taken as it is stored, not from colors that were clipped
            assert np.abs(pixels.astype(int) - expected).max() <= (0 if channels == 3 else 6)


def test_captions_come_from_the_field_that_is_named(tmp_path):
    members = []
    for number in range(2):
        fields = json.dumps({"caption": f"c{number}", "alt": f" a{number}\n"}).encode()
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", fields)]
    path = write_tar(tmp_path / "a.tar", members)
    numbers = np.zeros(2, int), np.arange(2)
    for key, expected in (("caption", ["c0", "c1"]), ("alt", ["a0", "a1"]), (None, None)):
        reader = reader_of([path], caption=key)
        assert reader.read(*numbers).text == expected
        if key:
            assert reader.captions(*numbers) == expected


@pytest.mark.parametrize("whole", [0, 1])
def test_every_flipped_byte_of_image_or_caption_is_told_by_shard_and_key(tmp_path, whole):
    path = Path(write_shards(tmp_path, [2])[0])
    build_index([path])
    places = members_of(path)
    for name in ("000001.jpg", "000001.txt"):
        start, length = places[name]
        for at in range(start, start + length, 1 if name.endswith("txt") else 23):
            flip_byte(path, at)
            reader = reader_of([path], whole=whole)
            with pytest.raises(UserError, match=r"'000001' of the shard .*train-000000\.tar.*have changed"):
                reader.read(np.array([0]), np.array([1]))
            assert reader.read(np.array([0]), np.array([0])).text == ["picture 0"]
            flip_byte(path, at)


def test_captions_alone_are_checked_too(tmp_path):
    path = Path(write_shards(tmp_path, [2])[0])
    build_index([path])
    flip_byte(path, members_of(path)["000001.txt"][0])
    with pytest.raises(UserError, match="the caption's bytes have changed"):
        reader_of([path]).captions(np.array([0, 0]), np.array([0, 1]))


def test_an_image_that_is_broken_inside_is_told(tmp_path):
    broken = jpeg(1, 64)[:-200]  # its header is sound, so the index takes it
    path = write_tar(tmp_path / "a.tar", [("k.jpg", broken), ("k.txt", b"x")])
    with pytest.raises(UserError, match=r"'k' of the shard .*cannot be decoded"):
        reader_of([path], size=64).read(np.array([0]), np.array([0]))


@pytest.mark.parametrize("keep", [False, True])
def test_a_damaged_sample_is_replaced_by_the_one_that_is_named(tmp_path, caplog, keep):
    path = Path(write_shards(tmp_path, [6])[0])
    build_index([path])
    for key in ("000002.jpg", "000003.txt"):
        flip_byte(path, members_of(path)[key][0] + 3)
    reader = reader_of([path], keep=keep)
    asked = np.array([1, 2, 5])

    def after(slot, attempt):
        return np.array([0]), asked[slot : slot + 1] + attempt

    for _ in range(2):
        found = reader.read(np.zeros(3, int), asked, substitute=after)
        # 2 is damaged, and so is 3: 4 stands in
        assert found.text == ["picture 1", "picture 4", "picture 5"]
        assert found.label.tolist() == [1, 4, 5]
        assert found.substituted.tolist() == [False, True, False]
        assert np.array_equal(found.pixels[1], decode(jpeg(4)))
    assert "'000002'" in caplog.text
    assert "'000003'" in caplog.text


def test_when_everything_is_damaged_it_stops(tmp_path):
    path = Path(write_shards(tmp_path, [1])[0])
    build_index([path])
    flip_byte(path, members_of(path)["000000.jpg"][0])
    zero = np.array([0])
    with pytest.raises(UserError, match="the 100 samples after it"):
        reader_of([path]).read(zero, zero, substitute=lambda slot, attempt: (zero, zero))


def test_a_shard_that_shrinks_or_vanishes_after_indexing_is_told(tmp_path):
    path = Path(write_shards(tmp_path, [3])[0])
    reader = reader_of([path])
    os.truncate(path, path.stat().st_size - 512)
    with pytest.raises(UserError, match="run `lmsd data index` again"):
        reader.read(np.array([0]), np.array([0]))
    path.unlink()
    with pytest.raises(UserError, match="cannot be opened"):
        reader.read(np.array([0]), np.array([0]))


def test_a_shard_cut_while_it_is_read_is_noticed(tmp_path):
    path = Path(write_shards(tmp_path, [3])[0])
    reader = reader_of([path])
    reader.read(np.array([0]), np.array([0]))
    os.truncate(path, members_of(path)["000001.jpg"][0] + 10)
    with pytest.raises(UserError, match="have changed"):
        reader.read(np.array([0]), np.array([2]))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("lmsd.data.reader._KEPT", 2)
    sizes = [2] * 6
    reader = reader_of(write_shards(tmp_path, sizes))
    before = len(os.listdir("/proc/self/fd"))
    shard, sample = everything(None, sizes)
    texts = [reader.read(shard[k : k + 1], sample[k : k + 1]).text for k in range(12)]
    assert texts == [[f"picture {k}"] for k in range(12)]
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_a_reader_travels_without_its_open_files(tmp_path):
    reader = reader_of(write_shards(tmp_path, [2]))
    reader.read(np.array([0]), np.array([0]))
    files = copy.copy(reader._files)
    assert (len(reader._files), len(files)) == (1, 0)
    assert files[0][0:600] == Path(reader.index.shards[0]).read_bytes()[:600]
