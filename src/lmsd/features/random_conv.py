"""random-conv: what convolutions with random filters see at several scales; nothing is ever learned.

At each scale (the image, halved, halved again) two layers of random filters, 3×3 each, and over space the
mean and the deviation of every response:

    h₁ = log(|W₁ ∗ x| + ε),  h₂ = |W₂ ∗ h₁|,    f = (mean h, std h) of h₁ and h₂

ε is three of 255 levels: in logarithms a faint pattern on a smooth surface counts as it is seen, and is not
lost in what strong edges add.

W₁ and W₂ have mean 0 in every filter but for one in four of W₁, which sees brightness and color. Random nets
tell textures apart nearly as trained ones do (Ustyuzhaninov et al. 2017), nothing can be tuned on them by
accident, and what they see best is what a classifier overlooks: grids, noise, blur, contrast.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.features.base import Speechless, in_range

SCALES, FILTERS = 3, 8
SMALLEST = 2**SCALES
"""Pixels of a side: the coarsest scale still has a spread."""
_CHUNK = 500
_EPS = 3 / 127.5
_SEED = 20_220


class RandomConv(nn.Module):
    """The filters for images of so many channels (module formula)."""

    first: Tensor
    second: Tensor

    def __init__(self, channels: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_SEED + seed)
        first = torch.randn(SCALES * FILTERS, channels, 3, 3, generator=generator)
        second = torch.randn(SCALES * FILTERS, FILTERS, 3, 3, generator=generator)
        blind = (torch.arange(SCALES * FILTERS) % 4 > 0)[:, None, None, None]
        first = torch.where(blind, first - first.mean(dim=(2, 3), keepdim=True), first)
        second = second - second.mean(dim=(1, 2, 3), keepdim=True)
        for name, filters in (("first", first), ("second", second)):
            self.register_buffer(name, filters / filters.flatten(1).norm(dim=1)[:, None, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Images [n,C,H,W] in [-1,1] → features [n,96]."""
        if min(x.shape[-2:]) < SMALLEST:
            raise UserError(
                f"random convolutions see images of {SMALLEST} pixels or more, not {list(x.shape)}"
            )
        found = []
        for scale, (w1, w2) in enumerate(
            zip(self.first.split(FILTERS), self.second.split(FILTERS), strict=True)
        ):
            small = F.avg_pool2d(x, 2**scale) if scale else x
            h1 = (F.conv2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), w1).abs() + _EPS).log()
            h2 = F.conv2d(F.pad(h1, (1, 1, 1, 1), mode="replicate"), w2).abs()
            for h in (h1, h2):
                found += [h.mean(dim=(2, 3)), h.std(dim=(2, 3))]
        return torch.cat(found, dim=1)


class RandomExtractor(Speechless):
    """Features [n,96] of random convolutions; two of one seed are the same on every machine."""

    kind = "random-conv"
    resize = None
    reference = False
    exclusive = False

    def __init__(self, channels: int, *, seed: int = 0) -> None:
        self.net: nn.Module = RandomConv(channels, seed=seed).eval()
        filters = b"".join(value.numpy().tobytes() for value in self.net.state_dict().values())
        self.sha256 = hashlib.sha256(filters).hexdigest()

    @property
    def name(self) -> str:
        """`random-conv@ab12`."""
        return f"{self.kind}@{self.sha256[:4]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W] (`in_range`) → (features [n,96] on the CPU, logits [n,0])."""
        device = next(self.net.buffers()).device
        features = torch.cat([self.net(part.to(device)).cpu() for part in in_range(images).split(_CHUNK)])
        return features, features[:, :0]
