"""The promoted model: one small file that names the run to serve, replaced whole.

    outputs/promoted.json   {"run": ID, "checkpoint": "step_000012800.ckpt", "sha256": ..., "history": [...]}

A reader finds the model before or the model after, never half of either. history: those before it, the newest
last, each with run, checkpoint and sha256.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

from lmsd.checkpoints import OUTPUTS, intact, manifest_at, manifests
from lmsd.errors import UserError
from lmsd.files import write_text

POINTER = "promoted.json"


@dataclass(frozen=True)
class Promoted:
    """One checkpoint of one run; run: the name of its folder in outputs/, or a path."""

    run: str
    checkpoint: str
    sha256: str

    @classmethod
    def of(cls, folder: Path, checkpoint: Path) -> "Promoted":
        """That checkpoint of the run in `folder`. Raises UserError for one without a good manifest."""
        manifest = manifest_at(checkpoint)
        if manifest is None:
            raise UserError(
                f"{checkpoint} has no good manifest to be known again by: name another checkpoint"
            )
        real = folder.resolve()  # outputs/latest would be another run tomorrow
        name = real.name if real.parent == OUTPUTS.resolve() else str(real)
        return cls(name, checkpoint.name, str(manifest["sha256"]))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return OUTPUTS / self.run  # a path that is absolute stays as it is

    @property
    def _path(self) -> Path:
        return self.folder / "checkpoints" / self.checkpoint

    def whole(self) -> bool:
        """Whether the checkpoint is there, and the one that was promoted."""
        manifest = manifest_at(self._path)
        return manifest is not None and manifest["sha256"] == self.sha256 and intact(self._path)

    def file(self) -> Path:
        """The checkpoint's file. Raises UserError where it is gone, damaged or another one by now."""
        path = self._path
        if not self.whole():
            raise UserError(
                f"the promoted checkpoint {path} is gone, damaged or another one by now: go back to the one "
                "before with lmsd promote back, or begin anew with lmsd promote RUN first=true"
            )
        return path


def read(path: Path | None = None) -> tuple[Promoted | None, list[Promoted]]:
    """The promoted model, None before the first, and those before it, the newest last.

    path: of the pointer; default: outputs/promoted.json. Raises UserError for a damaged file.
    """
    path = OUTPUTS / POINTER if path is None else path
    if not path.is_file():
        return None, []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _one(content), [_one(each) for each in content["history"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is damaged and cannot be read: delete it, and begin anew with lmsd promote RUN "
            "first=true"
        ) from None


def _one(content: Mapping[str, Any]) -> Promoted:
    return Promoted(*(str(content[name]) for name in ("run", "checkpoint", "sha256")))


def is_kept(checkpoint: Path) -> bool:
    """Whether a checkpoint is promoted, or one to which `lmsd promote back` may return: none to delete.

    Where the pointer is damaged, nobody can tell, and all are kept.
    """
    try:
        now, history = read()
    except UserError:
        return True
    named = [*history, *([] if now is None else [now])]
    return any(
        each.checkpoint == checkpoint.name and each.folder.resolve() == checkpoint.parents[1].resolve()
        for each in named
    )


def refuse_earlier(source: Path) -> None:
    """Refuse to go on from a checkpoint before one that is promoted, which would be written anew."""
    later = dropwhile(lambda path: path.name != source.name, manifests(source.parent))
    path = next((path for path in islice(later, 1, None) if is_kept(path)), None)
    if path is not None:
        run = source.parent.parent
        raise UserError(
            f"{path} is promoted, and going on from {source.name} would write it anew: resume={run} goes on "
            f"from the newest, and extend={source} images=MORE in a new run"
        )


def point(to: Promoted, history: list[Promoted]) -> Path:
    """Replace the pointer, entirely or not at all; its path."""
    path = OUTPUTS / POINTER
    content = {**asdict(to), "history": [asdict(each) for each in history]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path
