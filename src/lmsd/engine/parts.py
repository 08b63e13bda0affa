"""Tensors that `engine.sharding` has sharded over the ranks (DTensors), and any others, behind one name."""

from typing import TypeGuard

from torch import Tensor
from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether this is a tensor of which each rank holds only a shard."""
    return isinstance(tensor, DTensor)


def all_of(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, which is a collective; any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_of(tensor: Tensor) -> Tensor:
    """The shard of a sharded tensor that this rank holds; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor
