"""Features of a net on the way: the outputs of some of its submodules, its taps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmsd.errors import UserError
from lmsd.models.backbones import Backbone
from lmsd.models.frozen import weights_of
from lmsd.types import Cond, Net


class Tap(nn.Module):
    """Features of one tap → one vector: LN over channels, a linear layer at each place, mean over places."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.layer = nn.Linear(channels, width)

    def forward(self, h: Tensor) -> Tensor:
        """[B,N,channels] → [B,width]."""
        return F.leaky_relu(self.layer(self.norm(h)), 0.2).mean(1)


def with_taps(net: Net) -> Backbone:
    """The net, which has taps. Raises UserError if it is no backbone."""
    if not isinstance(net, Backbone):
        raise UserError(f"discriminator: {type(net).__name__} is no backbone and has no taps")
    return net


def tap_names(net: Backbone, taps: Sequence[str] | None) -> tuple[str, ...]:
    """The names of a net's taps: those given, or its own. Raises UserError for names that it lacks."""
    names = tuple(taps) if taps is not None else net.taps
    known = {name for name, _ in net.named_modules()}
    if not names or not known.issuperset(names):
        raise UserError(f"discriminator: no such taps as {names}; the net's own are {net.taps}")
    return names


@contextmanager
def tapped(net: Backbone, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """A list that a forward pass of the net fills with the outputs of its taps, as [B,N,C], in order."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        caught.append(_places(net.features(output)))

    handles = [net.get_submodule(name).register_forward_hook(catch) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def tap_channels(net: Backbone, names: Sequence[str]) -> list[int]:
    """How wide the features of the taps are, from one gray image."""
    like = next(value for _, value in weights_of(net) if value.is_floating_point())
    cond = Cond(
        tokens=like.new_zeros(1, 1, net.token_dim) if net.token_dim else None,
        mask=torch.ones(1, 1, dtype=torch.bool) if net.token_dim else None,
        pooled=like.new_zeros(1, net.pooled_dim) if net.pooled_dim else None,
        label=torch.zeros(1, dtype=torch.int64),
    )
    x = like.new_zeros(1, net.channels, net.image_size, net.image_size)
    z = x.new_zeros(1, net.z_dim) if net.z_dim else None
    with tapped(net, names) as features:
        net(x, torch.zeros(1, device=x.device), cond.map(lambda v: v.to(x.device)), z)
    return [h.shape[2] for h in features]


def _places(h: Tensor) -> Tensor:
    """A block's output as [B,N,C]: maps [B,C,H,W], tokens [B,N,C], a vector [B,C]."""
    if h.ndim == 4:
        return h.flatten(2).transpose(1, 2)
    return h if h.ndim == 3 else h[:, None]
