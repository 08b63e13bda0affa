"""What a shard must be to be read at all, and what the index then says of it."""

import io
import json
import os
import pickle
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import webdataset
from tars import data_module, encoded, flip_byte, jpeg, members_of, picture, sample, write_shards, write_tar

from lmsd.data.decode import SUFFIXES
from lmsd.data.members import CLEAN, load
from lmsd.data.scan import APART, EMPTY, HIDDEN, SEVERAL, scan
from lmsd.errors import UserError


def shard_of(folder: Path, *members: tuple[str, bytes]) -> Path:
    return write_tar(folder / "train-000000.tar", members)


def test_members_equal_what_plain_webdataset_reads(tmp_path):
    path = Path(write_shards(tmp_path, [7])[0])
    index, content = scan(path), path.read_bytes()
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert len(index) == len(samples) == 7
    for i, expected in enumerate(samples):
        assert index.key(i) == expected["__key__"]
        for suffix in ("jpg", "txt", "cls"):
            start, length, _ = index.column(suffix)[i].tolist()
            assert content[start : start + length] == expected[suffix]
        assert index.labels[i] == int(expected["cls"])
    assert index.column(*SUFFIXES).tolist() == index.column("jpg").tolist()


def test_offsets_equal_those_of_tarfile_for_long_names_and_folders(tmp_path):
    names = ["a/" * 60 + "long-name-" * 5 + "1", "b/ünïcode", "c"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(directory := tarfile.TarInfo("b"))
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for number, name in enumerate(names):
            for suffix, content in (("jpg", jpeg(number)), ("TXT", b"words")):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                info.mtime = 0.5  # a pax header before each member
                archive.addfile(info, io.BytesIO(content))
    index = scan(path)
    assert [index.key(i) for i in range(3)] == names
    places = members_of(path)
    for i, name in enumerate(names):
        assert tuple(index.column("jpg")[i, :2]) == places[f"{name}.jpg"]
        assert tuple(index.column("txt")[i, :2]) == places[f"{name}.TXT"]


def test_real_shards_are_indexed(test_data, tmp_path):
    path = test_data / "data" / "emoji" / "val-000000.tar"
    index = scan(path)
    assert len(index) == 203
    assert index.header.captions == ("txt",)
    assert not index.header.labels
    assert set(map(tuple, index.picture.tolist())) == {(128, 128, CLEAN)}


def test_a_stored_index_is_the_same_and_needs_no_pickle(tmp_path):
    index = scan(Path(write_shards(tmp_path, [5])[0]))
    index.save(tmp_path / "i.npz")
    again = load(tmp_path / "i.npz")
    assert again.header == index.header
    for name in ("members", "first", "picture", "labels", "key_bytes", "key_ends"):
        assert np.array_equal(getattr(again, name), getattr(index, name))
    assert list(tmp_path.glob(".*")) == []  # no temporary file stays


def test_a_truncated_shard_is_found_at_every_length(tmp_path):
    path = Path(write_shards(tmp_path, [3])[0])
    whole = path.read_bytes()
    _, (start, length) = list(members_of(path).items())[-1]
    end = start + -(-length // 512) * 512
    cuts = sorted({*range(0, end + 1024, 397), *range(0, end + 1024, 512), end + 1023})
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"train-000000\.tar"):
            scan(path)
    path.write_bytes(whole[: end + 1024])  # the two zero blocks that end a tar: nothing is lost
    assert len(scan(path)) == 3


def test_a_flipped_byte_in_any_header_is_found_or_harmless(tmp_path):
    path = Path(write_shards(tmp_path, [1])[0])
    truth = scan(path)
    whole = path.read_bytes()
    found = 0
    for start, _ in members_of(path).values():
        for at in range(start - 512, start, 13):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                index = scan(path)
            except UserError:
                found += 1
                continue
            assert np.array_equal(index.members, truth.members)
            assert np.array_equal(index.key_bytes, truth.key_bytes)
    assert found > 60


def test_bytes_after_the_end_are_refused(tmp_path):
    path = Path(write_shards(tmp_path, [2])[0])
    with path.open("ab") as file:
        file.write(b"x" * 512)
    with pytest.raises(UserError, match="cut off or damaged"):
        scan(path)


def test_compressed_and_foreign_files_are_refused(tmp_path):
    inner = shard_of(tmp_path, ("a.jpg", jpeg(1)), ("a.txt", b"one"))
    squeezed = tmp_path / "z.tar"
    with tarfile.open(squeezed, "w:gz") as archive:
        archive.add(inner, "x.jpg")
    for path in (squeezed, tmp_path / "text.tar", tmp_path / "empty.tar"):
        if path.name != "z.tar":
            path.write_bytes(b"words " * 1000 if path.name == "text.tar" else b"")
        with pytest.raises(UserError, match=path.name):
            scan(path)


GOOD = [("a.jpg", jpeg(1)), ("a.txt", b"one")]
REFUSED = {
    "duplicate key": ([*GOOD, ("b.jpg", jpeg(2)), ("b.txt", b"two"), *GOOD], "comes twice"),
    "same member twice": (
        [("a.jpg", jpeg(1)), ("a.JPG", jpeg(1)), ("a.txt", b"1")],
        r"comes twice \(a\.jpg and a\.JPG\)",
    ),
    "caption of some": ([*GOOD, ("b.jpg", jpeg(2))], "neither a caption .* and others of the shard have"),
    "caption of the last": ([("0.jpg", jpeg(2)), *GOOD], "a caption or a class, and the samples before it"),
    "class of the last": (
        [("0.jpg", jpeg(2)), ("a.jpg", jpeg(1)), ("a.cls", b"1")],
        "'a': it has a caption or",
    ),
    "class of the first": ([("a.jpg", jpeg(1)), ("a.cls", b"1"), ("b.jpg", jpeg(2))], "'b': it has neither"),
    "other kind of caption": ([*GOOD, ("b.jpg", jpeg(2)), ("b.json", b'{"caption": "b"}')], "another kind"),
    "no image": ([("a.txt", b"one")], "0 images"),
    "two images": ([("a.jpg", jpeg(1)), ("a.png", encoded(picture(1))), ("a.txt", b"1")], "2 images"),
    "parent": ([("../a.jpg", jpeg(1)), ("../a.txt", b"1")], "stay inside"),
    "parent within": ([("x/../../a.jpg", jpeg(1)), ("x/../../a.txt", b"1")], "stay inside"),
    "absolute": ([("/a.jpg", jpeg(1)), ("/a.txt", b"1")], "absolute path, and must stay inside"),
    "control": ([("a\x1b.jpg", jpeg(1)), ("a\x1b.txt", b"1")], "control characters"),
    "NUL": ([("a.jpg", jpeg(1)), ("a.txt", "dog".encode("utf-16-le"))], "NUL character at 1, as does UTF-16"),
    "UTF-16": ([("a.jpg", jpeg(1)), ("a.txt", "dog".encode("utf-16"))], "not UTF-8 text but UTF-16"),
    "control in words": ([("a.jpg", jpeg(1)), ("a.txt", b"a \x1b[1mdog")], r"control character '\\x1b' at 2"),
    "surrogate": ([("a.jpg", jpeg(1)), ("a.json", b'{"caption": "\\ud83d"}')], "half a character"),
    "number": ([("a.jpg", jpeg(1)), ("a.json", b'{"caption": [1]}')], "not a text"),
    "backslash": ([("x\\..\\a.jpg", jpeg(1)), ("x\\..\\a.txt", b"1")], "stay inside"),
    "bad marker": ([*GOOD, ("b.__bad__", b"1"), ("b.jpg", jpeg(1))], "begin with '__'"),
    "key marker": ([("a.jpg", jpeg(1)), ("a.txt", b"1"), ("a.__key__", b"z")], "begin with '__'"),
    "not an image": ([("a.jpg", b"no image"), ("a.txt", b"1")], "not an image that can be decoded"),
    "not UTF-8": ([("a.jpg", jpeg(1)), ("a.txt", b"\xff\xfe")], "UTF-8"),
    "long caption": ([("a.jpg", jpeg(1)), ("a.txt", b"x" * 70_000)], "KiB of text"),
    "broken JSON": ([("a.jpg", jpeg(1)), ("a.json", b"{")], "no JSON"),
    "JSON list": ([("a.jpg", jpeg(1)), ("a.json", b"[1]")], "JSON object"),
    "JSON without words": ([("a.jpg", jpeg(1)), ("a.json", b'{"caption": 3}')], "3, not a text"),
    "JSON without a caption": ([*GOOD, ("b.jpg", jpeg(1)), ("b.json", b'{"width": 3}')], "neither a caption"),
    "class in words": ([*GOOD, ("b.jpg", jpeg(2)), ("b.txt", b"2"), ("b.cls", b"cat")], "no integer"),
    "negative class": ([("a.jpg", jpeg(1)), ("a.cls", b"-1")], "no integer"),
    "class of some": ([*GOOD, ("b.jpg", jpeg(2)), ("b.txt", b"2"), ("b.cls", b"1")], "1 of 2 samples"),
}


def test_images_alone_are_a_shard(tmp_path):
    found = scan(shard_of(tmp_path, ("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), ("c.png", encoded(picture(1)))))
    assert (len(found), found.header.captions, found.header.labels, found.header.notes) == (3, (), False, ())
    described = scan(shard_of(tmp_path, ("a.jpg", jpeg(1)), ("a.json", b'{"width": 3}'), ("b.jpg", jpeg(2))))
    assert described.header.captions == ()
    assert described.header.notes == (("JSON files without a 'caption'", 1, "a"),)


def test_classes_alone_are_a_shard(tmp_path):
    members = [("a.jpg", jpeg(1)), ("a.cls", b"3"), ("b.jpg", jpeg(2)), ("b.cls", b"0"), ("b.json", b"{}")]
    found = scan(shard_of(tmp_path, *members))
    assert (found.header.captions, found.header.labels, found.labels.tolist()) == ((), True, [3, 0])


@pytest.mark.parametrize("name", REFUSED)
def test_bad_members_are_refused_by_name(tmp_path, name):
    members, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as error:
        scan(shard_of(tmp_path, *members))
    assert "train-000000.tar" in str(error.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in GOOD:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    link = kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
    said = r"a link to /etc/passwd.*: tar --dereference --hard-dereference" if link else "only plain files"
    with pytest.raises(UserError, match=said):
        scan(path)


def test_a_sparse_member_is_refused_before_it_is_read(tmp_path):
    info = tarfile.TarInfo("b.jpg")
    info.size = 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)  # one piece of data
    header[483:495] = b"%011o\0" % (1 << 32)  # in a file of four gigabytes
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + b"y" * 512 + b"\0" * 10240)
    with pytest.raises(UserError, match="sparse"):
        scan(path)


def test_a_huge_member_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("a.jpg")
    info.size = 257 << 20
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + info.size + 10240)
    with pytest.raises(UserError, match="256 MiB"):
        scan(path)


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["LMSD_PICKLE_TRAP"],)


def test_pickles_are_never_loaded(tmp_path, monkeypatch):

    trap = tmp_path / "trap"
    monkeypatch.setenv("LMSD_PICKLE_TRAP", str(trap))
    bomb = pickle.dumps(_Payload())
    extra = [(f"a.{suffix}", bomb) for suffix in ("pyd", "pkl", "pth", "npy")]
    path = write_tar(tmp_path / "train-0.tar", [*GOOD, *extra])
    module = data_module(str(path), batch_size=1, image_size=8)
    assert next(iter(module.train_dataloader())).text == ["one"]
    assert module.shards.split_set("train").captions([0]) == ["one"]
    assert not trap.exists()


def test_json_fields_that_are_text_in_every_sample_may_be_captions(tmp_path):
    members = []
    for number in range(2):
        fields = {"caption": f"c{number}", "alt": f"a{number}", "width": 3} | ({"odd": "x"} if number else {})
        members += [
            (f"{number}.png", encoded(picture(number))),
            (f"{number}.json", json.dumps(fields).encode()),
        ]
    assert scan(shard_of(tmp_path, *members)).header.captions == ("alt", "caption")


def test_names_that_webdataset_skips_are_skipped(tmp_path):
    members = [("__meta__/x.jpg", b"?"), *GOOD, ("README", b"?"), ("._a.jpg", b"?")]
    index = scan(shard_of(tmp_path, *members))
    assert [index.key(i) for i in range(len(index))] == ["a"]


def test_a_flipped_payload_byte_changes_the_crc(tmp_path):
    path = Path(write_shards(tmp_path, [1])[0])
    before = scan(path)
    start, length = members_of(path)["000000.txt"]
    flip_byte(path, start + length // 2)
    assert (scan(path).members[:, 3] != before.members[:, 3]).sum() == 1
    assert sample(0)["txt"] == b"picture 0"


def test_members_that_lie_apart_are_read_and_told_of(tmp_path):
    members = [("a.jpg", jpeg(1)), ("b.jpg", jpeg(2)), ("a.txt", b"one"), ("b.txt", b"two")]
    index = scan(shard_of(tmp_path, *members))
    content = (tmp_path / "train-000000.tar").read_bytes()
    for i, words in enumerate((b"one", b"two")):
        start, length, _ = index.column("txt")[i].tolist()
        assert content[start : start + length] == words
    assert index.header.notes == ((APART, 2, "a"),)


def test_names_are_paired_as_in_folders(tmp_path):
    nfd = unicodedata.normalize("NFD", "é")
    members = [
        *(("22.05.png", encoded(picture(1))), ("22.05.txt", b"dots")),
        *(("set\\b.JPG", jpeg(2)), ("set/b.Txt", b"Windows")),
        *((f"{nfd}.jpg", jpeg(3)), ("é.caption", b"a Mac")),
        *(("c\u00a0d.jfif", jpeg(4)), ("c\u00a0d.txt", b"no-break space")),
        *(("e.jpg", jpeg(5)), ("e.mask.png", encoded(picture(6))), ("e.txt", b"two pictures")),
        *(("set/._b.jpg", b"a Mac's own"), ("set/.DS_Store", b"too")),
        *(("f.jpg", jpeg(7)), ("f.txt", b""), ("g.jpg", jpeg(8)), ("g.txt", b"one\ntwo")),
    ]
    path = shard_of(tmp_path, *members)
    index = scan(path)
    assert [index.key(i) for i in range(len(index))] == ["22.05", "set/b", "é", "c\u00a0d", "e", "f", "g"]
    content, places = path.read_bytes(), index.column("txt").tolist()
    words = [content[start : start + length].decode() for start, length, _ in places]
    assert words == ["dots", "Windows", "a Mac", "no-break space", "two pictures", "", "one\ntwo"]
    assert index.header.notes == ((HIDDEN, 2, "set/._b.jpg"), (EMPTY, 1, "f"), (SEVERAL, 1, "g"))
    assert "mask.png" in index.header.suffixes


def test_names_that_are_not_utf8_are_written_out(tmp_path):
    stem = b"\xff.".decode("utf-8", "surrogateescape")
    index = scan(shard_of(tmp_path, (stem + "jpg", jpeg(1)), (stem + "txt", b"x")))
    assert index.key(0) == r"\xff"


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_what_a_shard_is_packed_with_is_named(tmp_path, packing):
    inner = shard_of(tmp_path, *GOOD, ("b.jpg", os.urandom(4000)), ("b.txt", b"2"))
    with tarfile.open(tmp_path / "z.tar", f"w:{packing}") as archive:
        archive.add(inner, "x.jpg")
    with pytest.raises(UserError, match=r"z\.tar is compressed \(.*unpack it once \(.*un"):
        scan(tmp_path / "z.tar")


def test_a_null_caption_is_no_words_and_a_list_is_lines(tmp_path):
    rows = [{"caption": "one"}, {"caption": None, "error": None}, {"caption": ["two", "three"]}]
    members = []
    for number, row in enumerate(rows):
        members += [(f"{number}.jpg", jpeg(number)), (f"{number}.json", json.dumps(row).encode())]
    index = scan(shard_of(tmp_path, *members))
    assert index.header.captions == ("caption",)
    assert index.header.notes == ((EMPTY, 1, "1"), (SEVERAL, 1, "2"))


def test_decoding_finds_what_a_header_does_not_tell(tmp_path):
    path = shard_of(tmp_path, ("a.jpg", jpeg(1, 64)[:-300]), ("a.txt", b"1"))
    assert len(scan(path)) == 1
    with pytest.raises(UserError, match=r"member 'a\.jpg': it cannot be decoded"):
        scan(path, decoding=True)
