"""Frozen nets: weights that nothing trains.

A frozen net holds buffers instead of parameters. Optimizers, weight decay, EMA and the switching of gradients
work on parameters, so none of them can touch it; gradients still flow through it to its inputs.
"""

import copy
import hashlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module, *, saved: bool, learning: bool = False) -> Module:
    """Turn every parameter into a buffer of the same name, in place, and switch to eval mode.

    saved: whether the weights go into state dicts; weights that another file holds need not. learning: those
    that require a gradient stay parameters, as adapters do in the net that they adapt.
    """
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None and not (learning and parameter.requires_grad):
                del child._parameters[name]
                child.register_buffer(name, parameter.detach())
                child.was_learned = (*_once(child), name)  # type: ignore[assignment]
        if not saved:
            child._non_persistent_buffers_set.update(child._buffers)
    module.is_frozen = True  # type: ignore[assignment]
    return module.eval()


def thaw(module: Module) -> Module:
    """The inverse of `freeze`: parameters again, with gradients and in state dicts, in place."""
    for child in module.modules():
        for name in _once(child):
            value = child._buffers.pop(name)
            assert value is not None
            child._non_persistent_buffers_set.discard(name)
            child.register_parameter(name, nn.Parameter(value))
        vars(child).pop("was_learned", None)
        vars(child).pop("is_frozen", None)
    return module


def _once(child: nn.Module) -> tuple[str, ...]:
    """The names of a module's buffers that were parameters before they were frozen, in their order."""
    found: tuple[str, ...] = vars(child).get("was_learned", ())
    return found


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a net by name, whether they learn or are frozen; no other buffers."""
    for place, child in module.named_modules():
        for name, value in [*child._parameters.items(), *((n, child._buffers[n]) for n in _once(child))]:
            if value is not None:
                yield f"{place}.{name}" if place else name, value


def twin(module: Module) -> Module:
    """A copy that shares what is frozen: frozen parts, and parameters without a gradient.

    A frozen part is the same object in both, so that it is still shared after both have moved to a device; of
    one with adapters in it, the parts that hold none.
    """
    fixed: dict[int, Any] = {id(p): p for p in module.parameters() if not p.requires_grad}
    for part in module.modules():
        if vars(part).get("is_frozen", False):
            fixed |= {id(still): still for still in _still(part)}
    return copy.deepcopy(module, fixed)


def _still(part: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a frozen net in which nothing learns."""
    if not any(True for _ in part.parameters()):
        yield part
    elif any(True for _ in part.children()):
        for child in part.children():
            yield from _still(child)


def digest(module: nn.Module) -> str:
    """The sha256 of all weights with their names, in hex digits: two nets share it if they are the same."""
    found = hashlib.sha256()
    for name, value in sorted(
        [*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]
    ):
        content = value.detach().to("cpu").contiguous().flatten().view(torch.uint8)
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(content.numpy().data)
    return found.hexdigest()


def fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits from the weights' names, shapes and first numbers: tells nets apart cheaply."""
    digest = hashlib.sha256()
    for name, value in sorted(
        [*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]
    ):
        known = type(value) is not FakeTensor  # those of `lmsd plan` have no numbers
        head = value.detach().flatten()[:64].to("cpu", torch.float64).tolist() if known else ()
        digest.update(f"{name} {tuple(value.shape)} {head}".encode())
    return digest.hexdigest()[:16]
