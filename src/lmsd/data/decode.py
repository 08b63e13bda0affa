"""Bytes of a JPEG, PNG or WebP → uint8 [H,W,C], C = 3 (RGB) or 1 (grey).

Plain JPEG (8-bit YCbCr or grey, no rotation) goes through libjpeg-turbo by simplejpeg, with the accurate
transform and upsampling, so that RGB equals Pillow's bit for bit at several times the speed, and grey is the
stored luma. Everything else goes through Pillow: palette, transparency (laid on white), CMYK, 16 bit, EXIF
orientation. Nothing else is opened, and nothing larger than `MAX_PIXELS` is decoded.
"""

import contextlib
import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 4096 * 4096
"""What decodes within 256 MiB, whatever the format: some 15 bytes a pixel."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_ORIENTATION = 0x0112

Pixels = NDArray[np.uint8]


class BadImage(ValueError):
    """Bytes that are no image of an allowed format, or a broken or an oversized one."""


class Picture(NamedTuple):
    """What an image's header says; plain: the fast path may decode it, into just this height and width."""

    height: int
    width: int
    plain: bool


def probe(data: bytes) -> Picture:
    """Read the header alone. Raises BadImage."""
    if data[:2] == b"\xff\xd8" and b"Exif" not in data:
        with contextlib.suppress(ValueError):
            height, width, space, _ = simplejpeg.decode_jpeg_header(data)
            if space in ("YCbCr", "Gray") and width * height <= MAX_PIXELS:
                return Picture(height, width, True)
    with _open(data) as image:
        plain = image.format == "JPEG" and image.mode in ("RGB", "L") and _upright(image)
        return Picture(image.height, image.width, plain)


def decode(data: bytes, *, channels: int = 3) -> Pixels:
    """Any allowed image as uint8 [H,W,channels], upright, transparency laid on white. Raises BadImage."""
    try:
        with _open(data) as image:
            image.load()
            ready = _opaque(image if _upright(image) else ImageOps.exif_transpose(image))
            mode = "RGB" if channels == 3 else "L"
            pixels = np.asarray(ready if ready.mode == mode else ready.convert(mode))
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds for damaged data
        raise BadImage(f"it cannot be decoded ({error})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def decode_plain(data: bytes | memoryview, out: Pixels) -> None:
    """A plain JPEG (see `Picture`) of exactly out's height and width, into out [H,W,C]. Raises BadImage."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB" if out.shape[2] == 3 else "GRAY", buffer=out)
    except ValueError as error:
        raise BadImage(f"it cannot be decoded ({error})") from error
    if pixels.shape != out.shape:
        raise BadImage(f"its height and width are {pixels.shape[:2]}, and in the index {out.shape[:2]}")


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"it has more than {MAX_PIXELS // 1_000_000} million pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("it is no JPEG, PNG or WebP") from error
    except Exception as error:
        raise BadImage(f"its header is broken ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(
            f"its {image.width}x{image.height} pixels are more than {MAX_PIXELS // 1_000_000} million"
        )
    return image


def _upright(image: Image.Image) -> bool:
    return "exif" not in image.info or image.getexif().get(_ORIENTATION, 1) == 1


def _opaque(image: Image.Image) -> Image.Image:
    """8 bits a channel and no transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips at 255 instead of scaling
        grey = np.array(image, np.float32)
        grey *= np.float32(255.0 / 65535.0)
        np.clip(np.rint(grey, out=grey), 0, 255, out=grey)
        return Image.fromarray(grey.astype(np.uint8), "L")
    if not image.has_transparency_data:
        return image
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return whole.convert("RGB")
