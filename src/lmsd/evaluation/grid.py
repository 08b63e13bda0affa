"""Sample grids as pictures: images enlarged to a size that can be seen, each with its caption below it."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.files import replacing
from lmsd.types import levels

_GAP = 8
_FONT_SIZE = 12
_LINES = 3
_PAPER, _INK = (255, 255, 255), (40, 40, 44)


@explained
def to_picture(image: Tensor, *, tile: int = 96) -> Image.Image:
    """One image [C,H,W] in [-1,1] (C = 1 or 3) as RGB, enlarged by a whole factor to at least `tile` pixels.

    Every pixel becomes a square, nothing is smoothed; images wider than `tile` keep their size.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"a picture is [1,H,W] or [3,H,W], not {list(image.shape)}")
    pixels = levels(image.cpu()).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    picture = Image.fromarray(pixels, mode="RGB")
    factor = max(1, math.ceil(tile / picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def picture_uri(picture: Image.Image) -> str:
    """A picture as the address of itself, for a page that is one file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


@explained
def sample_grid(
    images: Sequence[Tensor], captions: Sequence[str], *, columns: int | None = None, tile: int = 96
) -> Image.Image:
    """A grid of images, row by row, captions wrapped to at most three lines; columns: default near 3:2."""
    if not images or len(images) != len(captions):
        raise UserError(f"a grid of {len(images)} images has {len(captions)} captions: give each image one")
    pictures = [to_picture(image, tile=tile) for image in images]
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    across = columns or min(len(pictures), max(1, round(math.sqrt(1.5 * len(pictures)))))
    font = ImageFont.load_default(size=_FONT_SIZE)
    texts = [_wrapped(caption, font, width) for caption in captions]
    line = _FONT_SIZE + 3
    text_height = line * max(len(text) for text in texts) + _GAP
    cell = (width + _GAP, height + 2 + text_height)
    down = math.ceil(len(pictures) / across)
    sheet = Image.new("RGB", (across * cell[0] + _GAP, down * cell[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, top = _GAP + place % across * cell[0], _GAP + place // across * cell[1]
        sheet.paste(picture, (left, top))
        for number, words in enumerate(text):
            draw.text((left, top + height + 2 + number * line), words, fill=_INK, font=font)
    return sheet


@explained
def save_grid(
    images: Sequence[Tensor],
    captions: Sequence[str],
    path: Path,
    *,
    columns: int | None = None,
    tile: int = 96,
) -> Path:
    """Write `sample_grid` as PNG, whole or not at all; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        sample_grid(images, captions, columns=columns, tile=tile).save(partial, format="PNG", optimize=True)
    return path


def _wrapped(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines no wider than `width` pixels, the third cut with an ellipsis where there would be a fourth."""
    lines: list[str] = []
    for word in caption.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:_LINES]
    if len(lines) > _LINES:
        kept[-1] += " …"
    return [_shortened(text, font, width) for text in kept]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    body = text.removesuffix(" …")
    while body and font.getlength(body + "…") > width:
        body = body[:-1]
    return body.rstrip() + "…"


@explained
def save_images(images: Tensor, rows: Sequence[int], folder: Path) -> None:
    """One PNG for each image, called after its row in the split."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, row in zip(levels(images).permute(0, 2, 3, 1).numpy(), rows, strict=True):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(folder / f"{row:06d}.png")
