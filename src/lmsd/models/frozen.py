"""Frozen nets: weights that nothing trains.

A frozen net holds buffers where a net holds parameters. Optimizers, weight decay, EMA and the switching of
gradients go by parameters, so none of them can reach it; gradients still flow through it to its inputs.
"""

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Turn every parameter into a buffer of the same name, in place, and go to eval mode."""
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                del child._parameters[name]
                child.register_buffer(name, parameter.detach())
    return module.eval()
