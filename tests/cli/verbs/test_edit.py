"""Masks: prepared as their image is, grays kept, and an empty one told with what was white."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lmsd.cli.verbs.edit import main
from lmsd.data.masks import read_mask
from lmsd.errors import UserError


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_a_mask_of_another_shape_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", np.full((64, 128), 255))
    with pytest.raises(UserError, match=r"m.png is 128x64 and the image 64x64: they are cropped alike"):
        read_mask(path, (64, 64), 8)
    assert read_mask(path, (32, 64), 8).shape == (8, 8, 1), "of the same shape, whatever its size"


def test_black_and_white_stay_so_and_grays_are_how_much(tmp_path: Path) -> None:
    hard = np.zeros((64, 64))
    hard[:, :20] = 255
    assert set(np.unique(read_mask(saved(tmp_path / "h.png", hard), (64, 64), 8))) == {0.0, 1.0}
    soft = np.zeros((8, 8))
    soft[:, :4], soft[:, 0] = 51, 255
    found = read_mask(saved(tmp_path / "s.png", soft), (8, 8), 8)
    assert found[0, :, 0].tolist() == pytest.approx([1.0, 0.2, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0])


def test_a_mask_that_becomes_empty_says_what_was_white(tmp_path: Path) -> None:
    tiny = np.zeros((64, 64))
    tiny[3, 3] = 255
    path = saved(tmp_path / "t.png", tiny)
    with pytest.raises(UserError, match=r"1 of its 4,096 pixels are white, and of the 8x8 .* 0 are"):
        read_mask(path, (64, 64), 8)
    with pytest.raises(UserError, match="is black all over"):
        read_mask(saved(tmp_path / "b.png", np.zeros((64, 64))), (64, 64), 8)


def test_a_transparent_mask_could_mean_either_and_is_refused(tmp_path: Path) -> None:
    strokes = np.zeros((8, 8, 4))
    strokes[2:5, 2:5] = 255
    with pytest.raises(UserError, match=r"w.png has transparent pixels.*white where the image may change"):
        read_mask(saved(tmp_path / "w.png", strokes), (8, 8), 8)
    strokes[..., 3] = 255
    assert read_mask(saved(tmp_path / "o.png", strokes), (8, 8), 8).sum() == 9


def test_the_picture_itself_is_never_written_over_and_a_file_is_no_prompt(tmp_path):
    image, words = tmp_path / "a.png", tmp_path / "p.txt"
    Image.new("RGB", (8, 8)).save(image)
    words.write_text("a blue star")
    before = image.read_bytes()
    for given, said in (
        (f"image={image} prompt=a out={image}", "is the picture that is edited, or its mask"),
        (
            f"image={image} prompt=a mask={image} out={tmp_path / '.' / 'a.png'}",
            "is the picture that is edited",
        ),
        (f"image={image} prompt={words}", "is a file: lmsd edit takes one prompt in words"),
    ):
        with pytest.raises(UserError, match=said):
            main(["run=last", *given.split()])
    assert image.read_bytes() == before
