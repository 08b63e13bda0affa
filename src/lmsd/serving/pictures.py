"""Pictures that come in, to be edited, and those that go out.

The mask of an edit: where any of it is transparent, as OpenAI's, alpha 0 may change; else white may,
as in `lmsd edit`. Grays are shares.
"""

import io
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmsd.data.decode import BadImage, Pixels, decode, probe
from lmsd.data.orientation import TURNS, turn_of
from lmsd.data.transforms import fit
from lmsd.serving.asked import Refused

Format: TypeAlias = Literal["png", "jpeg", "webp"]
WHITE = 128


def opened(content: bytes, *, channels: int, megapixels: float, field: str = "image") -> Pixels:
    """A picture, uint8 [H,W,channels], upright. Raises Refused for what is none, or too large."""
    try:
        found = probe(content)
        if found.height * found.width > megapixels * 1e6:
            raise Refused(
                f"{field}: {found.width}x{found.height} pixels are more than {megapixels:g} million",
                field=field, status=413,
            )  # fmt: skip
        return decode(content, channels=channels)
    except BadImage as error:
        raise Refused(f"{field}: {error}", field=field) from error


def mask_of(content: bytes, shape: tuple[int, ...], size: int, *, megapixels: float) -> NDArray[np.float32]:
    """How much each pixel may change, float32 [size,size,1] in [0, 1]. shape: (H, W) of the picture.

    Raises Refused where the shapes differ, or nothing may change.
    """
    levels = opened(content, channels=1, megapixels=megapixels, field="mask")
    alpha = _alpha(content)
    if alpha is not None and alpha.shape == levels.shape:
        levels = 255 - alpha
    (height, width), (rows, columns) = shape[:2], levels.shape[:2]
    if rows * width != columns * height:
        raise Refused(
            f"mask: it is {columns}x{rows} and the image {width}x{height}: give one of the same shape",
            field="mask",
        )
    small = fit(levels, size)
    gray = bool(((levels > 4) & (levels < 251)).any())
    shown = small if gray else np.where(small >= WHITE, 255, 0)
    found: NDArray[np.float32] = np.divide(shown, 255, dtype=np.float32)
    found[found < 5 / 255] = 0.0
    found[found > 250 / 255] = 1.0
    if not found.any():
        raise Refused(
            f"mask: of the {size}x{size} pixels that the model draws none may change: mark a larger area, "
            "by alpha 0, or by white in a mask without transparency",
            field="mask",
        )
    return found


def _alpha(content: bytes) -> Pixels | None:
    """The transparency of a picture [H,W,1], upright; None where it has none, or is opaque all over."""
    with Image.open(io.BytesIO(content)) as image:
        if not image.has_transparency_data:
            return None
        turn = TURNS.get(turn_of(image, content))
        found = image.convert("RGBA").getchannel("A")
        levels = np.asarray(found if turn is None else found.transpose(turn))[:, :, None]
    return None if levels.min() == 255 else levels


def encoded(pixels: Pixels, kind: Format = "png", quality: int = 100) -> bytes:
    """A picture [H,W,C] as a file; quality: of jpeg and webp, where 100 is lossless webp."""
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    file = io.BytesIO()
    if kind == "png":
        image.save(file, format="PNG", compress_level=4)
    elif kind == "jpeg":
        image.save(file, format="JPEG", quality=max(1, min(quality, 95)))
    else:
        image.save(file, format="WEBP", quality=quality, lossless=quality == 100)
    return file.getvalue()
