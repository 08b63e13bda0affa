"""metrics.jsonl: one line of JSON for each set of metrics, keyed by images seen."""

import json
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmsd.engine.checkpoint import write_bytes


class JSONLLogger(Logger):
    """Appends {"images": n, "time": unix seconds, name: value, ...} to a file, flushed line by line.

    Numbers that are not finite are written as null, which JSON has.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one version."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line; `step` is the number of images seen."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"images": step, "time": round(time.time(), 3), **values}, allow_nan=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is a file of its own in the run folder."""

    @rank_zero_only
    def truncate(self, images: int) -> None:
        """Drop the lines after `images` images, which a resumed run writes again, and one cut short."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if _within(line, images)]
        write_bytes(self.path, b"".join(kept))


def _within(line: bytes, images: int) -> bool:
    try:
        return line.endswith(b"\n") and int(json.loads(line)["images"]) <= images
    except (ValueError, KeyError, TypeError):
        return False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
