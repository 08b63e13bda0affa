"""Tensors that `engine.sharding` has cut over the ranks (DTensors), and any others, behind one name.

By their methods, not their class: importing that takes longer than all else that reads a checkpoint.
"""

from torch import Tensor


def is_cut(tensor: Tensor) -> bool:
    """Whether each rank holds a part of this tensor only."""
    return hasattr(tensor, "full_tensor")


def all_of(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is cut, by a collective; any other as it is."""
    return tensor.full_tensor() if is_cut(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def part_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that is cut which this rank holds; any other as it is."""
    return tensor.to_local() if is_cut(tensor) else tensor  # type: ignore[attr-defined, no-any-return]
