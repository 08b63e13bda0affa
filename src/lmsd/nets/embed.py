"""How a net takes in time, text and noise.

    γ(τ) = [cos(ω_i τ), sin(ω_i τ)],   ω_i = P^(−i/h),   i = 0..h−1,  h = dim/2        Vaswani et al. 2017

τ is the schedule's model time, from about 0 to 1000; P = 10,000 is the longest wavelength over 2π. A net's
embedding of time is an MLP on γ. Text and latent noise are tokens for cross-attention.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.types import Cond


def sinusoidal(time: Tensor, dim: int, *, period: float = 10_000.0) -> Tensor:
    """γ(time): [B] → [B,dim] in the dtype of `time` (at least float32), values in [-1, 1]; dim is even."""
    half = dim // 2
    time = time.to(torch.promote_types(time.dtype, torch.float32))
    index = torch.arange(half, device=time.device, dtype=time.dtype)
    angle = time[:, None] * torch.exp(index * (-math.log(period) / half))
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """MLP(γ(time)), [B] → [B,dim]; frequencies: width of γ, an even number (else UserError)."""

    def __init__(self, dim: int, *, frequencies: int = 64) -> None:
        super().__init__()
        if frequencies % 2:
            raise UserError(f"time embedding: {frequencies} frequencies are odd; give an even number")
        self.frequencies = frequencies
        self.first = nn.Linear(frequencies, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, time: Tensor) -> Tensor:
        """Embed `time` [B]."""
        waves = sinusoidal(time, self.frequencies).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(waves)))  # type: ignore[no-any-return]


class Context(nn.Module):
    """c = TimeEmbedding(time) + A·cond + B·z, [B,dim]: everything that modulates a net, in one vector.

    cond_dim, z_dim: widths of the pooled condition and of the latent noise; 0 leaves the term out. None
    counts as zeros.
    """

    def __init__(self, dim: int, *, cond_dim: int = 0, z_dim: int = 0) -> None:
        super().__init__()
        self.time = TimeEmbedding(dim)
        self.cond = nn.Linear(cond_dim, dim) if cond_dim else None
        self.z = nn.Linear(z_dim, dim) if z_dim else None

    def forward(self, time: Tensor, cond: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Sum the terms that there are."""
        context: Tensor = self.time(time)
        if self.cond is not None and cond is not None:
            context = context + self.cond(cond.to(self.cond.weight.dtype))
        if self.z is not None and z is not None:
            context = context + self.z(z.to(self.z.weight.dtype))
        return context


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """FiLM (Perez et al. 2018): (1 + scale)·h + shift."""
    return torch.addcmul(h + shift, h, scale)


class TokenContext(nn.Module):
    """[text; A z] and its mask, for cross-attention: [B,L+count,dim] and [B,L+count].

    token_dim: width of the text tokens, and so of all; 0 for a net without text, which gets one learned token
    of width `dim` instead. count: tokens that z is spread over.
    """

    def __init__(self, token_dim: int, *, z_dim: int, count: int, dim: int) -> None:
        super().__init__()
        self.dim = token_dim or dim
        self.none = None if token_dim else nn.Parameter(torch.randn(1, self.dim))
        self.z = nn.Linear(z_dim, count * self.dim) if z_dim else None

    def forward(self, cond: Cond, z: Tensor | None, size: int) -> tuple[Tensor, Tensor | None]:
        """Tokens and mask (None: all are real) for `size` samples."""
        if self.none is not None:
            tokens, mask = self.none.expand(size, 1, self.dim), None
        elif cond.tokens is None:
            raise UserError("net: it reads text tokens and got none; use a text conditioner, or token_dim=0")
        else:
            tokens, mask = cond.tokens, cond.mask
        if self.z is not None and z is not None:
            extra = self.z(z.to(self.z.weight.dtype)).unflatten(1, (-1, self.dim))
            tokens = torch.cat([tokens, extra.to(tokens.dtype)], dim=1)
            mask = None if mask is None else F.pad(mask, (0, extra.shape[1]), value=True)
        return tokens, mask
