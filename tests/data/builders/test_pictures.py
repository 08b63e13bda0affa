import numpy as np
import pytest
from PIL import Image
from tiny_photographs import photograph

from lmsd.data.builders.pictures import encode_picture, fit_picture, read_picture
from lmsd.data.decode import BadImage

RGB = (200, 60, 20)


def saved(tmp_path, image, name="x.png", channels=3, **options):
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name, channels=channels)[0]


def test_grey_and_rgb_come_in_the_channels_asked_for(tmp_path):
    assert saved(tmp_path, Image.new("L", (5, 4), 77), channels=1).tolist() == np.full((4, 5, 1), 77).tolist()
    assert (saved(tmp_path, Image.new("RGB", (5, 4), RGB)) == RGB).all()
    assert (saved(tmp_path, Image.new("1", (4, 4), 1)) == 255).all()


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("x.png", "x.tif"):
        assert saved(tmp_path, Image.fromarray(levels), name, 1).ravel().tolist() == [0, 1, 128, 255]
    with pytest.raises(BadImage, match="no known white"):  # 32 bits: 0 to 255, to 65,535, or to anything
        saved(tmp_path, Image.fromarray(levels.astype(np.int32)), "x.tiff", 1)


def test_palette_cmyk_and_transparency(tmp_path):
    plain = Image.new("RGB", (4, 4), RGB)
    assert (saved(tmp_path, plain.convert("P", palette=Image.Palette.ADAPTIVE)) == RGB).all()
    assert np.abs(saved(tmp_path, plain.convert("CMYK"), "x.tif").astype(int) - RGB).max() <= 1
    half = Image.new("RGBA", (4, 4), (*RGB, 128))
    assert np.abs(saved(tmp_path, half) - (np.array(RGB) * 128 + 255 * 127) / 255).max() <= 1
    assert (saved(tmp_path, Image.new("LA", (4, 4), (0, 0))) == 255).all()
    glass = Image.new("P", (4, 4), 0)
    assert (saved(tmp_path, glass, "x.gif", transparency=0) == 255).all()


def test_the_exif_turn_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter to the right to view"
    upright = saved(tmp_path, image, "x.png", exif=exif)
    assert upright.shape == (40, 20, 3)
    assert upright[:18].min() == 255
    assert upright[22:].max() == 0


@pytest.mark.parametrize("kept", [0, 30, 200])
def test_cut_files_are_bad_with_a_reason_that_names_no_place(tmp_path, kept):
    photograph(0).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[:kept])
    with pytest.raises(BadImage) as caught:
        read_picture(tmp_path / "x.png")
    assert str(tmp_path) not in str(caught.value)


def test_bombs_and_unknown_whites_are_bad(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(BadImage, match="9000x9000"):
        read_picture(tmp_path / "bomb.png")
    Image.fromarray(np.array([[0.5, 7e5]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadImage, match="no known white"):
        read_picture(tmp_path / "x.tif")


def test_the_middle_is_cropped_and_its_own_size_is_left_alone():
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    assert np.array_equal(fit_picture(wide, 8, channels=3), wide[:, 8:16])
    assert np.array_equal(
        fit_picture(wide.transpose(1, 0, 2), 8, channels=3), wide[:, 8:16].transpose(1, 0, 2)
    )


def test_channels_and_sizes_convert():
    grey = np.asarray(photograph(1).convert("L"))[..., None]
    assert np.array_equal(fit_picture(grey, 48, channels=3), np.repeat(grey, 3, 2))
    color = np.full((6, 6, 3), RGB, np.uint8)
    assert abs(int(fit_picture(color, 3, channels=1)[0, 0, 0]) - (0.299 * 200 + 0.587 * 60 + 0.114 * 20)) <= 1


def test_the_median_removes_a_speck_and_the_gaussian_lowers_it():
    speck = np.full((9, 9, 1), 100, np.uint8)
    speck[4, 4] = 250
    assert (fit_picture(speck, 9, channels=1, denoise="median") == 100).all()
    softened = fit_picture(speck, 9, channels=1, denoise="gaussian")
    assert 100 < softened[4, 4, 0] < 250
    assert softened[4, 5, 0] > 100


def test_png_is_exact_and_jpg_near(tmp_path):
    picture = np.asarray(photograph(2))
    for image_format, most in (("png", 0), ("jpg", 12)):
        (tmp_path / f"x.{image_format}").write_bytes(encode_picture(picture, image_format))
        back, _ = read_picture(tmp_path / f"x.{image_format}")
        assert np.abs(back.astype(int) - picture).max() <= most
