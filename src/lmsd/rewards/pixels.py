"""Rewards of the pixels alone: JPEG size and sharpness.

compressibility   −bytes/1000, incompressibility +bytes/1000        Black et al. 2024 (DDPO), section 5
sharpness         log mean_p (Δx)²,  Δ the four-neighbor Laplacian  differentiable
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.rewards.base import NOBODY, Reward
from lmsd.types import Batch, Players, levels


class JPEGSize(Reward):
    """± the size of an image as JPEG, in thousands of bytes; images of one or three channels.

    sign: −1 rewards what compresses well, +1 what does not; quality: of the JPEG, 1 to 100. Raises UserError
    for other values.
    """

    @explained
    def __init__(self, sign: Literal[-1, 1] = -1, *, quality: int = 95) -> None:
        if sign not in (-1, 1) or not 1 <= quality <= 100:
            raise UserError(f"jpeg reward: sign={sign} must be -1 or 1 and quality={quality} from 1 to 100")
        self.sign, self.quality = sign, quality

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """± kilobytes [B]."""
        import simplejpeg

        if images.shape[1] not in (1, 3):
            raise UserError(f"jpeg reward: JPEG has 1 or 3 channels, not {images.shape[1]}")
        color = {"colorspace": "RGB", "colorsubsampling": "444"}
        options = {"quality": self.quality, **(color if images.shape[1] == 3 else {"colorspace": "GRAY"})}
        sizes = [
            len(simplejpeg.encode_jpeg(np.ascontiguousarray(x), **options))
            for x in levels(images).permute(0, 2, 3, 1).cpu().numpy()
        ]
        return self.sign * torch.tensor(sizes, dtype=torch.float32) / 1000


class Sharpness(Reward):
    """log of the mean squared Laplacian: higher for more detail (and for more noise)."""

    differentiable = True

    @explained
    def __call__(self, images: Tensor, batch: Batch, players: Players = NOBODY) -> Tensor:
        """[B], about −10 (flat) to 3 (a checkerboard of ±1 is log 64)."""
        channels = images.shape[1]
        kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        found = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
        return (found.square().flatten(1).mean(1) + 1e-4).log()
