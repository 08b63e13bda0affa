"""Whose turn it is: gradients on for one player, and only its gradients are exchanged between ranks.

Lightning's own DDP wraps the whole module. With two players that take turns this either fails (unused
parameters) or reduces both players each turn, and a call that bypasses the wrapper lets ranks drift apart
without an error. Here nothing is wrapped: the gradients of the player whose turn it is are averaged over the
ranks, in buckets that travel while the backward pass goes on (`engine.buckets`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lmsd.errors import UserError
from lmsd.ranks import world_size
from lmsd.types import Recomputing


class Seats:
    """Which parameters of which player are trainable, and the switch that lets one player move at a time.

    Trainable is what requires gradients on construction: freeze and add adapters before. Raises UserError if
    two players share a trainable parameter.
    """

    def __init__(self, players: Mapping[str, nn.Module]) -> None:
        self.trainable: dict[str, list[nn.Parameter]] = {
            name: [p for p in player.parameters() if p.requires_grad] for name, player in players.items()
        }
        owner: dict[int, str] = {}
        for name, parameters in self.trainable.items():
            for parameter in parameters:
                if owner.setdefault(id(parameter), name) != name:
                    raise UserError(
                        f"players {owner[id(parameter)]!r} and {name!r} share a trainable parameter: give "
                        "each its own copy, or freeze the shared one"
                    )

    def switch(self, *, on: bool) -> None:
        """Switch gradients on or off for all trainable parameters."""
        for parameters in self.trainable.values():
            _require(parameters, on)

    @contextmanager
    def only(self, player: str) -> Iterator[list[nn.Parameter]]:
        """Switch gradients on for `player` alone; they are off for all before and after."""
        parameters = self.trainable[player]
        _require(parameters, True)
        try:
            yield parameters
        finally:
            _require(parameters, False)


def _require(parameters: Sequence[nn.Parameter], on: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(on)


def net_of(player: nn.Module) -> nn.Module:
    """The net inside a player (a generator's net, a discriminator's trunk), or the player itself."""
    parts = dict(player.named_children())
    return parts.get("net", parts.get("trunk", player))


def recompute(player: nn.Module) -> None:
    """Make a player's net recompute its activations in the backward pass."""
    net = net_of(player)
    if not isinstance(net, Recomputing):
        raise UserError(f"{type(net).__name__} has no gradient checkpointing: set checkpointing=false")
    net.enable_gradient_checkpointing()


@torch.no_grad()
def broadcast(module: nn.Module, device: torch.device) -> None:
    """Copy rank 0's parameters and buffers to every rank, through the ranks' devices."""
    if world_size() == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        sent = tensor.data.to(device).contiguous()
        dist.broadcast(sent, src=0)
        tensor.data.copy_(sent)


class PlayersStrategy(DDPStrategy):
    """Several processes without a wrapper: ranks start equal, and the engine reduces gradients."""

    def configure_ddp(self) -> None:
        """Leave the module unwrapped, with rank 0's weights everywhere."""
        assert self.model is not None
        broadcast(self.model, self.root_device)

    def gathered(self) -> AbstractContextManager[None]:
        """A context in which every rank has all weights: any, here."""
        return nullcontext()
