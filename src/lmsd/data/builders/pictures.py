"""One picture from a file of any format to uint8 [size, size, C]: decode, crop, resize, denoise."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from lmsd.data.builders.source import Pixels
from lmsd.data.decode import MAX_BYTES, BadImage, decode, probe


def read_picture(
    picture: Path | Callable[[], bytes], *, channels: Literal[1, 3] = 3
) -> tuple[Pixels, tuple[str, ...]]:
    """Decode a file, or the bytes that `picture` reads, to uint8 [H, W, C], upright and in sRGB.

    Also returns notes on it. Raises BadImage, whose message is the reason that the manifest gives: it
    names no place.
    """
    try:
        if isinstance(picture, Path) and picture.stat().st_size > MAX_BYTES:
            raise BadImage(f"its {picture.stat().st_size:,} bytes are more than {MAX_BYTES >> 20} MiB")
        data = picture.read_bytes() if isinstance(picture, Path) else picture()
    except OSError as error:
        raise BadImage(f"it cannot be read ({error.strerror})") from error
    return decode(data, channels=channels), probe(data).notes


def to_channels(pixels: Pixels, channels: Literal[1, 3]) -> Pixels:
    """Grey repeated to RGB, or RGB as ITU-R 601 luma."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def fit_picture(
    pixels: Pixels,
    size: int,
    *,
    channels: Literal[1, 3],
    denoise: Literal["none", "median", "gaussian"] = "none",
) -> Pixels:
    """The central square as [size, size, channels]: resized by Lanczos unless it has that size, denoised."""
    pixels = to_channels(pixels, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    side = min(image.size)
    if image.width != image.height:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    if denoise != "none":
        kernel = ImageFilter.MedianFilter(3) if denoise == "median" else ImageFilter.GaussianBlur(0.5)
        image = image.filter(kernel)
    return np.asarray(image).reshape(size, size, channels)


def encode_picture(pixels: Pixels, image_format: Literal["png", "jpg"]) -> bytes:
    """Lossless PNG, or JPEG of quality 95 without chroma subsampling."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if image_format == "png":
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()
