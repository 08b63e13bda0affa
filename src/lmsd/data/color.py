"""Color profiles: the pixels of every image are converted to sRGB.

Profiles are converted by Pillow's ImageCms (LittleCMS, perceptual intent). A profile that changes no color by
more than two levels of 255 is sRGB under another name: such pixels are left as they are, and a JPEG of that
kind is still decoded by the fast path. A profile that cannot be read, or is meant for other channels, is
ignored and reported.
"""

import io
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms

UNREADABLE = "color profiles that cannot be applied, ignored"
OTHER = "color spaces other than sRGB by {}, ignored"

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")
_SAME = 2  # of 255
_CICP = b"\x01\x0d"  # primaries and transfer of sRGB
_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue


class Profile(NamedTuple):
    """How pixels of one mode become sRGB: by `transform`, or not at all; note: why a profile is not used."""

    transform: ImageCms.ImageCmsTransform | None
    mode: str = ""
    note: str = ""


def profile_of(image: Image.Image) -> Profile:
    """What the image's own profile requires; the pixels need not be loaded."""
    content = image.info.get("icc_profile")
    if content:
        return _profile(bytes(content), image.mode)
    if image.mode == "LAB":
        return Profile(_lab(), "LAB")
    gamma = image.info.get("gamma")  # of PNG: 1 / 2.2 means what sRGB does
    if gamma and "srgb" not in image.info and abs(gamma * 2.2 - 1) > 0.05:
        return Profile(None, note="gamma values other than sRGB's, ignored")
    return Profile(None)


def meant(image: Image.Image, data: bytes) -> str:
    """A note if the colors are not sRGB according to other metadata than a profile, or ""; data: the file."""
    info = image.info
    if image.format == "PNG":
        at = data.find(b"cICP", 0, data.find(b"IDAT"))
        if at >= 0 and data[at + 4 : at + 6] != _CICP:
            return OTHER.format("cICP")
        shape = info.get("chromaticity")
        known = "srgb" in info or at >= 0 or "icc_profile" in info
        if shape and not known and max(abs(a - b) for a, b in zip(shape, _PRIMARIES, strict=True)) > 0.01:
            return OTHER.format("cHRM")
    elif image.format in ("JPEG", "MPO") and not info.get("icc_profile") and b"R03" in data:
        try:
            found = image.getexif().get_ifd(ExifTags.IFD.Interop).get(1)
        except Exception:  # damaged metadata; the picture may be intact
            return ""
        return OTHER.format("EXIF") if str(found).startswith("R03") else ""
    return ""


def to_srgb(image: Image.Image) -> Image.Image:
    """The image, of 8 bits per channel, in sRGB; transparency is kept."""
    found = profile_of(image)
    if found.transform is None:
        return image
    if not image.has_transparency_data:
        return found.transform.apply(image if image.mode == found.mode else image.convert(found.mode))
    layer = image.convert("RGBA")
    colors = layer.convert("RGB").convert(found.mode)
    whole = found.transform.apply(colors)
    whole.putalpha(layer.getchannel("A"))
    return whole


@lru_cache(maxsize=1)
def _lab() -> ImageCms.ImageCmsTransform:
    """From CIE Lab, whose numbers define colors by themselves."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


@lru_cache(maxsize=64)
def _profile(content: bytes, mode: str) -> Profile:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        base = _MODES.get(profile.profile.xcolor_space.strip())
        if base is None or not _suits(base, mode):
            return Profile(None, note=UNREADABLE)
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, base, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return Profile(None, note=UNREADABLE)
    return Profile(None) if _is_srgb(transform, base) else Profile(transform, base)


def _suits(base: str, mode: str) -> bool:
    """Whether an image of this mode can be what the profile describes."""
    if base == "RGB":
        return mode not in ("CMYK", "LAB", "F")
    return mode in _GREY if base == "L" else mode == base


def _is_srgb(transform: ImageCms.ImageCmsTransform, base: str) -> bool:
    if base not in ("L", "RGB"):
        return False
    steps = np.linspace(0, 255, 17 if base == "RGB" else 256).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(17, -1, 3) if base == "RGB" else steps[None]
    shown = Image.fromarray(cube)
    before, after = (np.asarray(image, int) for image in (shown.convert("RGB"), transform.apply(shown)))
    return bool(np.abs(after - before).max() <= _SAME)
