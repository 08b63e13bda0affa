"""A small transformer of our own: text, noise and patches in one sequence, with long skips.

    sequence   [registers; text; z; patches + position]
    patches    pixel_unshuffle(p), 3x3 convolution, SiLU, 3x3 convolution          Xiao et al. 2021
    block      h ← h + g₁ attention(m₁(h))                                         Peebles and Xie 2023
               h ← h + g₂ W₂ (SiLU(a) ⊙ b),  [a, b] = W₁ m₂(h)                     Shazeer 2020
               m(h) = (1 + scale) rms(h) + shift; scale, shift and g are linear in
               c = time + pooled text, and 0 at the start
    attention  softmax(q̂ k̂ᵀ) v, q̂ and k̂ of unit RMS a head with a learned gain     Dehghani et al. 2023
    skips      block i of the first half feeds block n − 1 − i: h ← h + A skip,
               A = 0 at the start                                                  after Bao et al. 2023
    head       m(h), linear layer (0 at the start), pixel_shuffle(p)

Padding of the text takes no part in the attention. Registers are learned tokens that stand for nothing:
attention puts there what it would otherwise put into flat patches (Darcet et al. 2024).
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmsd.errors import Count, Number, UserError
from lmsd.models.backbones import Backbone, check_sides, pooled_of
from lmsd.nets.embed import Context, TokenContext, modulate
from lmsd.types import Cond, Sizes


def _normalized(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) rms(h) + shift for h [B,S,D], scale and shift [B,D]."""
    return modulate(F.rms_norm(h, h.shape[-1:]), scale[:, None], shift[:, None])


class Attention(nn.Module):
    """Self-attention over a sequence with normalized queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.gain = nn.Parameter(torch.zeros(heads, 1, 1))
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """H [B,S,D], mask [B,S] (True: a token that counts) → like h."""
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        width = q.shape[-1]
        q, k = (F.rms_norm(part, (width,)) for part in (q, k))
        # Plain products have the second derivatives that a penalty on a discriminator needs.
        logits = q * (self.gain.exp() / math.sqrt(width)).to(q.dtype) @ k.transpose(2, 3)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
        out = (logits.softmax(dim=3).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return self.out(out)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a gated MLP, both modulated and both 0 at the start."""

    def __init__(self, width: int, *, heads: int, hidden: int, context: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(context, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.attention = Attention(width, heads)
        self.gate = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, h: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """H [B,S,D], context [B,C], mask [B,S] → like h."""
        *first, gate, scale, shift, last = self.modulation(context).chunk(6, dim=1)
        h = h + gate[:, None] * self.attention(_normalized(h, *first), mask)
        inner, open_ = self.gate(_normalized(h, scale, shift)).chunk(2, dim=2)
        return h + last[:, None] * self.out(F.silu(inner) * open_)  # type: ignore[no-any-return]


class UViT(Backbone):
    """A transformer over patches, text and z, with long skips between its halves.

    width: of the sequence; layers: blocks; heads: of the attention; patch: side of a patch; hidden: width of
    the MLPs over that of the sequence; registers: learned tokens that stand for nothing; z_tokens: tokens
    that z is spread over; context: width of what modulates the blocks.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        width: Count = 192,
        layers: Count = 6,
        heads: Count = 4,
        patch: Count = 2,
        hidden: Annotated[float, Number(0.01)] = 2.0,
        registers: Annotated[int, Number(0)] = 4,
        z_tokens: Count = 2,
        context: Count = 256,
    ) -> None:
        check_sides(sizes.image_size, patch, 1)
        if width % heads:
            raise UserError(f"net: the width, {width}, does not divide by {heads} heads")
        super().__init__(sizes, ())
        self.taps = tuple(f"blocks.{index}" for index in range(layers))
        self.patch, self.gradient_checkpointing = patch, False
        self.words = TokenContext(self.token_dim, z_dim=self.z_dim, count=z_tokens, dim=width)
        self.enter = nn.Linear(self.words.dim, width)
        self.context = Context(context, cond_dim=self.pooled_dim)
        self.stem = nn.Sequential(
            nn.Conv2d(self.channels * patch**2, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.position = nn.Parameter(0.02 * torch.randn((self.image_size // patch) ** 2, width))
        self.registers = nn.Parameter(0.02 * torch.randn(registers, width))
        inner = max(1, round(width * hidden))
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, hidden=inner, context=context) for _ in range(layers)
        )
        self.mix = nn.ModuleList(nn.Linear(width, width) for _ in range(layers // 2))
        self.modulation = nn.Linear(context, 2 * width)
        self.head = nn.Linear(width, self.channels * patch**2)
        for layer in (self.modulation, self.head, *self.mix):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Cond, z: Tensor | None = None) -> Tensor:
        """What the transformer predicts."""
        context = F.silu(self.context(time, pooled_of(self.pooled_dim, cond)))
        images = self.stem(F.pixel_unshuffle(x, self.patch))
        side, count = images.shape[2:], len(self.position)
        h, mask = self._sequence(images.flatten(2).transpose(1, 2), cond, z)
        skips = []
        for index, block in enumerate(self.blocks):
            if index < len(self.mix):
                h = self._through(block, h, context, mask)
                skips.append(h)
                continue
            if index >= len(self.blocks) - len(self.mix):
                h = h + self.mix[index - len(self.blocks)](skips.pop())
            h = self._through(block, h, context, mask)
        out = self.head(_normalized(h[:, -count:], *self.modulation(context).chunk(2, dim=1)))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, side), self.patch)

    def _sequence(self, images: Tensor, cond: Cond, z: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """All tokens [B,S,D], the patches last, and the mask [B,S] of those that count."""
        words, mask = self.words(cond, z, len(images))
        words = self.enter(words.to(self.enter.weight.dtype))
        registers = self.registers.expand(len(images), -1, -1)
        if mask is not None:
            mask = F.pad(mask, (len(self.registers), len(self.position)), value=True)
        return torch.cat([registers, words, images + self.position], dim=1), mask  # float32 in autocast, too

    def _through(self, block: nn.Module, h: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, context, mask, use_reentrant=False)  # type: ignore[no-any-return]
        return block(h, context, mask)  # type: ignore[no-any-return]

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the blocks."""
        self.gradient_checkpointing = True
