"""Which way up a picture is: by EXIF, or by XMP."""

from PIL import Image

_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its orientation."""
_LATE = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")  # that may follow a PNG's pixels


def turn_of(image: Image.Image, data: bytes, *, old: bool = False) -> int:
    """The orientation by EXIF, or by XMP; 1 (upright) if there is none or it cannot be read.

    Pillow rotates a TIFF itself while it reads the pixels.
    """
    if image.format == "TIFF" or (image.format == "PNG" and not any(mark in data for mark in _LATE)):
        return 1
    if image.format == "PNG":
        image.load()
    if old and "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata; the picture may be intact
        return 1
    return found if found in TURNS else 1
