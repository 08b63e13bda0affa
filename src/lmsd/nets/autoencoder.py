"""An image-to-image net with a bottleneck: x → code → x̂. What an energy-based discriminator is made of.

    h = MLP(x),   z = W h ∈ R^code,   x̂ = MLP(z)

The narrower the code, the fewer images come back unchanged: those that do are the ones it takes for likely.
"""

import math
from itertools import pairwise

from torch import Tensor, nn

from lmsd.errors import Count, UserError


class MLPAutoencoder(nn.Module):
    """x [B,C,H,W] → x̂ of the same shape, each sample by itself; knows neither time nor text.

    width: of the hidden layers; depth: their number on each side; code: width of the waist. Raises UserError
    for sizes below 1.
    """

    def __init__(
        self, shape: tuple[int, int, int], width: Count = 256, *, depth: Count = 2, code: int = 16
    ) -> None:
        super().__init__()
        if min(width, depth, code) < 1:
            raise UserError(f"autoencoder: width={width}, depth={depth} and code={code} must be at least 1")
        self.shape = tuple(shape)
        size = math.prod(shape)
        self.encoder = _mlp([size, *[width] * depth, code])
        self.decoder = _mlp([code, *[width] * depth, size])

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction x̂."""
        made: Tensor = self.decoder(self.encoder(x.flatten(1)))
        return made.view_as(x)


def _mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
