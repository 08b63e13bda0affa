"""Checkpoints, written so that they are either complete or absent.

    step_000012800.ckpt.tmp.ID    written in the same folder through a hashing writer, fsynced
    step_000012800.ckpt           by rename; then the folder is fsynced
    step_000012800.json           sha256, size, images, updates, metrics; written last, likewise: the commit

`lmsd.checkpoints` reads them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

import lmsd
from lmsd.checkpoints import KEY, manifest_of, manifests, seal, tensors
from lmsd.engine.parts import all_of
from lmsd.files import replacing, write_text


class _Hashing(RawIOBase):
    """A file for writing that hashes and counts what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.sha256.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def write_atomic(
    path: Path, write: Callable[[IO[bytes]], None], *, stale: Path | None = None
) -> tuple[str, int]:
    """Write a file so that `path` holds either its old content or all of the new; returns (sha256, bytes).

    stale: a file that would no longer be true, removed just before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, stale=stale) as temporary, open(temporary, "wb") as file:
        hashing = _Hashing(file)
        try:
            write(cast(IO[bytes], hashing))
        except RuntimeError as error:  # what torch makes of an OSError
            raise hashing.error or error from error
    return hashing.sha256.hexdigest(), hashing.size


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint and then its manifest; raises OSError and leaves no trace if the disk is full."""
    sha256, size = write_atomic(path, lambda file: torch.save(checkpoint, file), stale=manifest_of(path))
    own = checkpoint.get(KEY, {})
    manifest = {
        "file": path.name,
        "sha256": sha256,
        "bytes": size,
        **own.get("clock", {}),
        "metrics": {name: v for name, v in own.get("metrics", {}).items() if math.isfinite(v)},
        "lmsd": lmsd.__version__,
        "torch": str(torch.__version__),
    }
    text = json.dumps({**manifest, "seal": seal(manifest)}, indent=1, allow_nan=False)
    write_text(manifest_of(path), text)


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first."""
    manifest_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@torch.no_grad()
def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """The name of a tensor with a NaN or an infinity; None if all are finite. Waits for the device."""
    floats = [(name, value) for name, value in tensors(state) if value.is_floating_point()]
    found = [(name, all_of(value.isfinite().all())) for name, value in floats]
    if not found or bool(torch.stack([good.to(found[0][1].device) for _, good in found]).all()):
        return None
    return next(name for name, good in found if not good)


def prune(
    folder: Path,
    *,
    keep_last: int,
    keep_every: int = 0,
    best: Path | None = None,
    kept: Callable[[Path], bool] = lambda path: False,
) -> None:
    """Delete all but the last, the first past every multiple of `keep_every` images, `best`, and `kept`."""
    known = manifests(folder)
    keep = {*list(known)[-keep_last:], best}
    if keep_every:
        marks = {int(m["images"]) // keep_every: path for path, m in reversed(known.items())}
        keep |= {path for mark, path in marks.items() if mark}
    for path in known.keys() - keep:
        if not kept(path):
            remove(path)
