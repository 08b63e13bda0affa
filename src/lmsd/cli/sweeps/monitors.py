"""The scores on val that a sweep may rank by, and which way is better.

Scores that do not depend on the model (floors, and those of training and of real images) rank nothing.
"""

from typing import Literal

from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError

Direction = Literal["min", "max"]

FALLING = ("fd", "fd_infinity", "fd_matched", "fd_ratio", "kid", "cmmd", "copies")
RISING = (
    "right",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_score",
    "is",
    "clip_score",
    "r_precision",
    "neighbor_ratio",
)


def better(monitor: str) -> Direction:
    """Whether less or more of a score is better; monitor: its name, or name[extractor]. Raises UserError."""
    kind = monitor.partition("[")[0]
    known = (*FALLING, *RISING)
    if kind not in known:
        raise UserError(
            f"sweep.monitor={monitor} is no score on val{nearest(kind, known)}; scores: {', '.join(known)}"
        )
    return "max" if kind in RISING else "min"
