"""Training on Lightning: the module that plays turns, its clock, checkpoints and callbacks.

Names are loaded on first use, so that reading a checkpoint does not import Lightning (8 s of CPU time).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsd.engine.callbacks import Checkpoint as Checkpoint
    from lmsd.engine.callbacks import Evaluate as Evaluate
    from lmsd.engine.callbacks import Progress as Progress
    from lmsd.engine.clock import Clock as Clock
    from lmsd.engine.module import Engine as Engine
    from lmsd.engine.optim import adamw as adamw
    from lmsd.engine.signals import Interrupt as Interrupt
    from lmsd.engine.trainer import fit as fit

_HOME = {
    "Checkpoint": "callbacks",
    "Evaluate": "callbacks",
    "Interrupt": "signals",
    "Progress": "callbacks",
    "Clock": "clock",
    "Engine": "module",
    "adamw": "optim",
    "fit": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
