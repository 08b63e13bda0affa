"""Tensors that have shapes and no numbers, and a ledger of the memory that they would take.

    large tensors    imagined: torch's fake tensors, whose operations compute shapes, dtypes and layouts
                     alone; and those that begin without numbers (torch.empty), as weights do
    small ones       real: what methods read as numbers (knots, schedules, counters) is what it would be

So the code of a run itself, its objective, engine and optimizers, is played for nets of any size on any
machine; what it allocates is booked as the CPU's allocator would: a storage from its creation to its release.
Where code reads a number that is imagined, it reads 1 (True).
"""

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmsd.errors import UserError

SMALL, COUNTED = 1 << 12, 1 << 22
"""Numbers up to which a tensor that is made of nothing is real: of any kind, and whole ones, which index."""

Kind: TypeAlias = Literal["weights", "averages", "optimizer", "gradients", "activations"]
KINDS: tuple[Kind, ...] = ("weights", "averages", "optimizer", "gradients", "activations")


class NeedsNumbers(UserError):
    """What is played looks at numbers, and shapes have none."""


class Ledger:
    """The bytes that live by kind, and at the moment when they were most since the last `mark`.

    What nobody has booked otherwise is an activation.
    """

    def __init__(self) -> None:
        self.live: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.most: dict[Kind, int] = dict(self.live)
        self._kinds: dict[int, tuple[weakref.ref[Any], Kind, int]] = {}

    def note(self, tensors: Iterable[Tensor]) -> None:
        """Book the storages of new tensors."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._kinds:
                continue
            gone = weakref.ref(storage, partial(self._released, key))
            self._add(key, gone, "activations", storage.nbytes())
        if sum(self.live.values()) > sum(self.most.values()):
            self.most = dict(self.live)

    def book(self, kind: Kind, tensors: Iterable[Tensor]) -> None:
        """Say of what kind the storages of tensors are; those that are known as one already stay that."""
        for tensor in tensors:
            self.note([tensor])
            key = tensor.untyped_storage()._cdata
            gone, known, size = self._kinds[key]
            if known == "activations":
                self.live[known] -= size
                self._add(key, gone, kind, size)

    def mark(self) -> None:
        """Forget the largest moment so far."""
        self.most = dict(self.live)

    def _add(self, key: int, gone: "weakref.ref[Any]", kind: Kind, size: int) -> None:
        self._kinds[key] = (gone, kind, size)
        self.live[kind] += size

    def _released(self, key: int, _: object) -> None:
        _, kind, size = self._kinds.pop(key)
        self.live[kind] -= size


class Imagined(TorchDispatchMode):
    """Within it, whatever is made of nothing and is large is imagined, as is all that follows from it.

    ledger: of all that is made within it. Raises NeedsNumbers where a shape depends on numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # torch's own deepcopy
        self.ledger = Ledger()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on numbers, or on shapes."""
        found = self._run(func, args, kwargs or {})
        self.ledger.note(leaf for leaf in tree_leaves(found) if torch.is_tensor(leaf))
        return found

    def _run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)]
        if any(type(tensor) is FakeTensor for tensor in given):
            if func is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=args[0].dtype).item()
            try:
                return func(*args, **kwargs)
            except DynamicOutputShapeException as error:
                raise NeedsNumbers(
                    f"plan: the shape of {func} depends on numbers, and shapes have none"
                ) from error
        if given:
            return func(*args, **kwargs)
        with self.fake:
            found = func(*args, **kwargs)
        if torch.is_tensor(found) and not (func is torch.ops.aten.empty.memory_format and found.numel() > 1):
            room = COUNTED if found.dtype == torch.int64 else SMALL
            return func(*args, **kwargs) if found.numel() <= room else found
        return found

    def like(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """An imagined tensor, however small."""
        with self.fake:
            made = torch.empty(tuple(shape), dtype=dtype)
        self.ledger.note([made])
        return made


@contextmanager
def booked(module: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Have the gradients of a module's parameters booked as such the moment they are there."""

    def book(parameter: Tensor) -> None:
        if parameter.grad is not None:
            ledger.book("gradients", [parameter.grad])

    hooks = [
        parameter.register_post_accumulate_grad_hook(book)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
