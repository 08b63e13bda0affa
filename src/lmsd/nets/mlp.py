"""The article's kind of net: a residual MLP on the pixels of a tiny image, or on any vector.

    h₀ = W_in x
    h_{k+1} = h_k + g_k(c) ⊙ W₂ SiLU(W₁ [(1 + a_k(c)) ⊙ LN(h_k) + b_k(c)])        adaLN, Peebles and Xie 2023
    y = W_out [(1 + a(c)) ⊙ LN(h_K) + b(c)]

c is time, pooled condition and z in one vector. W_out and the modulation start at zero and g at one: at first
the output is 0 and the blocks are plain pre-norm residual blocks.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lmsd.nets.embed import Context, modulate


class ModulatedBlock(nn.Module):
    """h + g(c) ⊙ MLP((1 + a(c)) ⊙ LN(h) + b(c)), [B,width] → [B,width]."""

    def __init__(self, width: int, hidden: int, context: int) -> None:
        super().__init__()
        self.width = width
        self.modulation = nn.Linear(context, 3 * width)
        self.inside = nn.Linear(width, hidden)
        self.outside = nn.Linear(hidden, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        """Add the block's change to h; `context` [B,context] has already been activated."""
        scale, shift, gate = self.modulation(context).chunk(3, dim=1)
        inner = modulate(F.layer_norm(h, (self.width,)), scale, shift)
        change = self.outside(F.silu(self.inside(inner)))
        out: Tensor = h + change + gate * change
        return out


class ResidualMLP(nn.Module):
    """A denoiser for shape (C,H,W): (x [B,C,H,W], time [B], cond [B,cond_dim], z [B,z_dim]) → [B,C,H,W].

    width: of the residual stream; depth: blocks of two layers; hidden: inner width over width;
    time_dim: width of the modulating vector; image_dim: channels that x has beyond C, whose weights begin
    at 0.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 384,
        *,
        depth: int = 4,
        hidden: float = 1.0,
        time_dim: int = 128,
        cond_dim: int = 0,
        z_dim: int = 0,
        image_dim: int = 0,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.width = width
        self.gradient_checkpointing = False
        self.context = Context(time_dim, cond_dim=cond_dim, z_dim=z_dim)
        self.inside = nn.Linear(math.prod(shape) + image_dim * math.prod(shape[1:]), width)
        nn.init.zeros_(self.inside.weight[:, math.prod(shape) :])
        inner = round(hidden * width)
        self.blocks = nn.ModuleList(ModulatedBlock(width, inner, time_dim) for _ in range(depth))
        self.modulation = nn.Linear(time_dim, 2 * width)
        self.outside = nn.Linear(width, math.prod(shape))
        for layer in (self.modulation, self.outside):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Predict what the generator asks for."""
        context = F.silu(self.context(time, cond, z))
        h = self.inside(x.flatten(1))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, context, use_reentrant=False)
            else:
                h = block(h, context)
        scale, shift = self.modulation(context).chunk(2, dim=1)
        made: Tensor = self.outside(modulate(F.layer_norm(h, (self.width,)), scale, shift))
        return made.view(x.shape[0], *self.shape)
