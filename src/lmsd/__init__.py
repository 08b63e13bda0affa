"""Adversarial diffusion models: processes, players, objectives and the engine that plays them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsd.sampling.model import load as load

__version__ = "0.6.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported by whoever asks for it
        from lmsd.sampling.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
