"""Pictures with the statistics of photographs: smooth random fields, no two alike."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photograph(seed: int, width: int = 48, height: int = 48) -> Image.Image:
    """A random field of 6x6 colors, more of light than of hue as photographs are, smoothly enlarged."""
    rng = np.random.default_rng(seed)
    field = rng.integers(50, 180, (6, 6, 1)) + rng.integers(-20, 20, (6, 6, 3))
    return Image.fromarray(field.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def pixels(seed: int, size: int = 32) -> NDArray[np.uint8]:
    return np.asarray(photograph(seed, size, size))


def captioned(folder: Path, name: str, image: Image.Image, caption: str = "a field of colors") -> Path:
    """Save a picture with its caption beside it."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    path.with_suffix(".txt").write_text(caption)
    return path
