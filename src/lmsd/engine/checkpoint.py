"""Checkpoints that are whole or absent.

    step_000012800.ckpt.tmp.ID    written in the same folder through a hashing writer, fsynced
    step_000012800.ckpt           by rename; then the folder is fsynced
    step_000012800.json           sha256, size, images, updates, metrics; written so too, last: the commit

A checkpoint without its manifest does not exist, unless nothing else is left and its own checksums hold. The
number is that of images seen, which does not depend on the batch size or on how often each player plays. A
file holds tensors and plain Python only and is read with `weights_only=True`; nothing in it can run code.
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

import lmsd
from lmsd.engine.parts import all_of
from lmsd.errors import UserError
from lmsd.files import replacing, write_text

PATTERN = "step_*.ckpt"
KEY = "lmsd"
"""Where in a checkpoint the engine's own state lies: version, clock, objective, config, metrics."""


def checkpoint_name(images: int) -> str:
    """The file's name after `images` images seen."""
    return f"step_{images:09d}.ckpt"


def manifest_of(path: Path) -> Path:
    """The manifest beside a checkpoint."""
    return path.with_suffix(".json")


class _Hashing(RawIOBase):
    """A file for writing that hashes and counts what goes through it."""

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

    stale: what is no longer true from then on, and removed just before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, stale=stale) as temporary, open(temporary, "wb") as file:
        hashing = _Hashing(file)
        try:
            write(cast(IO[bytes], hashing))
        except RuntimeError as error:  # what torch makes of a write that the system refused
            raise hashing.error or error from error
    return hashing.sha256.hexdigest(), hashing.size


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint and then its manifest; raises OSError and leaves no trace where the disk is full."""
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
    text = json.dumps({**manifest, "seal": _seal(manifest)}, indent=1, allow_nan=False)
    write_text(manifest_of(path), text)


def _seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's other words, so that damage to any of them is noticed."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def manifest_at(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None where there is none, or it is damaged."""
    try:
        manifest = json.loads(manifest_of(path).read_text())
    except (OSError, ValueError):
        return None
    sealed = isinstance(manifest, dict) and manifest.get("seal") == _seal(manifest)
    return manifest if sealed else None


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first."""
    manifest_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def manifests(folder: Path) -> dict[Path, dict[str, Any]]:
    """The committed checkpoints of a folder with their manifests, oldest first."""
    found = {path: manifest_at(path) for path in folder.glob(PATTERN)}
    known = {path: manifest for path, manifest in found.items() if manifest is not None}
    return dict(sorted(known.items(), key=lambda item: int(item[1]["images"])))


def intact(path: Path) -> bool:
    """Whether a file is what its manifest says, by size and sha256."""
    manifest = manifest_at(path)
    try:
        if manifest is None or path.stat().st_size != manifest["bytes"]:
            return False
        with open(path, "rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == manifest["sha256"])
    except OSError:
        return False


def whole(path: Path) -> bool:
    """Whether a file with no good manifest (killed before its commit, copied alone) is sound by itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def set_aside(path: Path) -> None:
    """Keep a bad checkpoint under another name, where nothing looks for it."""
    for file in (manifest_of(path), path):
        with contextlib.suppress(FileNotFoundError):
            os.replace(file, file.with_name(f"{file.name}.bad"))


def newest(folder: Path, *, aside: bool = False) -> Path | None:
    """The newest intact checkpoint of a folder; None where there is no checkpoint at all.

    aside: rename damaged ones to NAME.bad, for whoever is going to write here. Raises UserError where there
    are checkpoints and none is intact: a run is never silently begun anew.
    """
    for path in folder.glob(PATTERN):
        if manifest_of(path).exists() and manifest_at(path) is None:
            warnings.warn(f"the manifest of checkpoint {path} is damaged; it is passed by", stacklevel=2)
    for path in reversed(manifests(folder)):
        if intact(path):
            return path
        warnings.warn(f"checkpoint {path} is damaged; trying the one before", stacklevel=2)
        if aside:
            set_aside(path)
    rest = sorted(folder.glob(PATTERN), reverse=True)
    for path in rest:
        if manifest_at(path) is None and whole(path):
            warnings.warn(f"checkpoint {path} has no good manifest; its own checksums hold", stacklevel=2)
            return path
    if rest or any(folder.glob(f"{PATTERN}.bad")):
        raise UserError(
            f"no checkpoint in {folder} is intact: begin a new run, or move the folder away to begin anew"
        )
    return None


def find(path: Path, *, aside: bool = False) -> Path:
    """An intact checkpoint: the very file that is named, or the newest of a run or checkpoints folder.

    aside: as in `newest`. Raises UserError for a file that is damaged or absent, with the newest intact one
    beside it: who names a file is never given another. Raises it, too, where a folder holds none.
    """
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        found = newest(folder, aside=aside)
        if found is None:
            raise UserError(f"no checkpoint ({PATTERN}) in {folder}: give a run folder, or a file")
        return found
    if intact(path) or (manifest_at(path) is None and whole(path)):
        return path
    other = next((known for known in reversed(manifests(path.parent)) if intact(known)), None)
    way = "a run folder, or a file" if other is None else f"{other}, the newest that is whole"
    if not path.exists():
        raise UserError(f"no checkpoint {path}: give {way}")
    raise UserError(f"checkpoint {path} is damaged or was never completed: give {way}")


def read(path: Path) -> dict[str, Any]:
    """The content of `find(path)`, on the CPU. Raises UserError for a file of another kind."""
    found = find(path)
    try:
        loaded = torch.load(found, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{found} is read for weights and plain data only, and holds something else; nothing in it was "
            "run: give a checkpoint of lmsd, or convert it where you trust it"
        ) from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("state_dict"), dict):
        raise UserError(f"{found} holds no state_dict: give a checkpoint of lmsd")
    return loaded


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts, lists and tuples, by its place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors(item, f"{name}.{number}")


@torch.no_grad()
def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """The place of a tensor that holds NaN or an infinity; None where all is finite. Waits for the device."""
    floats = [(name, value) for name, value in tensors(state) if value.is_floating_point()]
    found = [(name, all_of(value.isfinite().all())) for name, value in floats]
    if not found or bool(torch.stack([good.to(found[0][1].device) for _, good in found]).all()):
        return None
    return next(name for name, good in found if not good)


def prune(folder: Path, *, keep_last: int, keep_every: int = 0, best: Path | None = None) -> None:
    """Delete all but the last, the first one past every multiple of `keep_every` images, and `best`."""
    known = manifests(folder)
    keep = {*list(known)[-keep_last:], best}
    if keep_every:
        marks = {int(m["images"]) // keep_every: path for path, m in reversed(known.items())}
        keep |= {path for mark, path in marks.items() if mark}
    for path in known.keys() - keep:
        remove(path)
