"""Held-out scores with n, seeds, intervals and floor; sample grids; the report of a run.

Names are looked up when they are asked for, so that the catalog of scores can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsd.evaluation.evaluator import Checker, Evaluator
    from lmsd.evaluation.scores import Scores

__all__ = [
    "Checker",
    "Evaluator",
    "Scores",
]
_PLACES = {"Checker": "evaluator", "Evaluator": "evaluator", "Scores": "scores"}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(f"{__name__}.{_PLACES[name]}"))[name]
