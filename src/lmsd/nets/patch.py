"""A critic of patches (PatchGAN, Isola et al. 2017): of what an autoencoder makes."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import Count
from lmsd.nets.critics import SLOPE, he


class PatchCritic(nn.Module):
    """A critic of patches: x [B,C,H,W] → logits [B,1,h,w], one for each place of the last map.

    widths: channels of each stage, the side halves between stages; blocks: residual blocks of a stage. It
    knows neither time nor condition.
    """

    def __init__(
        self, shape: tuple[int, int, int], widths: Sequence[Count] = (32, 64, 64), *, blocks: Count = 1
    ) -> None:
        super().__init__()
        pairs = zip([shape[0], *widths[:-1]], widths, strict=True)
        self.stems = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)
        gain = 1.0 / math.sqrt(2.0 * blocks * len(widths))
        self.stages = nn.ModuleList(
            nn.ModuleList(_Block(width, gain) for _ in range(blocks)) for width in widths
        )
        self.outside = nn.Conv2d(widths[-1], 1, 1, bias=False)  # a relativistic loss does not see a bias
        for layer in (*self.stems, self.outside):
            he(layer, 1.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """How real every patch is."""
        h = x
        for index, (stem, stage) in enumerate(zip(self.stems, self.stages, strict=True)):
            h = stem(F.avg_pool2d(h, 2) if index else h)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h)
        return self.outside(F.leaky_relu(h, SLOPE))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, channels: int, gain: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        he(self.first, 1.0)
        he(self.second, gain)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.leaky_relu(self.first(F.leaky_relu(h, SLOPE)), SLOPE))  # type: ignore[no-any-return]
