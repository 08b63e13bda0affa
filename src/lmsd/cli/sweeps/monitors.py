"""The scores on val that a sweep may rank by, which way is better, and what runs need in order to have them.

Scores that do not depend on the model (floors, and those of training and of real images) rank nothing.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG, FEATURES, LOCAL, PAIRED, Direction, kind_of

if TYPE_CHECKING:
    from lmsd.data.shardset import ShardSet

KNOWN = tuple(name for name, kind in CATALOG.items() if kind.better is not None)
COPIES = ("neighbor_ratio", "copies")


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


def require(monitor: str, settings: Any, *, held_out: int | None = None) -> None:
    """Refuse a score that runs scored by these settings (`evaluate`) will not have.

    held_out: images of val, where they are counted already.
    """
    if settings.n == 0:
        raise UserError("evaluate.n=0: a sweep ranks its trials by their scores on val; give evaluate.n=1000")
    why = lacking(kind_of(monitor), settings, held_out)
    asked, by = monitor.partition("[")[2], settings.extractor.kind
    if not why and not asked.startswith(by[: len(asked)]):
        why = f"runs are scored with evaluate.extractor.kind={by}"
    if why:
        others = ", ".join(name for name in KNOWN if not lacking(name, settings, held_out))
        raise UserError(f"sweep.monitor={monitor}: {why}; with these settings trials have {others}")


def lacking(name: str, settings: Any, held_out: int | None) -> str:
    """Why runs will not have a score, and what gives it; empty where nothing speaks against it."""
    kind, by = CATALOG[name], settings.extractor.kind
    givers = ("lmsd-cnn",) if name == "right" and settings.checker is None else kind.extractors
    if givers and by not in givers:
        return f"it comes with evaluate.extractor.kind={' or '.join(givers)}, and runs are scored with {by}"
    if name in COPIES and not settings.neighbors:
        return "it comes with evaluate.neighbors=true"
    least = max(kind.least, 2 * features(settings.extractor) if name.startswith("fd") else 0)
    if settings.n < least:
        return f"it needs {least} images, and evaluate.n={settings.n}: give evaluate.n={least}"
    if held_out is not None and held_out < least:
        return f"it needs {least} images, and val has {held_out}"
    return ""


def features(extractor: Any) -> int:
    """How many features an extractor has; 0 where that is not known before it is opened."""
    described = Path(str(extractor.path)) / "config.json"
    if extractor.kind in FEATURES or not described.is_file():
        return FEATURES.get(extractor.kind, 0)
    card = json.loads(described.read_text(encoding="utf-8"))
    return int(card.get("projection_dim") or card.get("hidden_size") or 0)


def require_data(monitor: str, settings: Any, data: "ShardSet") -> None:
    """Refuse a score that the val shards hold too little for."""
    from lmsd.cli.build.validate import require_val
    from lmsd.evaluation.measures import LEAST_PAIRS, alike, drawn
    from lmsd.features.base import captions_of
    from lmsd.metrics import matched_halves

    require_val(data)
    val, name = data.split_set("val"), kind_of(monitor)
    require(monitor, settings, held_out=len(val))
    rows = drawn(len(val), min(settings.n, len(val)))
    keys = alike(val.labels(rows), captions_of(val, rows), len(rows))
    pairs = len(matched_halves(keys, 0)[0])
    if CATALOG[name].least in (PAIRED, LOCAL) and pairs < LEAST_PAIRS:
        raise UserError(
            f"sweep.monitor={monitor}: {len(keys)} images of val make {pairs} pairs of the same label, and "
            f"it needs {LEAST_PAIRS}: give a larger evaluate.n, or sweep.monitor=right"
        )
    if name == "right" and not any(map(str, keys)):
        raise UserError("sweep.monitor=right: val has neither captions nor classes to be right about")
