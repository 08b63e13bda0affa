"""Where the served model comes from: one run or folder, or what is promoted, which may change.

    outputs/promoted.json   {"run": ID, "checkpoint": FILE, "sha256": ..., "history": [...]}

The pointer is replaced atomically by whoever promotes; here its time and content are looked at, and a model
that cannot be opened never takes the place of one that serves.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lmsd.checkpoints import OUTPUTS, find_run, folder_of
from lmsd.errors import UserError
from lmsd.files import sha256_of
from lmsd.sampling import Model

POINTER = "promoted.json"
Opened = tuple[Model, str]
"""A model and its name, by which answers tell it from others."""


@dataclass
class Source:
    """open_: opens a run by its path or id and the name of a checkpoint, None: the newest.

    run: as typed; pointer: the file that is looked at, None: nothing changes.
    """

    open_: Callable[[str, str | None], Model]
    run: str
    pointer: Path | None = None
    _stamp: tuple[int, int, int] | None = None
    _digest: str = field(default="", repr=False)

    def open(self) -> Opened:
        """The model of now. Raises UserError where there is none."""
        if self.pointer is None:
            model = self.open_(self.run, None)
            return model, name_of(model)
        run, checkpoint, digest = told(self._read(self.pointer), self.pointer)
        path = folder_of(find_run(run)) / "checkpoints" / Path(checkpoint).name
        if not path.is_file():
            raise UserError(f"{self.pointer} names {path}, which is not there: lmsd promote back")
        if sha256_of(path) != digest:
            raise UserError(f"{self.pointer}: {path} is not the file that was promoted: lmsd promote back")
        model = self.open_(run, path.name)
        return model, name_of(model)

    def changed(self) -> bool:
        """Whether the pointer has other content than when it was last opened."""
        if self.pointer is None:
            return False
        try:
            stat = self.pointer.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp == self._stamp:
                return False
            found = hashlib.sha256(self.pointer.read_bytes()).hexdigest()
        except OSError:
            return False
        self._stamp = stamp
        return found != self._digest

    def _read(self, pointer: Path) -> str:
        try:
            text = pointer.read_bytes()
        except OSError as error:
            raise UserError(
                f"run=promoted, and {pointer} is not there: lmsd promote RUN first=true"
            ) from error
        self._digest = hashlib.sha256(text).hexdigest()
        return text.decode(errors="replace")


def told(text: str, pointer: Path) -> tuple[str, str, str]:
    """(run, checkpoint, sha256) that a pointer names. Raises UserError for one that cannot be read."""
    try:
        content = json.loads(text)
        return str(content["run"]), str(content["checkpoint"]), str(content["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{pointer} cannot be read: lmsd promote RUN first=true writes it again") from error


def promoted_pointer() -> Path:
    """Where what is promoted is written."""
    return OUTPUTS / POINTER


def name_of(model: Model) -> str:
    """RUN/CHECKPOINT@EMA; of an exported folder FOLDER@DIGEST."""
    path = model.checkpoint
    if path.suffix != ".ckpt":
        return f"{path.absolute().parent.name}@{sha256_of(path)[:12]}" if path.is_file() else model.name
    return f"{path.absolute().parent.parent.name}/{path.name}@{model.ema}"
