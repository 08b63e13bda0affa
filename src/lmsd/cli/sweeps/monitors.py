"""The scores on val that a sweep may rank by, and which way is better.

Scores that do not depend on the model (floors, and those of training and of real images) rank nothing.
"""

from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG, Direction, kind_of

KNOWN = tuple(name for name, kind in CATALOG.items() if kind.better is not None)


def better(monitor: str) -> Direction:
    """Whether less or more of a score is better; monitor: its name, or name[extractor]. Raises UserError."""
    kind = CATALOG.get(kind_of(monitor))
    if kind is None or kind.better is None:
        raise UserError(
            f"sweep.monitor={monitor} is no score on val{nearest(kind_of(monitor), KNOWN)}; scores: "
            f"{', '.join(KNOWN)}"
        )
    return kind.better


def matches(monitor: str, name: str) -> bool:
    """Whether a score's full name is what is monitored: fd, fd[lmsd-cnn] or fd[lmsd-cnn@ab12]."""
    return monitor in (kind_of(name), name, name.partition("@")[0] + "]")
