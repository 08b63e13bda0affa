"""Every kind of picture, name and caption through both doors: a folder that is built, and shards that are
read.

One generator crosses formats, modes, color profiles, orientations, names and encodings of captions; both
doors must give the same pixels and captions, and these must be what Pillow and ImageCms give.
"""

import io
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin, features
from profiles import ADOBE, P3, SRGB, SWAPPED, grey, matrix

from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.shardset import ShardSet

SIZE = 16
PROFILES = {
    "none": None,
    "srgb": matrix(SRGB, None),
    "p3": matrix(P3),
    "adobe": matrix(ADOBE),
    "swapped": matrix(SWAPPED, None),
    "broken": b"no profile",
}
TURNED = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif"} | (
    {"AVIF": "avif"} if features.check("avif") else {}
)
MODES = [
    ("JPEG", "L", "jpeg", {"quality": 90}),
    ("JPEG", "CMYK", "jpg", {"quality": 95}),
    ("JPEG", "RGB", "jfif", {"progressive": True}),
    ("JPEG", "RGB", "jpe", {"subsampling": 2, "quality": 70}),
    ("PNG", "L", "png", {}),
    ("PNG", "LA", "png", {}),
    ("PNG", "P", "png", {}),
    ("PNG", "RGBA", "png", {}),
    ("PNG", "1", "png", {}),
    ("PNG", "I;16", "png", {}),
    ("WEBP", "RGBA", "webp", {"lossless": True}),
    ("GIF", "P", "gif", {}),
    ("BMP", "RGB", "bmp", {}),
    ("TIFF", "L", "tiff", {}),
    ("TIFF", "CMYK", "tif", {}),
    ("TIFF", "RGBA", "tif", {"compression": "tiff_lzw"}),
    ("PPM", "RGB", "ppm", {}),
    ("PPM", "L", "pgm", {}),
]
NAMES = ["{}.{}", "{}.{}", "v1.{}.{}", "deep/er/{}.{}", "a\u00a0b {}.{}", "é{}.{}", "{}.{}"]
CAPTIONS = [
    (b"a plain caption %d", "a plain caption %d"),
    (b"\xef\xbb\xbfa marked caption %d", "a marked caption %d"),
    (b"  several \t blanks\r\n\r\nand lines %d\r\n", "several blanks and lines %d"),
    ("größer 漢字 %d".encode(), "größer 漢字 %d"),
    ("no-break\u00a0space\u2028%d".encode(), "no-break space %d"),
    ("a mark \ufeffwithin %d".encode(), "a mark within %d"),
]


@dataclass(frozen=True)
class Case:
    """One picture with its names and caption; upright: what a viewer shows, to within `apart` of 255."""

    image: str
    text: str
    content: bytes
    words: bytes
    caption: str
    upright: np.ndarray
    label: str


def encode(
    image: Image.Image, form: str, profile: bytes | None, turn: int, by: str, **options: object
) -> bytes:
    """An image's file, with a profile and an orientation in EXIF or XMP."""
    if profile is not None and form in TURNED:
        options["icc_profile"] = profile
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{turn}"/></x:xmpmeta>'.encode()
    if by == "exif" and turn > 1:
        exif = Image.Exif()
        exif[0x0112] = turn
        options["exif"] = exif
    elif by == "xmp" and form == "PNG":
        options["pnginfo"] = info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif by == "xmp" and form == "TIFF":
        options["tiffinfo"] = directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory[700] = xmp
    elif by == "xmp":
        options["xmp"] = xmp
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def shown(content: bytes) -> np.ndarray:
    """The picture as Pillow and LittleCMS show it, on white."""
    image = Image.open(io.BytesIO(content))
    image.load()
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode == "I;16":
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if profile not in (None, PROFILES["broken"]) and image.mode != "CMYK":
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "L" if profile.profile.xcolor_space.strip() == "GRAY" else "RGB"
        image = ImageCms.profileToProfile(
            image.convert(mode), profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image)


def kinds() -> Iterator[tuple[str, str, str, dict[str, object], str, int, str]]:
    """Format, mode, suffix, options, profile, orientation, and where that stands."""
    for form, suffix in TURNED.items():
        options = {"quality": 90} if form in ("JPEG", "WEBP", "AVIF") else {}
        for name in PROFILES:
            for turn in range(1, 9):
                yield form, "RGB", suffix, options, name, turn, "exif"
            for turn in range(2, 9):
                yield form, "RGB", suffix, options, name, turn, "xmp"
    for form, mode, suffix, options in MODES:
        for name in PROFILES if form in TURNED else ("none",):
            yield form, mode, suffix, options, name, 1, "exif"
        if form in TURNED:
            yield form, mode, suffix, options, "none", 6, "exif"


def cases() -> Iterator[Case]:
    draw = np.random.default_rng(0)
    for number, (form, mode, suffix, options, name, turn, by) in enumerate(kinds()):
        pixels = draw.integers(0, 256, (3, 3, 4)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        profile = PROFILES[name]
        if mode == "I;16":
            wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
            image = Image.fromarray(wide)
        else:
            image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
        if profile is not None and mode in ("L", "LA", "I;16", "1") and name == "p3":
            profile = grey(1.8)
        content = encode(image, form, profile, turn, by, **options)
        path = NAMES[number % len(NAMES)].format(f"{number:04d}", "jpg").rpartition(".")[0]
        words, caption = CAPTIONS[number % len(CAPTIONS)]
        image_suffix = suffix.upper() if number % 5 == 0 else suffix
        text = ("txt", "TXT", "caption", "txt")[number % 4]
        stem = unicodedata.normalize("NFD", path) if number % 3 == 0 else path
        yield Case(
            f"{path}.{image_suffix}",
            f"{stem}.{text}",
            content,
            words.replace(b"%d", b"%d" % number),
            caption % number,
            shown(content),
            f"{form} {mode} {name} {by}={turn}",
        )


@pytest.fixture(scope="module")
def through_both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Case], dict, dict]:
    """The cases, and caption → pixels of what a build of a folder gives and of what shards give."""
    root = tmp_path_factory.mktemp("kinds")
    found = list(cases())
    shards = root / "shards"
    shards.mkdir()
    with tarfile.open(shards / "train-000000.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for case in found:
            for name, content in ((case.image, case.content), (case.text, case.words)):
                path = root / "in" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    options = BuildOptions(
        path=root / "in", pictures=Preparation(image_size=SIZE, near_duplicates="keep", val=0.0, test=0.0)
    )
    build("folder", root / "out", options=options)
    return found, seen(root / "out"), seen(shards)


def seen(folder: Path) -> dict[str, np.ndarray]:
    held = ShardSet(folder, image_size=SIZE).split_set("train")
    pixels = ((held.images(range(len(held))) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return dict(zip(held.captions(range(len(held))), pixels, strict=True))


def test_building_and_reading_give_the_same_pixels_and_captions(through_both):
    found, built, read = through_both
    assert len(found) >= 500
    assert len({case.label for case in found}) >= 500
    assert set(built) == set(read) == {case.caption for case in found}
    apart = [case.label for case in found if not np.array_equal(built[case.caption], read[case.caption])]
    assert apart == []


def test_both_are_what_pillow_and_littlecms_show(through_both):
    found, built, _ = through_both
    far = {
        case.label: int(apart.max())
        for case in found
        if (apart := np.abs(built[case.caption].astype(int) - case.upright)).max() > 3
    }
    assert far == {}
