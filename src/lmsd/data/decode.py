"""Bytes of an image → uint8 [H,W,C], C = 3 (RGB) or 1 (gray): the only decoder, for builders and readers.

Plain JPEG (8-bit YCbCr or gray, upright, in sRGB) is decoded by libjpeg-turbo through simplejpeg, with the
accurate transform and upsampling, so that RGB equals Pillow's bit for bit at several times the speed, and
gray is the stored luma. What simplejpeg refuses, and everything else, is decoded by Pillow: palettes,
transparency (composited on white), CMYK, 16 bits, orientation (EXIF, or XMP), color profiles (`color`). Other
formats than these are not opened, and nothing larger than `MAX_PIXELS` is decoded.

`old` is the decoder of indexes before version 2: no profiles, no orientation by XMP, and no second attempt.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from lmsd.data.color import meant, profile_of, to_srgb
from lmsd.data.orientation import TURNS, turn_of

MAX_PIXELS = 64_000_000
MAX_BYTES = 256 << 20
"""The largest picture and file that are decoded; a pixel takes some 15 bytes of memory at most."""

_SUFFIXES = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "AVIF": ("avif",) if features.check("avif") else (),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
}
FORMATS = tuple(name for name, suffixes in _SUFFIXES.items() if suffixes)
SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
"""Suffixes of the names of images, in lower case and without the dot."""

LATER = "animations and multi-page files, of which only the first picture is used"

_META = (
    b"Exif",
    b"ICC_PROFILE",
    b"http://ns.adobe.com/xap",
)  # metadata that the meaning of a JPEG's pixels may depend on

_FILTERS = Lock()  # there is one list of warning filters per process

Pixels = NDArray[np.uint8]


class BadImage(ValueError):
    """Bytes that are not an image of an allowed format, or a broken or oversized one."""


class Picture(NamedTuple):
    """What an image's header says.

    plain: the fast path may decode it, into exactly this height and width; old_plain: the old decoder did so;
    changed: the old decoder produced other pixels; notes: metadata and content that are ignored.
    """

    height: int
    width: int
    plain: bool
    old_plain: bool
    changed: bool = False
    notes: tuple[str, ...] = ()


def probe(data: bytes) -> Picture:
    """Read only the header. Raises BadImage."""
    jpeg = data[:2] == b"\xff\xd8"
    size = _jpeg_size(data) if jpeg and b"Exif" not in data else None
    if size is not None and not any(mark in data for mark in _META):
        return Picture(*size, True, True)
    with _hushed(), _open(data) as image:
        try:
            turn, old = turn_of(image, data), turn_of(image, data, old=True)
            profile = profile_of(image)
        except Exception as error:  # a PNG's late chunks are read with its pixels
            raise BadImage(f"it cannot be decoded ({error})") from error
        fast = image.format == "JPEG" and image.mode in ("RGB", "L")
        return Picture(
            *(size or (image.height, image.width)),
            plain=fast and turn == 1 and profile.transform is None,
            old_plain=size is not None or (fast and old == 1),
            changed=turn != old or profile.transform is not None,
            notes=tuple(filter(None, (profile.note or meant(image, data), _later(image)))),
        )


def decode(data: bytes, *, channels: int = 3, old: bool = False) -> Pixels:
    """Any allowed image as uint8 [H,W,channels], upright, in sRGB, transparency on white. Raises BadImage."""
    picture = probe(data)
    if not (picture.old_plain if old else picture.plain):
        return decode_slowly(data, channels=channels, old=old)
    pixels = room(picture.height, picture.width, channels)
    decode_plain(data, pixels, old=old)
    return pixels


def room(*shape: int) -> Pixels:
    """An array to decode into, uninitialized, whose address is 16 bytes past a multiple of 32.

    At multiples of 32 libjpeg-turbo bypasses the processor's cache, which is a quarter slower for small
    images.
    """
    size = math.prod(shape)
    room = np.empty(size + 32, np.uint8)
    start = (16 - room.ctypes.data) % 32
    return room[start : start + size].reshape(shape)


def decode_plain(data: bytes, out: Pixels, *, old: bool = False) -> None:
    """A plain JPEG (see `Picture`) of exactly out's height and width, into out [H,W,C]. Raises BadImage."""
    shape = out.shape
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB" if shape[2] == 3 else "GRAY", buffer=out)
    except ValueError as error:
        if old:
            raise BadImage(f"it cannot be decoded ({error})") from error
        pixels = decode_slowly(data, channels=shape[2], luma=True)
        if pixels.shape == shape:
            out[:] = pixels
    if pixels.shape != shape:
        raise BadImage(f"its height and width are {pixels.shape[:2]}, and in the index {shape[:2]}")


def decode_slowly(data: bytes, *, channels: int, old: bool = False, luma: bool = False) -> Pixels:
    """The same by Pillow; luma: take gray as a JPEG stores it, as the fast path does. Raises BadImage."""
    with _open(data) as image:
        try:
            if luma and channels == 1:
                image.draft("L", None)
            image.load()
            turn = TURNS.get(turn_of(image, data, old=old))
            upright = _eight_bits(image if turn is None else image.transpose(turn), image.info)
            mode = "RGB" if channels == 3 else "L"
            pixels = np.asarray(_opaque(upright if old else to_srgb(upright), mode))
        except Exception as error:  # Pillow's plugins raise many kinds of errors for damaged data
            raise BadImage(f"it cannot be decoded ({error})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


@contextmanager
def _hushed() -> Iterator[None]:
    """Suppress Pillow's warnings about large pictures and damaged metadata: our messages replace them."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _later(image: Image.Image) -> str:
    """A note for animations and multi-page files; further pictures in a JPEG are previews and depth maps."""
    if image.format not in ("GIF", "PNG", "WEBP", "AVIF", "TIFF"):
        return ""
    try:
        image.seek(1)
    except Exception:  # there is no second picture, or it is damaged, which does not matter here
        return ""
    return LATER


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in the colors that the fast path reads, else None."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if space in ("YCbCr", "Gray") and width * height <= MAX_PIXELS else None


def _open(data: bytes) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise BadImage(f"its {len(data):,} bytes are more than {MAX_BYTES >> 20} MiB")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"it has more than {MAX_PIXELS // 1_000_000} million pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage(f"it is not an image that can be decoded ({', '.join(FORMATS)})") from error
    except Exception as error:
        raise BadImage(f"its header is broken ({error})") from error
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage(f"its values (mode {image.mode}) have no known white level; save it as 8 bit")
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(
            f"its {image.width}x{image.height} pixels are more than {MAX_PIXELS // 1_000_000} million"
        )
    return image


def _eight_bits(image: Image.Image, info: dict[str | tuple[int, int], object]) -> Image.Image:
    """8 bits per channel, with its profile; 16-bit grays are scaled: Pillow's conversion would clip them."""
    if image.mode.startswith("I"):
        gray = np.array(image, np.float32)
        gray *= np.float32(255.0 / 65535.0)
        image = Image.fromarray(np.rint(gray, out=gray).astype(np.uint8))
    if "icc_profile" in info:
        image.info["icc_profile"] = info["icc_profile"]
    return image


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode without transparency, laid on white."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
        image = image.convert("RGB")
    return image.convert(mode)
