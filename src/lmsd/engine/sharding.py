"""A generator that does not fit on one device, sharded over the ranks: FSDP2 (`torch.distributed.fsdp`).

    rank r of W keeps 1/W of every weight, gradient, average and optimizer moment of the generator
    θ ← gather(θ_r)                     a block's weights, for its own forward and backward pass only
    g_r ← shard_r (1/W) Σ_r' g_r'       averaged over the ranks by the backward pass; ‖g‖ is the global norm

The discriminator is replicated on every rank and its gradients are reduced as usual. Checkpoints are gathered
into the form that a single process writes and reads, so a run may continue on another number of ranks, or
unsharded.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.optim import Optimizer

from lmsd.engine.module import Engine
from lmsd.engine.parts import is_sharded
from lmsd.engine.players import PlayersStrategy, broadcast
from lmsd.errors import UserError
from lmsd.ranks import world_size

OLDEST = (2, 13)
"""The first torch whose hooks find the tensors in a `Cond`; earlier ones silently drop gradients."""


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a net's outermost lists: what is gathered at one time."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def shard(generator: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a generator's net and its conditioner in place; they are called one after the other."""
    for part in generator.children():
        if any(True for _ in part.parameters()):
            for block in [*blocks(part), part]:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Gather all weights on every rank, so that ranks may call the generator differently. A collective."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def require_shardable(engine: Engine, ranks: int) -> None:
    """Refuse what cannot be sharded, in one sentence."""
    version = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST:
        raise UserError(
            f"trainer=fsdp needs torch {'.'.join(map(str, OLDEST))} or later: this is {torch.__version__}"
        )
    if ranks < 2:
        raise UserError(
            "trainer=fsdp shards the generator over ranks and there is one: devices=2, or trainer=gpu"
        )
    if engine.compiled:
        raise UserError(
            "trainer=fsdp gathers weights between blocks, which compile=true does not see: leave it out"
        )
    others = sorted(role for role, part in engine.objective.cast.items() if part.like is not None)
    if others:
        raise UserError(
            f"trainer=fsdp shards the {engine.lead} alone, and this objective keeps copies, "
            f"{', '.join(others)}: use trainer=ddp"
        )
    lead = engine.players[engine.lead]
    frozen = next((name for name, p in lead.named_parameters() if not p.requires_grad), None)
    if frozen is not None:
        raise UserError(
            f"trainer=fsdp shards what is trained, and the {engine.lead}'s {frozen} is frozen: "
            "use trainer=ddp"
        )


class ShardedStrategy(PlayersStrategy):
    """Ranks start with equal weights; then each keeps its shards of the generator and of its averages."""

    def model_to_device(self) -> None:
        """Shard before anything is moved, so that no device ever holds more than a block."""
        engine = cast(Engine, self.lightning_module)
        broadcast(engine, self.root_device)
        mesh = init_device_mesh(self.root_device.type, (world_size(),))
        for whole in (engine.players[engine.lead], *engine.average(engine.lead).values()):
            shard(whole, mesh)
        super().model_to_device()

    def gathered(self) -> AbstractContextManager[None]:
        """A context in which every rank has all weights. A collective."""
        assert self.lightning_module is not None
        return gathered(self.lightning_module)

    def configure_ddp(self) -> None:
        """Wrap nothing; the ranks are equal already."""

    def _whole(self, value: Any) -> Any:
        """All of what is sharded, in rank 0's host memory; other ranks do not need it."""
        if isinstance(value, Mapping):
            return {key: self._whole(item) for key, item in value.items()}
        if not is_sharded(value):
            return value
        full = value.full_tensor()
        return full.cpu() if self.is_global_zero else full.new_empty(0)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state as a single process would have it. A collective."""
        state: dict[str, Any] = self._whole(super().lightning_module_state_dict())
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state as a single process would have it. A collective."""
        state: dict[str, Any] = self._whole(super().optimizer_state(optimizer))
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load each rank's shards; before the generator is sharded, all of it."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _sharded(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load each rank's shards of the moments."""
        states = []
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            moments = {
                number: {name: _sharded(value, weights[number]) for name, value in own.items()}
                for number, own in saved["state"].items()
            }
            states.append({**saved, "state": moments})
        super().load_optimizer_state_dict({"optimizer_states": states})


def _sharded(value: Any, like: Any) -> Any:
    """A value that every rank has whole, sharded as `like` is; one of another shape as it is."""
    if not is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
