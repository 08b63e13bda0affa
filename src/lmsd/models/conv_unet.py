"""A convolutional U-Net of our own: few kernels, no memory traffic without need, made for short runs on CPUs.

    stem     pixel_unshuffle(p), 3x3 convolution
    down     blocks, at the end of each level a skip and a 2x2 convolution of stride 2
    middle   a block, attention, a block
    up       nearest upsampling; 1x1 convolution of [x, skip]; blocks
    head     norm, SiLU, 3x3 convolution (0 at the start), pixel_shuffle(p)

    block      x + W₂ SiLU(FiLM(norm(W₁ SiLU(norm(x)))))          FiLM from c = time + text + z (`nets.embed`)
    attention  x + W softmax(q̂ k̂ᵀ) v, q̂ and k̂ of unit RMS a head with a learned gain (Dehghani et al. 2023)

Skips are mixed by a 1x1 convolution before the blocks instead of widening their first 3x3 one, so the way up
costs what the way down does.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmsd.errors import Count, UserError
from lmsd.models.backbones import Backbone, check_sides, pooled_of, unseen
from lmsd.nets.embed import Context, modulate
from lmsd.types import Cond, Sizes


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(16, width), width)


class Block(nn.Module):
    """A residual block of two 3x3 convolutions; the second is 0 at the start."""

    def __init__(self, width: int, context_dim: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.inner = _norm(width)
        self.film = nn.Linear(context_dim, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """X [B,C,H,W], context [B,D] → like x."""
        scale, shift = self.film(context)[:, :, None, None].chunk(2, dim=1)
        h = self.inner(self.first(F.silu(self.norm(x))))
        return x + self.second(F.silu(modulate(h, scale, shift)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over the pixels with normalized queries and keys; 0 at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.gain = nn.Parameter(torch.zeros(heads, 1, 1))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """X [B,C,H,W] → like x."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        width = q.shape[-1]
        q, k = (F.rms_norm(part, (width,)) for part in (q, k))
        # Plain products: for some hundred tokens the fused kernel's backward pass is slower on CPUs.
        weights = (q * (self.gain.exp() / math.sqrt(width)).to(q.dtype) @ k.transpose(2, 3)).softmax(dim=3)
        out = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return x + self.out(out).transpose(1, 2).unflatten(2, x.shape[2:])  # type: ignore[no-any-return]


class ConvUNet(Backbone):
    """A U-Net of residual convolutions with one attention layer in its middle; pooled text, z.

    widths: channels a level; blocks: residual blocks of each level, on the way down and again on the way up;
    heads: of the attention; patch: side of the patches that pixels are folded into; context: width of what
    modulates the blocks.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        widths: Sequence[Count] = (64, 128),
        blocks: Sequence[Count] = (1, 2),
        heads: Count = 4,
        patch: Count = 2,
        context: Count = 256,
    ) -> None:
        if len(widths) != len(blocks):
            raise UserError(f"net: widths names {len(widths)} levels, blocks {len(blocks)}; make them equal")
        check_sides(sizes.image_size, patch, len(widths))
        if widths[-1] % heads:
            raise UserError(f"net: the last width, {widths[-1]}, does not divide by {heads} heads")
        super().__init__(replace(sizes, token_dim=0), ())
        self.patch = patch
        self.gradient_checkpointing = False
        self.context = Context(context, cond_dim=self.pooled_dim, z_dim=self.z_dim)
        self.stem = nn.Conv2d((self.channels + self.image_dim) * patch**2, widths[0], 3, padding=1)
        unseen(self.stem, self.channels * patch**2)
        levels = list(zip(widths, blocks, strict=True))
        self.down = nn.ModuleList(_level(width, count, context) for width, count in levels[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.before = _level(widths[-1], blocks[-1], context)
        self.attention = Attention(widths[-1], heads)
        self.after = _level(widths[-1], blocks[-1], context)
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.mix = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:-1])
        self.up = nn.ModuleList(_level(width, count, context) for width, count in levels[:-1])
        self.norm = _norm(widths[0])
        self.head = nn.Conv2d(widths[0], self.channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.taps = (*(f"down.{i}.{n - 1}" for i, n in enumerate(blocks[:-1])), f"after.{blocks[-1] - 1}")

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the U-Net predicts."""
        context = F.silu(self.context(time, pooled_of(self.pooled_dim, cond), z))
        h = self.stem(F.pixel_unshuffle(self.beside(x, cond), self.patch))
        skips = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            h = self._through(level, h, context)
            skips.append(h)
            h = shrink(h)
        h = self._through(self.before, h, context)
        h = self._through(self.after, self.attention(h), context)
        for level, grow, mix in reversed(list(zip(self.up, self.grow, self.mix, strict=True))):
            h = F.interpolate(grow(h), scale_factor=2.0, mode="nearest")
            h = self._through(level, mix(torch.cat([h, skips.pop()], dim=1)), context)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.patch)

    def _through(self, level: nn.Module, h: Tensor, context: Tensor) -> Tensor:
        for block in level:  # type: ignore[attr-defined]
            h = checkpoint(block, h, context, use_reentrant=False) if self._saves() else block(h, context)
        return h

    def _saves(self) -> bool:
        return self.gradient_checkpointing and torch.is_grad_enabled()

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks."""
        self.gradient_checkpointing = True


def _level(width: int, count: int, context: int) -> nn.ModuleList:
    return nn.ModuleList(Block(width, context) for _ in range(count))
