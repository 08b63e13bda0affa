"""Sample grids, pixel by pixel."""

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.errors import UserError
from lmsd.evaluation.grid import sample_grid, save_grid, to_picture


def test_every_pixel_becomes_a_square():
    image = torch.linspace(-1, 1, 3 * 8 * 8).view(3, 8, 8)
    pixels = np.asarray(to_picture(image, tile=96))
    assert pixels.shape == (96, 96, 3)
    small = image.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(pixels, small.repeat(12, axis=0).repeat(12, axis=1))


def test_gray_becomes_rgb_and_large_images_keep_their_size():
    picture = to_picture(torch.full((1, 128, 128), 2.0), tile=96)
    assert picture.size == (128, 128)
    assert picture.getpixel((5, 5)) == (255, 255, 255)


def test_images_lie_where_they_belong_with_captions_below():
    colors = [(-1.0, -1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0)]
    images = [torch.tensor(color)[:, None, None].expand(3, 8, 8) for color in colors]
    sheet = np.asarray(sample_grid(images, ["a blue one", "", "green"], columns=2))
    assert sheet.shape[1] == 2 * (96 + 8) + 8
    np.testing.assert_array_equal(sheet[8:104, 8:104], np.broadcast_to([0, 0, 255], (96, 96, 3)))
    np.testing.assert_array_equal(sheet[8:104, 112:208], np.broadcast_to([255, 0, 0], (96, 96, 3)))
    below = sheet[106:121]
    assert below[:, 8:104].min() < 120, "letters below the first image"
    assert below[:, 112:208].min() == 255, "none below the second"
    row = 8 + (sheet.shape[0] - 8) // 2
    np.testing.assert_array_equal(sheet[row : row + 96, 8:104], np.broadcast_to([0, 255, 0], (96, 96, 3)))
    assert (sheet[row : row + 96, 112:] == 255).all(), "no fourth image"


def test_long_captions_stay_below_their_image():
    caption = "an extraordinarilylongwordthatfitsnowhere " + "and many more words " * 10
    sheet = np.asarray(sample_grid([torch.zeros(3, 8, 8)] * 2, ["", caption], columns=2))
    assert (sheet[106:, :112] == 255).all(), "nothing to the left of the second column"
    assert (sheet[106:, 208:] == 255).all(), "nothing to its right"
    assert sheet.shape[0] == 8 + 96 + 2 + 3 * 15 + 8, "three lines at most"


def test_saved_as_png(tmp_path):
    path = save_grid([torch.zeros(1, 8, 8)] * 4, list("abcd"), tmp_path / "new" / "grid.png", columns=4)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size[0] == 4 * 104 + 8
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="2 images has 1 captions"):
        sample_grid([torch.zeros(1, 8, 8)] * 2, ["one"])
    with pytest.raises(UserError, match=r"\[4, 8, 8\]"):
        to_picture(torch.zeros(4, 8, 8))
