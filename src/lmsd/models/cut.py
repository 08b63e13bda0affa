"""Nets with heads, channels and blocks taken out, physically; what is left is named in the spec, by module.

    kept = {"model/blocks/0:hidden": [0, 2, 5], "model/blocks/1:heads": [1], "model/blocks/2:block": []}

An axis of a module is a width inside of it that nothing else sees: rows of what writes it, columns of what
reads it, and norms between. A unit of it is one head, one channel, or one group of a norm, whose other groups
stay as they are. A block is what adds to its input; without it the input passes.

    y = x + W₂ φ(W₁ x)      keep K:   W₁ ← W₁[K, :],  W₂ ← W₂[:, K]
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.models import conv_unet, uvit
from lmsd.nets.mlp import ModulatedBlock
from lmsd.types import Net, Sizes

BLOCK = "block"
"""The axis of a module that is there or not."""


@dataclass(frozen=True)
class Axis:
    """One inner width of a kind of module.

    units: how many a module has; size: channels of one; written: layers whose rows it is, each so many times
    over (three for queries, keys and values in one); read: layers whose columns it is; norms: over its
    channels; gains: parameters with a row a unit; settle: sets the module's own numbers to so many units.
    """

    name: str
    units: Callable[[Any], int]
    size: Callable[[Any], int]
    written: Callable[[Any], Mapping[str, int]]
    read: Sequence[str]
    norms: Sequence[str] = ()
    gains: Sequence[str] = ()
    settle: Callable[[Any, int], None] = lambda module, units: None

    def rows(self, module: Any, kept: Sequence[int], *, times: int = 1) -> Tensor:
        """The channels of units, in a layer that has all of them so many times over."""
        size, units = self.size(module), self.units(module)
        one = (torch.tensor(list(kept), dtype=torch.int64)[:, None] * size + torch.arange(size)).flatten()
        return torch.cat([one + part * units * size for part in range(times)])

    def keep(self, module: Any, kept: Sequence[int]) -> None:
        """Take all other units out of a module."""
        layers = [
            (module.get_submodule(name), self.rows(module, kept, times=times))
            for name, times in self.written(module).items()
        ]
        columns = self.rows(module, kept)
        for layer, rows in layers:
            _narrow(layer, "out", rows)
        for name in self.read:
            _narrow(module.get_submodule(name), "in", columns)
        for name in self.norms:
            norm = module.get_submodule(name)
            norm.weight, norm.bias = _part(norm.weight, columns), _part(norm.bias, columns)
            norm.num_groups, norm.num_channels = len(kept), len(columns)
        for name in self.gains:
            setattr(module, name, _part(module.get_parameter(name), torch.tensor(list(kept))))
        self.settle(module, len(kept))

    @contextmanager
    def without(self, module: Any, left_out: Sequence[int]) -> Iterator[None]:
        """Let the module work as if these units were taken out."""
        layers = [module.get_submodule(name) for name in self.read]
        before = [layer.weight.detach().clone() for layer in layers]
        columns = self.rows(module, left_out)
        try:
            with torch.no_grad():
                for layer in layers:
                    layer.weight[:, columns] = 0.0
            yield
        finally:
            with torch.no_grad():
                for layer, weight in zip(layers, before, strict=True):
                    layer.weight.copy_(weight)


class Passed(nn.Module):
    """In the place of a block that was taken out: its input, whatever else it is given."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """X as it is."""
        return x


def _part(parameter: Tensor, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach()[rows].clone(), requires_grad=parameter.requires_grad)


def _narrow(layer: Any, side: str, index: Tensor) -> None:
    """Keep rows ("out") or columns ("in") of a linear layer or a convolution."""
    weight = layer.weight if side == "out" else layer.weight.transpose(0, 1)
    part = _part(weight, index)
    layer.weight = part if side == "out" else nn.Parameter(part.detach().transpose(0, 1).contiguous())
    layer.weight.requires_grad_(weight.requires_grad)
    if side == "out" and layer.bias is not None:
        layer.bias = _part(layer.bias, index)
    kind = "features" if "in_features" in vars(layer) else "channels"
    vars(layer)[f"{side}_{kind}"] = len(index)


def _heads(module: Any, units: int) -> None:
    module.heads = units


def _diffusers_heads(module: Any, units: int) -> None:
    module.inner_dim = module.inner_kv_dim = module.to_q.out_features
    module.heads = module.sliceable_head_dim = units


def _times(module: Any, layers: Sequence[str], width: int) -> dict[str, int]:
    """How often layers have all of a width, those that there are."""
    found = {name: module.get_submodule(name) for name in layers if name.split(".")[0] in module._modules}
    return {name: (layer.weight.shape[0]) // width for name, layer in found.items() if layer is not None}


HIDDEN = Axis("hidden", lambda m: m.outside.in_features, lambda m: 1, lambda m: {"inside": 1}, ("outside",))
CHANNELS = Axis(
    "channels",
    lambda m: m.inner.num_groups,
    lambda m: m.inner.num_channels // m.inner.num_groups,
    lambda m: {"first": 1, "film": 2},
    ("second",),
    norms=("inner",),
)
HEADS = Axis(
    "heads",
    lambda m: m.heads,
    lambda m: m.out.in_features // m.heads,
    lambda m: {"qkv": 3},
    ("out",),
    gains=("gain",),
    settle=_heads,
)
GATED = Axis("hidden", lambda m: m.out.in_features, lambda m: 1, lambda m: {"gate": 2}, ("out",))
THEIR_HEADS = Axis(
    "heads",
    lambda m: m.heads,
    lambda m: m.to_q.out_features // m.heads,
    lambda m: dict.fromkeys(("to_q", "to_k", "to_v"), 1),
    ("to_out.0",),
    settle=_diffusers_heads,
)
THEIR_HIDDEN = Axis(
    "hidden",
    lambda m: m.net[2].in_features,
    lambda m: 1,
    lambda m: _times(m, ("net.0.proj",), m.net[2].in_features),
    ("net.2",),
)
THEIR_CHANNELS = Axis(
    "channels",
    lambda m: m.norm2.num_groups,
    lambda m: m.norm2.num_channels // m.norm2.num_groups,
    lambda m: _times(m, ("conv1", "time_emb_proj"), m.norm2.num_channels),
    ("conv2",),
    norms=("norm2",),
)
OURS: Mapping[type[nn.Module], tuple[Axis | None, bool]] = {
    ModulatedBlock: (HIDDEN, True),
    conv_unet.Block: (CHANNELS, True),
    conv_unet.Attention: (HEADS, True),
    uvit.Attention: (HEADS, False),
    uvit.Block: (GATED, True),
}
"""Kinds of modules with their axis, and whether they are blocks."""
THEIRS: Mapping[str, tuple[Axis | None, bool]] = {
    "Attention": (THEIR_HEADS, False),
    "FeedForward": (THEIR_HIDDEN, False),
    "ResnetBlock2D": (THEIR_CHANNELS, True),
    "BasicTransformerBlock": (None, True),
}
"""The same of diffusers, by the names of their classes."""


def found_in(module: Any) -> tuple[Axis | None, bool]:
    """The axis of a module, None for none, and whether it is a block that can be taken out."""
    kind = type(module)
    axis, block = OURS.get(kind, (None, False))
    if kind.__module__.startswith("diffusers."):
        axis, block = THEIRS.get(kind.__name__, (None, False))
        if kind.__name__ == "ResnetBlock2D":
            block = module.in_channels == module.out_channels and module.conv_shortcut is None
            block = block and not (module.up or module.down)
    return axis, block


def axes(net: nn.Module) -> dict[str, Axis | None]:
    """Every place of a net where something can be taken out: "PATH:AXIS", None for a whole block."""
    found: dict[str, Axis | None] = {}
    for name, module in net.named_modules():
        axis, block = found_in(module) if name else (None, False)
        if block and name.endswith("transformer_blocks.0"):  # DiT's makes the modulation that its head reads
            block = vars(module).get("norm_type") != "ada_norm_zero"
        place = name.replace(".", "/")
        found |= {f"{place}:{axis.name}": axis} if axis is not None and axis.units(module) else {}
        found |= {f"{place}:{BLOCK}": None} if block else {}
    return found


def module_of(net: nn.Module, place: str) -> nn.Module:
    """The module of "PATH:AXIS"."""
    return net.get_submodule(place.partition(":")[0].replace("/", "."))


def take_out(net: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Leave what is kept in a net, physically, blocks last.

    Raises UserError for a place that the net has not, and for units that are not there.
    """
    known = axes(net)
    for place in sorted(kept, key=lambda each: each.endswith(f":{BLOCK}")):
        if place not in known:
            raise UserError(f"net.kept: this net has nothing at {place}: cut the net that it was made for")
        axis, units = known[place], [int(each) for each in kept[place]]
        module = module_of(net, place)
        if axis is None:
            parent, _, name = place.partition(":")[0].replace("/", ".").rpartition(".")
            net.get_submodule(parent)._modules[name] = Passed()
        elif not units or sorted(set(units)) != units or units[-1] >= axis.units(module) or units[0] < 0:
            raise UserError(f"net.kept: {place} has {axis.units(module)} units, kept in order, one at least")
        else:
            axis.keep(module, units)


def cut(inner: Callable[..., Net], *, kept: Mapping[str, Sequence[int]], sizes: Sizes) -> Net:
    """A net without what is not kept.

    inner: the net's constructor, with all but the sizes bound; kept: the units left, by module and axis, in
    order; nothing for a block that is taken out. Raises UserError where the net has no such place.
    """
    net = inner(sizes=sizes)
    take_out(net, kept)  # type: ignore[arg-type]
    return net


def further(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """What is kept of the whole net where a cut one, of which `before` is kept, keeps `now`."""
    found = {place: list(units) for place, units in before.items()}
    for place, units in now.items():
        found[place] = [found[place][unit] for unit in units] if found.get(place) else list(units)
    return found
