"""A gradient of one size whatever its loss, so that a sum of two terms keeps its proportions.

    g_i = ∂ℓ_i/∂x_i,    m = average over updates of E ‖g_i‖²,    g_i ← g_i/√(m D)        Lin et al. 2025 (AFM)

A discriminator's slope grows and shrinks by orders of magnitude during a run, and with it the adversary's
share of a loss that also holds an anchor of fixed size. Divided by its own average, it has length 1/√D for x
of D numbers: that of the gradient of ½‖x − y‖²/D where every number is off by one.

m is that of the updates before, so that a sample's gradient depends on no other sample of its batch, and K
micro-batches on any number of ranks are one batch. In the first update gradients are taken as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.ranks import gather


class Balance:
    """See the module. decay: of the average over updates, in [0, 1). Raises UserError for another."""

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(
                f"anchor: normalize={decay} is the decay of an average: from 0 to below 1, or null"
            )
        self.decay = decay
        self.square: Tensor | None = None
        self.size = 1
        self._sums: list[Tensor] = []

    def through(self, loss: Tensor, x: Tensor) -> Tensor:
        """The losses [B] of x [B, ...]: the same values, with a normalized gradient through x alone."""
        (slope,) = torch.autograd.grad(loss.sum(), x)
        self.size = x[0].numel()
        squares = slope.flatten(1).square().sum(1)
        self._sums.append(torch.stack([squares.sum(), torch.full_like(squares.sum(), len(x))]))
        if self.square is not None:
            least = torch.finfo(slope.dtype).tiny
            slope = slope * (self.square.to(slope) * self.size).clamp(min=least).rsqrt()
        pulled = (slope * x).flatten(1).sum(1)
        return loss.detach() + (pulled - pulled.detach())

    def settle(self) -> None:
        """Take in the mean over all samples of the update, on all ranks. A second call does nothing."""
        if not self._sums:
            return
        total, count = gather(torch.stack(self._sums).sum(0)[None]).sum(0)
        self._sums = []
        before = total.new_tensor(1.0 / self.size) if self.square is None else self.square.to(total)
        mean = total / count if self.square is None else before.lerp(total / count, 1 - self.decay)
        self.square = torch.where(mean.isfinite(), mean, before)  # an update that is skipped leaves no trace

    def state_dict(self) -> Mapping[str, Any]:
        """The average, float or None."""
        return {"square": self.square}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.square, self._sums = state["square"], []
