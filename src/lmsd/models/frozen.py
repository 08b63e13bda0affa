"""Frozen nets: weights that nothing trains.

A frozen net holds buffers instead of parameters. Optimizers, weight decay, EMA and the switching of gradients
work on parameters, so none of them can touch it; gradients still flow through it to its inputs.
"""

import copy
import hashlib
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module, *, saved: bool) -> Module:
    """Turn every parameter into a buffer of the same name, in place, and switch to eval mode.

    saved: whether the weights go into state dicts; weights that another file holds need not.
    """
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach())
        if not saved:
            child._non_persistent_buffers_set.update(child._buffers)
    module.is_frozen = True  # type: ignore[assignment]
    return module.eval()


def twin(module: Module) -> Module:
    """A copy that shares what is frozen: frozen parts, and parameters without a gradient.

    A frozen part is the same object in both, so that it is still shared after both have moved to a device.
    """
    fixed: dict[int, Any] = {id(p): p for p in module.parameters() if not p.requires_grad}
    fixed |= {id(part): part for part in module.modules() if getattr(part, "is_frozen", False)}
    return copy.deepcopy(module, fixed)


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
        head = value.detach().flatten()[:64].to("cpu", torch.float64)
        digest.update(f"{name} {tuple(value.shape)} {head.tolist()}".encode())
    return digest.hexdigest()[:16]
