"""Decoding a large image of an AutoencoderKL in tiles, with the whole image's normalization.

    mean_g, var_g of every GroupNorm = averages over all tiles, each weighted by its own pixels

What sees the whole image at the resolution of the latents (the middle block, with its attention) is computed
at once; the rest, where memory goes, tile by tile with a margin around each that is cut off. Every GroupNorm
sees the whole image, too: a tile's own statistics give every tile its own contrast, by 20 to 35 dB. So
statistics are gathered over the tiles first. Those of the k-th norm are exact once all before it are, after
`PASSES` passes they are near enough everywhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MARGIN = 8
"""Latents around a tile that it is computed with."""
PASSES = 2
"""Passes over the tiles in which statistics are gathered."""


@dataclass
class _Norm:
    """Statistics of one GroupNorm [B,groups]: known from the pass before, gathered in this one."""

    known: tuple[Tensor, Tensor] | None = None
    sums: list[Tensor] = field(default_factory=list)  # [3,B,groups]: count, sum, sum of squares of a tile

    def settle(self) -> None:
        """What was gathered is known from now on."""
        weight, total, squares = torch.stack(self.sums).double().sum(0)
        mean = total / weight
        var = (squares / weight - mean.square()).clamp(min=0)
        self.known, self.sums = (mean.float(), var.float()), []


@dataclass
class Tiled:
    """Decodes an AutoencoderKL's latents z [B,C,h,w] in tiles of `side` latents."""

    model: Any
    side: int

    def __call__(self, z: Tensor) -> Tensor:
        """D(z), in the range of images or slightly beyond."""
        decoder = self.model.decoder
        if self.model.post_quant_conv is not None:
            z = self.model.post_quant_conv(z)
        h = decoder.mid_block(decoder.conv_in(z))
        tiles, columns = list(_tiles(z.shape[2], z.shape[3], self.side)), -(-z.shape[3] // self.side)
        if len(tiles) == 1:
            return self._rest(h)
        made = []
        with _Hooked([*decoder.up_blocks, decoder.conv_norm_out]) as hooked:
            for last in (*(False,) * PASSES, True):
                for tile in tiles:
                    hooked.tile = tile
                    part = tile.inner(self._rest(tile.cut(h)))
                    made += [part] if last else []
                hooked.settle()
        rows = [torch.cat(made[i : i + columns], dim=3) for i in range(0, len(made), columns)]
        return torch.cat(rows, dim=2)

    def _rest(self, h: Tensor) -> Tensor:
        decoder = self.model.decoder
        for block in decoder.up_blocks:
            h = block(h, None)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Tile:
    """A rectangle of latents, and how much margin it has on its sides."""

    rows: slice
    columns: slice
    top: int
    left: int
    bottom: int
    right: int

    def cut(self, h: Tensor) -> Tensor:
        """With its margin."""
        rows = slice(self.rows.start - self.top, self.rows.stop + self.bottom)
        return h[:, :, rows, self.columns.start - self.left : self.columns.stop + self.right]

    def inner(self, x: Tensor) -> Tensor:
        """What is computed from it, at any resolution, without its margin."""
        scale = x.shape[2] // (self.rows.stop - self.rows.start + self.top + self.bottom)
        top, left, bottom, right = (scale * each for each in (self.top, self.left, self.bottom, self.right))
        return x[:, :, top : x.shape[2] - bottom, left : x.shape[3] - right]


def _tiles(height: int, width: int, side: int) -> Iterator[_Tile]:
    for y in range(0, height, side):
        for x in range(0, width, side):
            below, right = min(y + side, height), min(x + side, width)
            margins = [min(MARGIN, room) for room in (y, x, height - below, width - right)]
            yield _Tile(slice(y, below), slice(x, right), *margins)


class _Hooked:
    """While it lasts, the GroupNorms of the parts gather statistics, and use those that are known.

    tile: the one that is computed.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self.modules = [m for part in parts for m in part.modules() if isinstance(m, nn.GroupNorm)]
        self.norms = [_Norm() for _ in self.modules]
        self.tile: _Tile | None = None
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "_Hooked":
        pairs = zip(self.modules, self.norms, strict=True)
        self.handles = [module.register_forward_hook(partial(self._normed, norm)) for module, norm in pairs]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def settle(self) -> None:
        """A pass over all tiles is done."""
        for norm in self.norms:
            norm.settle()

    def _normed(self, norm: _Norm, module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        x, groups = inputs[0].float(), module.num_groups
        own = self.tile.inner(x) if self.tile else x
        own = own.reshape(len(x), groups, -1)
        size = own.new_full((len(x), groups), own.shape[2])
        norm.sums.append(torch.stack([size, own.sum(2), own.square().sum(2)]))
        if norm.known is None:
            return None
        mean, var = (each[..., None] for each in norm.known)
        found = ((x.reshape(len(x), groups, -1) - mean) * (var + module.eps).rsqrt()).view_as(x)
        made: Tensor = found * module.weight[:, None, None] + module.bias[:, None, None]
        return made.to(output.dtype)
