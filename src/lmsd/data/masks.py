"""An image that is edited, and its mask: which of its pixels may change."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lmsd.data.decode import Pixels


def open_image(path: Path, *, channels: int) -> "Pixels":
    """An image file as uint8 [H,W,channels], upright."""
    from lmsd.data.decode import BadImage, decode

    try:
        return decode(path.read_bytes(), channels=channels)
    except BadImage as error:
        raise UserError(f"{path}: {error}") from error


def has_holes(path: Path) -> bool:
    """Whether an image file has pixels that are not opaque."""
    from PIL import Image

    with Image.open(path) as image:
        return image.has_transparency_data and min(image.convert("RGBA").getchannel("A").tobytes()) < 255


WHITE = 128
"""A level from which a pixel of a mask counts as white, where all of it is black or white."""


def read_mask(path: Path, shape: tuple[int, ...], size: int) -> "NDArray[np.float32]":
    """How much each pixel may change, in [0, 1], float32 [size,size,1]. shape: (H, W) of the image.

    Prepared like the image. A black-and-white mask stays black and white; grays are kept. Raises UserError
    if its shape is not the image's, and if there is nothing to change.
    """
    import numpy as np

    from lmsd.data.transforms import fit

    whole = open_image(path, channels=1)
    if has_holes(path):
        raise UserError(
            f"mask={path} has transparent pixels, which might be those to change or those to keep: save it "
            "without transparency, white where the image may change"
        )
    (height, width), (rows, columns) = shape[:2], whole.shape[:2]
    if rows * width != columns * height:
        raise UserError(
            f"mask={path} is {columns}x{rows} and the image {width}x{height}: they are cropped alike, so "
            "give a mask of the image's shape"
        )
    small = fit(whole, size)
    white, gray = int((whole >= WHITE).sum()), bool(((whole > 4) & (whole < 251)).any())
    left = int((small >= WHITE).sum())
    if not (whole > 4).any():
        raise UserError(f"mask={path} is black all over: paint white where the image may change")
    if (white and not left) or not (small > 4).any():
        raise UserError(
            f"mask={path}: {white:,} of its {whole.size:,} pixels are white, and of the {size}x{size} that "
            f"the net sees {left} are: paint a larger area"
        )
    if (whole > 250).all():
        print(f"note: mask={path} is white all over: the whole image may change", file=sys.stderr)
    shown = small if gray else np.where(small >= WHITE, 255, 0)
    levels: NDArray[np.float32] = np.divide(shown, 255, dtype=np.float32)
    levels[levels < 5 / 255] = 0.0
    levels[levels > 250 / 255] = 1.0
    return levels
