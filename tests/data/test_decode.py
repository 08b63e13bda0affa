"""Every kind of image becomes the RGB or grey bytes that a viewer shows."""

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms, PngImagePlugin
from profiles import SRGB, SWAPPED, grey, matrix
from tars import encoded, jpeg, picture

from lmsd.data import decode as module
from lmsd.data.color import UNREADABLE
from lmsd.data.decode import BadImage, Picture, decode, decode_plain, decode_slowly, probe


def test_the_fast_path_equals_pillow():
    for subsampling in (0, 1, 2):
        for size in (8, 17, 32):
            data = encoded(picture(size, size), "JPEG", quality=80, subsampling=subsampling)
            assert probe(data) == Picture(size, size, True, True)
            out = np.empty((size, size, 3), np.uint8)
            decode_plain(data, out)
            assert np.array_equal(out, np.asarray(Image.open(io.BytesIO(data))))
            assert np.array_equal(out, decode_slowly(data, channels=3))
            grey = np.empty((size, size, 1), np.uint8)
            decode_plain(data, grey)
            stored = Image.open(io.BytesIO(data))
            stored.draft("L", None)  # the luma as it is stored
            assert np.array_equal(grey[..., 0], np.asarray(stored))


def test_progressive_and_grey_jpeg_are_plain_too():
    grey = encoded(Image.fromarray(picture(1, 16)).convert("L"), "JPEG")
    progressive = encoded(picture(1, 16), "JPEG", progressive=True)
    for data in (grey, progressive):
        assert probe(data).plain
        out = np.empty((16, 16, 3), np.uint8)
        decode_plain(data, out)
        assert np.array_equal(out, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_lossless_formats_come_back_as_they_were():
    image = picture(3, 12)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(image, form, **options)
        assert probe(data) == Picture(12, 12, False, False)
        assert np.array_equal(decode(data), image)


def test_grey_is_spread_to_rgb_and_rgb_is_weighed_to_grey():
    grey = picture(4, 9, channels=1)
    assert np.array_equal(decode(encoded(grey)), np.repeat(grey, 3, axis=2))
    assert np.array_equal(decode(encoded(grey), channels=1), grey)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert np.all(decode(encoded(red), channels=1) == 76)  # 0.299 · 255


def test_palette_colors_are_looked_up():
    image = Image.fromarray(picture(5, 16)).quantize(7)
    assert image.mode == "P"
    assert np.array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(form):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 0] = (200, 0, 0, 255)
    pixels[:, 1] = (200, 0, 0, 0)
    pixels[:, 2] = (200, 0, 0, 128)
    shown = decode(encoded(Image.fromarray(pixels), form, lossless=True))
    assert shown[0, 0].tolist() == [200, 0, 0]
    assert shown[0, 1].tolist() == [255, 255, 255]
    assert np.abs(shown[0, 2].astype(int) - [227, 127, 127]).max() <= 1


def test_transparent_palettes_greys_and_keys_are_laid_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert decode(encoded(image, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]
    grey = Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA")
    assert decode(encoded(grey), channels=1)[0, :, 0].tolist() == [9, 255]
    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decode(encoded(keyed, transparency=(4, 5, 6)))[0].tolist() == [[1, 2, 3], [255, 255, 255]]


def test_cmyk_is_converted():
    cmyk = Image.fromarray(picture(6, 16)).convert("CMYK")
    data = encoded(cmyk, "JPEG", quality=100, subsampling=0)
    assert not probe(data).plain
    assert np.abs(decode(data).astype(int) - picture(6, 16)).max() <= 6


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    data = encoded(Image.fromarray(values))
    assert decode(data, channels=1)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(data)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_undone(turn):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 250  # one bright corner, top left
    # the stored image is such that the orientation tag brings the corner back
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = Image.fromarray(upright)
    if turn > 1:
        stored = stored.transpose(getattr(Image.Transpose, undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    for form in ("JPEG", "PNG", "WEBP"):
        data = encoded(stored, form, exif=exif, quality=95)
        shown = decode(data)
        assert shown.shape == (16, 24, 3)
        assert shown[:7, :7].min() > 200
        assert shown[9:, 9:].max() < 50
        assert probe(data).plain is (form == "JPEG" and turn == 1)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_formats_of_folders_are_read_in_shards_too(form):
    image = Image.fromarray(picture(7)).quantize(8).convert("RGB")
    assert np.array_equal(decode(encoded(image, form)), np.asarray(image))
    assert not probe(encoded(image, form)).plain


@pytest.mark.parametrize("form", ["ICO", "TGA", "JPEG2000", "PDF"])
def test_other_formats_are_refused(form):
    data = encoded(picture(7), form)
    for call in (probe, decode):
        with pytest.raises(BadImage, match="not an image that can be decoded"):
            call(data)


def test_broken_and_oversized_images_are_refused(monkeypatch, recwarn):
    for data in (jpeg(1, 64), encoded(picture(1, 64)), encoded(picture(1, 64), "WEBP")):
        with pytest.raises(BadImage):
            decode(data[: len(data) // 2])
    with pytest.raises(BadImage):
        decode_plain(jpeg(1, 64)[:400], np.empty((64, 64, 3), np.uint8))
    small = encoded(picture(1, 4, 1))
    for side in (9_000, 12_000, 60_000):
        head = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
        bomb = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
        for call in (probe, decode):
            with pytest.raises(BadImage, match="million"):
                call(bomb)
    assert not recwarn  # Pillow's own words for it are kept from the screen
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    with pytest.raises(BadImage, match="more than"):
        probe(jpeg(1, 11))


def test_a_header_that_lies_about_the_size_is_noticed():
    with pytest.raises(BadImage):
        decode_plain(jpeg(1, 8), np.empty((9, 9, 3), np.uint8))
    with pytest.raises(BadImage):
        decode_plain(simplejpeg.encode_jpeg(picture(1, 16)), np.empty((8, 8, 3), np.uint8))


def test_what_pillow_forgives_is_read_as_pillow_reads_it():
    data = encoded(picture(3, 64), "JPEG", quality=90)
    junk = data[:-2] + b"\x12\x34\x56" * 9 + data[-2:]  # extraneous bytes before the end marker
    with pytest.raises(ValueError, match="xtraneous"):
        simplejpeg.decode_jpeg(junk)
    assert probe(junk).plain
    assert np.array_equal(decode(junk), np.asarray(Image.open(io.BytesIO(junk))))
    stored = Image.open(io.BytesIO(junk))
    stored.draft("L", None)
    assert np.array_equal(decode(junk, channels=1)[..., 0], np.asarray(stored))
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(junk, old=True)


def test_twenty_four_million_pixels_are_one_picture_for_folders_and_shards():
    image = Image.new("L", (6000, 4000), 77)
    data = encoded(image, "PNG", compress_level=1)
    assert probe(data)[:2] == (4000, 6000)
    assert decode(data, channels=1).shape == (4000, 6000, 1)


def test_the_old_decoder_knows_neither_profiles_nor_xmp():
    image = Image.fromarray(picture(5, 16))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    for options in ({"icc_profile": matrix(SWAPPED, None)}, {"xmp": xmp}):
        data = encoded(image, "JPEG", quality=95, **options)
        stored = np.asarray(Image.open(io.BytesIO(data)))
        assert np.array_equal(decode(data, old=True), stored)
        assert not np.array_equal(decode(data), stored)
        assert probe(data)[2:5] == (False, True, True)
    plain = encoded(image, "JPEG", icc_profile=matrix(SRGB, None))
    assert probe(plain)[2:5] == (True, True, False)  # sRGB by another name


@pytest.mark.parametrize("profile", [b"no profile", matrix(SRGB)[:200], grey(2.2)])
def test_a_profile_that_cannot_be_followed_is_noted(profile):
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(picture(6, 16), form, icc_profile=profile)
        assert probe(data).notes == (UNREADABLE,)
        assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_gamma_of_png_that_is_not_srgbs_is_noted():
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100_000))
    assert probe(encoded(picture(7), "PNG", pnginfo=info)).notes == (
        "gamma values other than sRGB's, ignored",
    )


def test_lab_is_a_color_by_itself():
    lab = ImageCms.createProfile("LAB")
    image = Image.fromarray(picture(8, 16))
    there = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), lab, "RGB", "LAB").apply(image)
    apart = np.abs(decode(encoded(there, "TIFF")).astype(int) - picture(8, 16))
    assert apart.mean() < 2  # 8 bits of Lab are coarse
