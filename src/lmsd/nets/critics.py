"""Critics: (x, time, vector) → features, by which a discriminator judges.

    h_{k+1} = h_k + W₂ φ(W₁ φ((1 + a_k(c)) ⊙ h_k + b_k(c))),      φ = leaky ReLU, slope 0.2

Without batch statistics, dropout and normalization across samples, a sample's logits are a function of that
sample alone: so finite-difference penalties measure D rather than its noise, and accumulation is exact. The
residual branches start small (as in R3GAN, Huang et al. 2024, which has no normalization either), the
modulation at zero. Every layer has a second derivative, so exact R1 works.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import Count, UserError
from lmsd.nets.embed import Context, modulate

SLOPE = 0.2
"""Of the leaky ReLU."""


def _activate(h: Tensor, smooth: bool) -> Tensor:
    return F.silu(h) if smooth else F.leaky_relu(h, SLOPE)


def he(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """He et al. 2015 times `gain`, bias 0."""
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    with torch.no_grad():
        layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _film(context: int, channels: int) -> nn.Linear:
    layer = nn.Linear(context, 2 * channels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class _LinearBlock(nn.Module):
    def __init__(self, width: int, context: int, gain: float) -> None:
        super().__init__()
        self.film = _film(context, width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        he(self.first, 1.0)
        he(self.second, gain)

    def forward(self, h: Tensor, context: Tensor, smooth: bool) -> Tensor:
        scale, shift = self.film(context).chunk(2, dim=1)
        inner = self.first(_activate(modulate(h, scale, shift), smooth))
        return h + self.second(_activate(inner, smooth))  # type: ignore[no-any-return]


class MLPCritic(nn.Module):
    """Residual MLP critic for shape (C',H,W): x [B,C',H,W], time [B], vec [B,cond_dim]|None → [B,features].

    width: of the residual stream and of the features; depth: blocks of two layers; time_dim: width of the
    modulating vector; cond_dim: width in which times and text are embedded.
    """

    smooth = False
    """Whether φ is SiLU, for a discriminator whose slopes are judged and must not jump."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: Count = 384,
        *,
        depth: Count = 3,
        time_dim: Count = 128,
        cond_dim: int = 0,
    ) -> None:
        super().__init__()
        self.features = width
        self.cond_dim = cond_dim
        self.context = Context(time_dim, cond_dim=cond_dim)
        self.inside = nn.Linear(math.prod(shape), width)
        he(self.inside, 1.0)
        gain = 1.0 / math.sqrt(2.0 * depth)
        self.blocks = nn.ModuleList(_LinearBlock(width, time_dim, gain) for _ in range(depth))

    def forward(self, x: Tensor, time: Tensor, vec: Tensor | None = None) -> Tensor:
        """Features of x given (time, vec)."""
        context = F.silu(self.context(time, vec))
        h = self.inside(x.flatten(1))
        for block in self.blocks:
            h = block(h, context, self.smooth)
        return _activate(h, self.smooth)


class _ConvBlock(nn.Module):
    def __init__(self, channels: int, context: int, gain: float) -> None:
        super().__init__()
        self.film = _film(context, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        he(self.first, 1.0)
        he(self.second, gain)

    def forward(self, h: Tensor, context: Tensor, smooth: bool) -> Tensor:
        scale, shift = self.film(context)[:, :, None, None].chunk(2, dim=1)
        inner = self.first(_activate(modulate(h, scale, shift), smooth))
        return h + self.second(_activate(inner, smooth))  # type: ignore[no-any-return]


class ConvCritic(nn.Module):
    """Residual convolutional critic: x [B,C',H,W], time [B], vec [B,cond_dim]|None → [B,features].

    widths: channels of each stage, the side halves between stages (mean of 2x2); blocks: residual blocks per
    stage; patch: pixel_unshuffle factor before the stem; overlap: halve by the mean of 2x2 and of 4x4
    together, so that what it tells a generator changes smoothly from pixel to pixel and leaves no grid;
    features: width of the judged vector; time_dim: width of the modulating vector; cond_dim: width in which
    times and text are embedded. The last stage is flattened, so positions matter. Raises UserError for sides
    that do not divide.
    """

    smooth = False
    """Whether φ is SiLU, for a discriminator whose slopes are judged and must not jump."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        widths: Sequence[Count] = (64, 128),
        *,
        blocks: Count = 1,
        patch: Count = 1,
        overlap: bool = False,
        features: Count = 256,
        time_dim: Count = 128,
        cond_dim: int = 0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        step = patch * 2 ** (len(widths) - 1)
        if height % step or width % step:
            raise UserError(
                f"critic: {height}x{width} pixels do not divide by patch {patch} times 2^{len(widths) - 1} "
                f"({len(widths)} stages); take a smaller patch or fewer widths"
            )
        self.patch, self.overlap = patch, overlap
        self.features = features
        self.cond_dim = cond_dim
        self.context = Context(time_dim, cond_dim=cond_dim)
        gain = 1.0 / math.sqrt(2.0 * blocks * len(widths))
        inputs = [channels * patch * patch, *widths[:-1]]
        self.stems = nn.ModuleList(
            nn.Conv2d(a, b, 3 if i == 0 else 1, padding="same")
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(_ConvBlock(b, time_dim, gain) for _ in range(blocks)) for b in widths
        )
        self.outside = nn.Linear(widths[-1] * (height // step) * (width // step), features)
        for layer in (*self.stems, self.outside):
            he(layer, 1.0)

    def forward(self, x: Tensor, time: Tensor, vec: Tensor | None = None) -> Tensor:
        """Features of x given (time, vec)."""
        context = F.silu(self.context(time, vec))
        h = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        for index, (stem, stage) in enumerate(zip(self.stems, self.stages, strict=True)):
            h = stem(self._half(h) if index else h)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, context, self.smooth)
        return _activate(self.outside(_activate(h, self.smooth).flatten(1)), self.smooth)

    def _half(self, h: Tensor) -> Tensor:
        """[B,C,H,W] → [B,C,H/2,W/2]; every pixel counts the same, but for the border with overlap."""
        mean = F.avg_pool2d(h, 2)
        if not self.overlap:
            return mean
        return 0.5 * (mean + F.avg_pool2d(h, 4, stride=2, padding=1, count_include_pad=False))
