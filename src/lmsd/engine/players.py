"""Whose turn it is: gradients on for one player, and only its gradients are exchanged between ranks.

Lightning's own DDP wraps the whole module. With two players that take turns this either fails (unused
parameters) or reduces both players each turn, and a call that bypasses the wrapper lets ranks drift apart
without an error. Here nothing is wrapped: after the backward pass the gradients of the player whose turn it
is go through one flat all-reduce,

    g ← (1/W) Σ_r g_r,

which is the gradient of the mean over the global batch, since every rank's share has the same size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lmsd.engine.parts import is_sharded
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


class Reducer:
    """Averages one player's gradients over the ranks; does nothing in a single process.

    elements, calls: how many numbers have been sent so far, in how many calls. Flags travel along with the
    gradients and say which parameters have one. So a parameter that no rank used keeps `grad = None`, and
    optimizers leave it alone as they do in a single process, while one that only this rank did not use gets
    the mean of the others. Sharded parameters (`engine.sharding`) are skipped: their backward pass reduces.
    """

    def __init__(self) -> None:
        self.elements = self.calls = 0
        self._flags: dict[tuple[bool, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every `grad` by its mean over the ranks, in one all-reduce per dtype."""
        parameters = [p for p in parameters if not is_sharded(p)]
        if world_size() == 1:
            return
        for dtype in dict.fromkeys(p.dtype for p in parameters):
            self._reduce([p for p in parameters if p.dtype == dtype])

    def _reduce(self, parameters: list[nn.Parameter]) -> None:
        present = tuple(p.grad is not None for p in parameters)
        flags = self._flags.setdefault(present, torch.tensor(present).to(parameters[0]))
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(g.reshape(-1) for g in grads), flags])
        self.calls += 1
        dist.all_reduce(flat)
        self.elements += flat.numel()
        *means, used = flat.div_(world_size()).split([*(p.numel() for p in parameters), len(parameters)])
        # Reading the flags waits for the device, so it is done only if this rank lacks a gradient.
        needed = [True] * len(parameters) if all(present) else used.gt(0).tolist()
        for parameter, mean, need in zip(parameters, means, needed, strict=True):
            parameter.grad = _shaped(mean, parameter) if need else None


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """A view if the layout allows it, else a copy in the layout of `like` (channels_last)."""
    view = flat.view(like.shape)
    return view if like.is_contiguous() else torch.empty_like(like).copy_(view)


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
