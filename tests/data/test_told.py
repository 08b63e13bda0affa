"""What is not followed or not read is told through both doors alike: a folder that is built, and a shard."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import encoded, picture, write_tar

from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.color import OTHER
from lmsd.data.decode import LATER, BadImage, decode, probe
from lmsd.data.scan import SECOND, scan
from lmsd.data.text import EMPTY, LOST
from lmsd.errors import UserError


def chunked(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk before its pixels."""
    import zlib

    data = encoded(picture(1))
    body = kind + content
    return (
        data[:33] + struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    )


def film(form: str) -> bytes:
    """Three pictures in one file."""
    first, *more = (Image.fromarray(picture(number)) for number in range(3))
    buffer = io.BytesIO()
    first.save(buffer, form, save_all=True, append_images=more)
    return buffer.getvalue()


def adobe() -> bytes:
    """A JPEG that says Adobe RGB as cameras do: by the interoperability index of EXIF."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return encoded(picture(1), "JPEG", exif=exif)


P3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
TOLD = [
    ("png", lambda: chunked(b"cICP", bytes([9, 16, 0, 1])), OTHER.format("cICP")),
    ("png", lambda: chunked(b"cICP", bytes([1, 13, 0, 1])), None),
    ("png", lambda: chunked(b"cHRM", P3), OTHER.format("cHRM")),
    ("png", lambda: chunked(b"cHRM", SRGB), None),
    ("jpg", adobe, OTHER.format("EXIF")),
    ("gif", lambda: film("GIF"), LATER),
    ("png", lambda: film("PNG"), LATER),
    ("webp", lambda: film("WEBP"), LATER),
    ("tif", lambda: film("TIFF"), LATER),
    ("jpg", lambda: film("MPO"), None),  # a camera's previews and maps
    ("gif", lambda: encoded(picture(1), "GIF"), None),
    ("tif", lambda: encoded(picture(1), "TIFF"), None),
]


@pytest.mark.parametrize(("suffix", "content", "note"), TOLD)
def test_what_a_picture_says_beyond_its_pixels_is_told_by_both_doors(tmp_path: Path, suffix, content, note):
    data, folder = content(), tmp_path / "in"
    folder.mkdir()
    (folder / f"a.{suffix}").write_bytes(data)
    (folder / "a.txt").write_text("a picture")
    built = json.loads(build("folder", tmp_path / "out", options=BuildOptions(path=folder)).read_text())
    there = scan(write_tar(tmp_path / "a.tar", [(f"a.{suffix}", data), ("a.txt", b"a picture")]))
    expected = [] if note is None else [(note, 1, f"a.{suffix}")]
    assert [(entry["what"], entry["count"], entry["first"]) for entry in built["notes"]] == expected
    assert list(there.header.notes) == expected


@pytest.mark.parametrize("numbers", [np.int32, np.float32])
def test_whole_numbers_of_32_bits_have_no_known_white(numbers):
    data = encoded(Image.fromarray((picture(2)[..., 0]).astype(numbers)), "TIFF")
    for read in (probe, decode):
        with pytest.raises(BadImage, match="have no known white level; save it as 8 bit"):
            read(data)


def build_and_scan(tmp_path: Path, files: dict[str, bytes]) -> tuple[dict[str, object], Path]:
    """A folder's manifest, and the same files as a shard."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    shard = write_tar(tmp_path / "train-0.tar", files.items())
    options = BuildOptions(path=folder, pictures=Preparation(image_size=8))
    return json.loads(build("folder", tmp_path / "out", options=options).read_text()), shard


def test_a_caption_named_after_the_whole_name_of_its_picture_is_read(tmp_path):
    files = {"a.png": encoded(picture(1)), "a.png.txt": b"one", "b.png": encoded(picture(2))}
    files |= {"b.txt": b"two", "b.png.txt": b"another"}
    facts, shard = build_and_scan(tmp_path, files)
    assert sum(facts["counts"].values()) == 2
    index = scan(shard)
    assert (index.header.captions, len(index)) == (("txt",), 2)
    assert index.column("txt")[0, 1] == len(b"one")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps({"caption": 5, "url": "u"}), "the caption is 5, not a text"),
        (json.dumps({"caption": {"en": "x"}}), "the caption is {'en': 'x'}, not a text"),
        (json.dumps("a text"), "it is no JSON object with a 'caption'"),
    ],
)
def test_a_caption_in_json_that_is_no_text_is_called_that(tmp_path, content, said):
    files = {"a.png": encoded(picture(1)), "a.json": content.encode()}
    files |= {"b.png": encoded(picture(2)), "b.json": json.dumps({"caption": "b", "url": "v"}).encode()}
    facts, shard = build_and_scan(tmp_path, files)
    (entry,) = facts["dropped"]["pictures"]
    assert said in entry["reason"]
    with pytest.raises(UserError, match=r"a\.json") as caught:
        scan(shard)
    assert said in str(caught.value)


def test_a_json_without_a_caption_is_not_called_an_empty_one(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture(1)))
    (tmp_path / "a.json").write_text('{"text": "a"}')
    with pytest.raises(UserError, match=r"a\.json cannot be used: it is no JSON object with a 'caption'"):
        build("folder", tmp_path / "out", options=BuildOptions(path=tmp_path))


def test_a_second_caption_in_a_shard_is_told(tmp_path):
    files = {"a.png": encoded(picture(1)), "a.txt": b"one", "a.caption": b"two"}
    assert list(scan(write_tar(tmp_path / "a.tar", files.items())).header.notes) == [(SECOND, 1, "a")]
    for caption, notes in (("one", []), ("two", [(SECOND, 1, "a")]), (7, [])):
        files = {
            "a.png": encoded(picture(1)),
            "a.txt": b"one",
            "a.json": json.dumps({"caption": caption}).encode(),
        }
        assert list(scan(write_tar(tmp_path / "b.tar", files.items())).header.notes) == notes


def test_words_of_which_characters_were_lost_are_told(tmp_path):
    files = {"a.png": encoded(picture(1)), "a.txt": "caf\ufffd".encode()}
    files |= {"b.png": encoded(picture(2)), "b.json": json.dumps({"caption": "b"}).encode()}
    facts, _ = build_and_scan(tmp_path, files)
    assert [(note["what"], note["count"], note["first"]) for note in facts["notes"]] == [(LOST, 1, "a.png")]
    shard = write_tar(tmp_path / "a.tar", list(files.items())[:2])
    assert list(scan(shard).header.notes) == [(LOST, 1, "a")]


def test_signs_that_nobody_sees_are_no_caption_and_utf32_has_its_name(tmp_path):
    files = {"a.png": encoded(picture(1)), "a.txt": " \u200b\ufeff ".encode()}
    files |= {"b.png": encoded(picture(2)), "b.txt": b"b"}
    facts, shard = build_and_scan(tmp_path, files)
    assert facts["dropped"]["count"] == 0
    assert [(note["what"], note["count"], note["first"]) for note in facts["notes"]] == [(EMPTY, 1, "a.png")]
    assert list(scan(shard).header.notes) == [(EMPTY, 1, "a")]
    files["a.txt"] = "a".encode("utf-32")
    with pytest.raises(UserError, match="not UTF-8 text but UTF-32"):
        scan(write_tar(tmp_path / "c.tar", files.items()))
