"""metrics.jsonl: one line of JSON for each set of metrics, keyed by images seen."""

import json
import math
import time
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmsd.files import replacing


class JSONLLogger(Logger):
    """Appends {"images": n, "time": unix seconds, name: value, ...} to a file, flushed line by line.

    Numbers that are not finite are written as null, which JSON has. On a full disk lines wait in memory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._waiting = b""

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
        self._waiting += f"{line}\n".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, self._waiting)
            self._waiting = b""
        except OSError as error:
            warnings.warn(f"{self.path} not written ({error}); tried again with the next line", stacklevel=2)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is a file of its own in the run folder."""

    @rank_zero_only
    def truncate(self, images: int, *, scored: bool = True) -> None:
        """Drop the lines after `images` images, which a resumed run writes again, and one cut short.

        A run that begins drops all: it scores its untrained weights again, as it does weights that were not
        `scored` when they were saved.
        """
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True) if images else []
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(line for line in lines if _stays(line, images, scored)))


def rewind(loggers: Iterable[Logger], images: int, *, scored: bool) -> None:
    """Drop from our own file what a run that goes on from `images` images will write again."""
    for logger in loggers:
        if isinstance(logger, JSONLLogger):
            logger.truncate(images, scored=scored)


def append(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(28, "No space left on device", str(path))
        except OSError:
            file.truncate(before)
            raise


def _stays(line: bytes, images: int, scored: bool) -> bool:
    try:
        values = json.loads(line)
        late = values["images"] > images or (
            values["images"] == images and not scored and any(name.startswith("val/") for name in values)
        )
        return line.endswith(b"\n") and not late
    except (ValueError, KeyError, TypeError):
        return False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
