"""Where the served model comes from: one run or folder, or what is promoted, which may change.

The pointer of `lmsd promote` is replaced whole; here its time and content are looked at, and a model that
cannot be opened never takes the place of one that serves.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lmsd.errors import UserError
from lmsd.evaluation.pointer import Promoted, read
from lmsd.files import sha256_of
from lmsd.sampling import Model

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
        else:
            found = self.promoted(self.pointer)
            model = self.open_(str(found.folder), found.file().name)
        return model, name_of(model)

    def promoted(self, pointer: Path) -> Promoted:
        """What the pointer names. Raises UserError where there is none, or it cannot be read."""
        self.changed()
        found, _ = read(pointer)
        if found is None:
            raise UserError(f"nothing is promoted yet ({pointer}): lmsd promote RUN first=true")
        return found

    def changed(self) -> bool:
        """Whether the pointer has other content than at the last look."""
        if self.pointer is None:
            return False
        try:
            stat = self.pointer.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp == self._stamp:
                return False
            digest = hashlib.sha256(self.pointer.read_bytes()).hexdigest()
        except OSError:
            return False
        self._stamp, before, self._digest = stamp, self._digest, digest
        return digest != before


def name_of(model: Model) -> str:
    """RUN/CHECKPOINT@EMA; of an exported folder FOLDER@DIGEST."""
    path = model.checkpoint
    if path.suffix != ".ckpt":
        return f"{path.absolute().parent.name}@{sha256_of(path)[:12]}" if path.is_file() else model.name
    return f"{path.absolute().parent.parent.name}/{path.name}@{model.ema}"
