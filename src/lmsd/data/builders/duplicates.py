"""Near duplicates: copies of one picture that differ in brightness, contrast, size or compression.

The signature of a picture x is its box average to at most 16x16 pixels, less its mean over pixels and
channels, to unit length: u = (x − x̄)/‖x − x̄‖. ⟨u, v⟩ is then the correlation of all pixels of two pictures,
blind to a common gain and offset but not to a shift or a color. Near duplicates have ⟨u, v⟩ ≥ ρ; kin have
⟨u, g v⟩ ≥ ρ' for some g of the eight turns and mirror images of the square. A flat picture has neither.
`lmsd.data.builders.near` finds them.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmsd.data.builders.source import Pixels

SIDE = 16
"""Side of a signature: coarse enough to forget compression, fine enough for 8x8 and 16x16 images."""


def signature(pixels: Pixels) -> NDArray[np.float32]:
    """The signature [S, S, 3], S = min(side, 16), of uint8 pixels [side, side, C]; 0 for a uniform one."""
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if len(rgb) > SIDE:
        rgb = np.asarray(Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BOX))
    centered = rgb.astype(np.float32) - np.float32(rgb.mean())
    length = float(np.linalg.norm(centered))
    return centered / length if length > 1e-3 else np.zeros_like(centered)
