"""One picture from a file of any mode to uint8 [size, size, C]: decode, upright, crop, resize, denoise."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from lmsd.data.builders.source import Pixels

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
LARGEST = 64_000_000
"""Pixels from which a file is refused rather than decoded: a small file may hold gigabytes."""


class BadPicture(Exception):
    """A picture that cannot be used; the message is the reason that the manifest gives."""


def read_picture(path: Path) -> Pixels:
    """Decode a file to uint8 [H, W, 1] (grey) or [H, W, 3], upright; BadPicture says why it cannot be.

    16 bit is scaled to 8; palettes and CMYK become RGB; what is transparent is laid over white.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > LARGEST:
                raise BadPicture(f"{opened.width}x{opened.height} pixels are more than {LARGEST:,}")
            opened.load()
            return _to_pixels(ImageOps.exif_transpose(opened))
    except (BadPicture, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadPicture("not an image that can be decoded") from error
    except (
        Exception
    ) as error:  # Pillow's plugins raise all kinds on damaged files: struct, zlib, index errors
        raise BadPicture(f"damaged: {_one_line(error, path)}") from error


def _one_line(error: Exception, path: Path) -> str:
    """What a decoder says, on one line and without the path: the manifest does not depend on the place."""
    return " ".join(str(error).replace(str(path), path.name).split()) or type(error).__name__


def _to_pixels(image: Image.Image) -> Pixels:
    """Any mode of Pillow's as uint8 with 1 or 3 channels."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bit(np.asarray(image), image.mode)
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert(
            "RGB"
        )
    elif image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(image.convert("RGB"))


def _to_8_bit(values: np.ndarray, mode: str) -> Pixels:
    """Grey [H, W, 1] from 16 bit (65535 is white); other ranges have no agreed white and are refused."""
    if mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadPicture(
            f"mode {mode} with values {values.min()} to {values.max()} has no known white; save it as 8 bit"
        )
    return np.round(values.astype(np.float64) * (255 / 65535)).astype(np.uint8)[..., None]


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
    """The central square as [size, size, channels]: resized by Lanczos (at its own size not), denoised."""
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
    """PNG without loss, or JPEG of quality 95 with full color resolution."""
    stream = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if image_format == "png":
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()
