"""From pixels to what a net sees: fit to a square; then, for the batch, a flip and a change of color.

    fit      center crop to a square, antialiased bicubic resize to S x S (uint8)
    scale    x = u / 127.5 − 1, float32 [B,C,S,S] in [-1,1]
    flip     mirrored where u(seed, position, "data.flip") < ½
    color    brightness, contrast and saturation by factors 1 + c·(2u − 1), then clipped to [-1,1]

Random numbers come from `lmsd.rng.Rng`, keyed by the sample's position in the endless stream: the same for
every rank, worker and micro-batch, and new in every epoch.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lmsd.data.decode import Pixels
from lmsd.rng import Rng

RECIPE = "fit-bicubic-1"
"""Identifies what `fit` does; part of every hash of preprocessed data."""

_LEVEL, _ONE = np.float32(1 / 127.5), np.float32(1)
_CACHED = 48 << 10  # bytes
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def fit(pixels: Pixels, rows: int, columns: int | None = None) -> Pixels:
    """Center crop and antialiased bicubic resize: uint8 [H,W,C] → uint8 [rows,columns,C], or a square."""
    height, width, channels = pixels.shape
    columns = columns or rows
    if (height, width) == (rows, columns):
        return pixels
    tall, wide = min(height, width * rows / columns), min(width, height * columns / rows)
    left, top = (width - wide) / 2, (height - tall) / 2
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    box = (left, top, left + wide, top + tall)
    small = image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)
    return np.asarray(small).reshape(rows, columns, channels)


def scale(pixels: Pixels) -> Tensor:
    """uint8 [B,H,W,C] → float32 [B,C,H,W] in [-1,1]."""
    count, height, width, channels = pixels.shape
    x = np.empty((count, channels, height, width), np.float32)
    several = max(1, _CACHED // (height * width * channels))
    for start in range(0, count, several):  # so that a few images stay in the processor's cache
        part = x[start : start + several]
        part[...] = pixels[start : start + several].transpose(0, 3, 1, 2)
        part *= _LEVEL
        part -= _ONE
    return torch.from_numpy(x)


def flips(rng: Rng) -> Tensor:
    """Which images are mirrored, bool [B]: half of them, chosen by position."""
    return rng.uniform((), "data.flip") < 0.5


def flip(x: Tensor, rng: Rng) -> Tensor:
    """Mirror half of the images [B,C,H,W] horizontally, chosen by position."""
    mirrored = flips(rng)
    out: Tensor = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return out


def jitter(x: Tensor, rng: Rng, strength: float) -> Tensor:
    """Change brightness, contrast and (for RGB) saturation of images [B,C,H,W] by up to ±strength each."""
    factor = 1 + strength * (2 * rng.uniform((3,), "data.color") - 1)
    brightness, contrast, saturation = factor.T[:, :, None, None, None]
    y = (x + 1) * brightness  # in [0,2]: black stays black
    gray = (y * y.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == 3 else y
    y = gray + (y - gray) * saturation
    mean = gray.mean((1, 2, 3), keepdim=True)
    changed: Tensor = mean + (y - mean) * contrast
    return changed.sub_(1).clamp_(-1, 1)
