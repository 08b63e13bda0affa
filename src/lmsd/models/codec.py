"""Codecs: maps between images and what the process diffuses.

    z = (E(x) − shift) · scale        x [B,C,H,W] in [-1,1], z [B,C',H/f,W/f]
    x = D(z/scale + shift)            E, D: the identity for pixels; f: the codec's factor

A codec is a part of its generator and never learns there. `bound` bounds every |z| that images can have: 1.0
for pixels, None if no bound is known, as for the latents of an autoencoder.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import Count, UserError

Shape: TypeAlias = tuple[int, int, int]
"""(C, H, W) of one sample."""


def bounded(x: Tensor, bound: float | None) -> Tensor:
    """`x` clamped to ±bound; None: as it is.

    The gradient passes straight through: else what lies beyond the range would never come back.
    """
    if bound is None:
        return x
    inside = x.clamp(-bound, bound)
    return x + (inside - x).detach() if x.requires_grad else inside


class Codec(nn.Module, ABC):
    """Base: encode, decode and the shapes on both sides.

    told: what distinguishes its latents from another codec's, plain Python by name, empty for pixels. It is
    saved with the weights, and weights of another codec are refused: to them the same numbers mean other
    images. checked: a run refuses latents whose mean or deviation is off.
    """

    bound: float | None = None
    checked = False
    told: Mapping[str, Any] = MappingProxyType({})

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_refuse_others)

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] in [-1,1] → what is diffused."""

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """E(x), which `scaled` takes and a cache keeps, and its standard deviation where it is drawn."""
        return self.encode(x), None

    def scaled(self, z: Tensor) -> Tensor:
        """What is diffused, from E(x)."""
        return z

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """What is diffused → images [B,C,H,W], not clamped."""

    @abstractmethod
    def shape_of(self, image: Shape) -> Shape:
        """Shape of what is diffused for images of a shape. Raises UserError if the codec cannot take them."""

    @abstractmethod
    def image_shape_of(self, shape: Shape) -> Shape:
        """Shape of the images that are diffused in a given shape."""


def _refuse_others(codec: Codec, state: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Before weights are loaded: raise UserError if they belong to another codec."""
    theirs: Mapping[str, Any] = state.get(f"{prefix}_extra_state", {})
    for name in [*codec.told, *theirs]:
        one, own = (told.get(name, "none, as of pixels") for told in (theirs, codec.told))
        if one != own:
            raise UserError(
                f"codec: the weights were trained in latents of {name} {one}, and this run's has {own}: give "
                "the same codec"
            )


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
        """The same."""
        return image

    def image_shape_of(self, shape: Shape) -> Shape:
        """The same."""
        return shape


class Latents(Codec):
    """Base of codecs to a grid that is `factor` times smaller."""

    factor: int

    def smaller(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the latents. Raises UserError if those of the image do not divide."""
        if height % self.factor or width % self.factor:
            raise UserError(
                f"codec: {height}x{width} pixels do not divide by its factor, {self.factor}: choose another "
                "data.image_size, or codec"
            )
        return height // self.factor, width // self.factor

    def get_extra_state(self) -> dict[str, Any]:
        """Which codec this is."""
        return dict(self.told)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over nothing: the two have been found equal."""


class Unshuffle(Latents):
    """Squares of factor² pixels as channels, scaled and shifted: [B,C,H,W] → [B,C·f²,H/f,W/f], lossless.

    factor: side of the squares; scale, shift: z = (x − shift) · scale. Exact to the bit if scale is a power
    of 2 and shift is 0, else to rounding, far below one of 256 levels. It does to shapes and units what an
    autoencoder does, without one. Raises UserError for values out of range.
    """

    def __init__(self, factor: Count = 2, *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        if factor < 1 or not (0 < scale < math.inf and math.isfinite(shift)):
            raise UserError(
                f"codec: factor={factor} must be 1 or more, scale={scale} a finite number above 0 and "
                f"shift={shift} a finite one"
            )
        self.factor, self.scale, self.shift = factor, scale, shift
        self.bound = scale * (1.0 + abs(shift))
        self.told = {"factor": factor, "scale": scale, "shift": shift}

    def encode(self, x: Tensor) -> Tensor:
        """(unshuffled x − shift) · scale."""
        return (F.pixel_unshuffle(x, self.factor) - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Pixels of z / scale + shift."""
        return F.pixel_shuffle(z / self.scale + self.shift, self.factor)

    def shape_of(self, image: Shape) -> Shape:
        """(C·f², H/f, W/f)."""
        return image[0] * self.factor**2, *self.smaller(*image[1:])

    def image_shape_of(self, shape: Shape) -> Shape:
        """(C/f², H·f, W·f)."""
        return shape[0] // self.factor**2, shape[1] * self.factor, shape[2] * self.factor
