"""Codecs: between images and what the process diffuses.

    z = (E(x) − shift) · scale        x [B,C,H,W] in [-1,1], z [B,C',H/f,W/f]
    x = D(z/scale + shift)            E, D = identity for pixels; f: the codec's factor

A codec is a part of its generator and never learns there. `bound` is a bound on every |z| that images have:
1.0 for pixels, None where none is known, as for the latents of an autoencoder.
"""

from typing import TypeAlias

from torch import Tensor, nn

Shape: TypeAlias = tuple[int, int, int]
"""(C, H, W) of one sample."""


def bounded(x: Tensor, bound: float | None) -> Tensor:
    """X within ±bound, None: as it is.

    The value is clamped, the gradient as if it were not: else what lies beyond the range never comes back.
    """
    if bound is None:
        return x
    inside = x.clamp(-bound, bound)
    return x + (inside - x).detach() if x.requires_grad else inside


class Codec(nn.Module):
    """Base: encode, decode and the shapes on both sides."""

    bound: float | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [-1,1] → what is diffused."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """What is diffused → images [B,C,H,W], not clamped."""
        raise NotImplementedError

    def shape_of(self, image: Shape) -> Shape:
        """Shape of what is diffused for images of a shape. Raises UserError where they do not fit."""
        raise NotImplementedError

    def image_shape_of(self, shape: Shape) -> Shape:
        """The reverse of `shape_of`."""
        raise NotImplementedError


class Identity(Codec):
    """Diffuse the pixels themselves."""

    bound = 1.0

    def encode(self, x: Tensor) -> Tensor:
        """The images."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """The images."""
        return z

    def shape_of(self, image: Shape) -> Shape:
        """The images' own."""
        return image

    def image_shape_of(self, shape: Shape) -> Shape:
        """The same."""
        return shape
