"""Codecs: between images and what the process diffuses."""

from torch import Tensor, nn


class Identity(nn.Module):
    """Diffuse the pixels themselves: encode and decode return their input, [B,C,H,W] in [-1,1]."""

    def encode(self, x: Tensor) -> Tensor:
        """Images → latents."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        """Latents → images."""
        return x
