"""Spectral normalization: a layer's weight over its largest singular value (Miyato et al. 2018).

W̄ = W/σ̂(W),    σ̂ = uᵀ W v,    v ← Wᵀu/‖·‖,  u ← W v/‖·‖  from a fixed start, `ROUNDS` times, without gradient

The published form keeps u from one forward pass to the next, which makes a net depend on how often it was
called: micro-batches would change it. Here σ̂ is a function of W alone, so nothing has to be stored, and K
micro-batches or two ranks are one batch. σ̂ ≤ ‖W‖₂, so a layer's slope may exceed 1 by what is missing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

ROUNDS = 8


class Spectral(nn.Module):
    """W → W/σ̂(W), for matrices and for kernels [out, ...], which count as matrices of `out` rows."""

    def forward(self, weight: Tensor) -> Tensor:
        """The normalized weight, of the same shape; zeros stay zeros."""
        matrix = weight.flatten(1)
        with torch.no_grad():
            u = F.normalize(torch.cos(torch.arange(len(matrix), device=matrix.device).to(matrix)), dim=0)
            for _ in range(ROUNDS):
                v = F.normalize(matrix.T @ u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
        sigma = u @ (matrix @ v)
        return weight / torch.where(sigma > 0, sigma, torch.ones_like(sigma))


def normalize(net: nn.Module) -> None:
    """Normalize all linear and convolutional layers of a net, but for those that begin at zero."""
    for layer in list(net.modules()):
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if type(layer) in (nn.Linear, nn.Conv2d) and weight is not None and bool(weight.any()):
            parametrize.register_parametrization(layer, "weight", Spectral())
