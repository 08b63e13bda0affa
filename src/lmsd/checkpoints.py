"""Reading checkpoints: which are intact, which is the newest, and what one holds under which names.

    step_000012800.ckpt           tensors and plain Python only, read with `weights_only=True`
    step_000012800.json           its manifest: sha256, size, images, metrics; written last, the commit

A checkpoint without a manifest does not count, unless nothing else is left and its own checksums hold. The
number in the name counts images seen, which depends neither on the batch size nor on how often players play.

Weights are stored under `players.ROLE.*` and `ema.ROLE.HALFLIFE.*`. `init_from=` and sampling refer to them:

    RUN|PATH[:player][@ema]      outputs/a-run            the generator's raw weights, newest checkpoint
                                 outputs/a-run@ema        the generator's first EMA
                                 outputs/a-run@50000      the one with a half-life of 50,000 images
                                 a.ckpt:discriminator     another player

Whether raw or averaged is always stated, never guessed.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.errors import UserError
from lmsd.files import sha256_of
from lmsd.spec import plain

if TYPE_CHECKING:  # torch is imported by what reads a file: runs are found without it
    from torch import Tensor, nn

VERSION = 3
OUTPUTS = Path("outputs")
PATTERN = "step_*.ckpt"
KEY = "lmsd"
"""The key of the engine's own state in a checkpoint: version, clock, objective, config, metrics."""

_REF = re.compile(r"(?P<path>.+?)(:(?P<player>[a-z_]\w*))?(@(?P<ema>ema|\d+))?")
_PLAYER = re.compile(r"players\.(?P<role>\w+)\.")
_AVERAGE = re.compile(r"ema\.(?P<role>\w+)\.(?P<half_life>\d+)\.")


def checkpoint_name(images: int) -> str:
    """The file's name after `images` images seen."""
    return f"step_{images:09d}.ckpt"


def manifest_of(path: Path) -> Path:
    """The manifest beside a checkpoint."""
    return path.with_suffix(".json")


def seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's other entries, so that damage to any of them is noticed."""
    rest = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def manifest_at(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None if there is none, or it is damaged."""
    try:
        manifest = json.loads(manifest_of(path).read_text())
    except (OSError, ValueError):
        return None
    sealed = isinstance(manifest, dict) and manifest.get("seal") == seal(manifest)
    return manifest if sealed else None


def images_of(path: Path) -> int:
    """The images that a checkpoint has seen, by its manifest, else by its content."""
    manifest = manifest_at(path)
    return int(read(path)[KEY]["clock"]["images"] if manifest is None else manifest["images"])


def manifests(folder: Path) -> dict[Path, dict[str, Any]]:
    """The committed checkpoints of a folder with their manifests, oldest first."""
    found = {path: manifest_at(path) for path in folder.glob(PATTERN)}
    known = {path: manifest for path, manifest in found.items() if manifest is not None}
    return dict(sorted(known.items(), key=lambda item: int(item[1]["images"])))


def intact(path: Path) -> bool:
    """Whether a file matches its manifest, by size and sha256."""
    manifest = manifest_at(path)
    try:
        if manifest is None or path.stat().st_size != manifest["bytes"]:
            return False
        return bool(sha256_of(path) == manifest["sha256"])
    except OSError:
        return False


def whole(path: Path) -> bool:
    """Whether a file without a good manifest (killed before the commit, copied alone) is sound by itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def set_aside(path: Path) -> None:
    """Rename a bad checkpoint, so that nothing finds it any more."""
    for file in (manifest_of(path), path):
        with contextlib.suppress(FileNotFoundError):
            os.replace(file, file.with_name(f"{file.name}.bad"))


def newest(folder: Path, *, aside: bool = False) -> Path | None:
    """The newest intact checkpoint of a folder; None if there is no checkpoint at all.

    aside: rename damaged ones to NAME.bad, for a caller that is going to write here. Raises UserError if
    there are checkpoints but none is intact: a run is never silently restarted.
    """
    for path in folder.glob(PATTERN):
        if manifest_of(path).exists() and manifest_at(path) is None:
            warnings.warn(f"the manifest of checkpoint {path} is damaged; it is skipped", stacklevel=2)
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
    """An intact checkpoint: the very file that is named, or the newest in a run or checkpoints folder.

    aside: as in `newest`. Raises UserError if a named file is damaged or absent, and names the newest intact
    one beside it, but never takes another file than the one asked for; and if a folder holds none.
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
    import torch

    found = find(path)
    try:
        loaded = torch.load(found, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{found} is read for weights and plain data only, and holds something else; nothing in it was "
            "run: give a checkpoint of lmsd, or convert it if you trust it"
        ) from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("state_dict"), dict):
        raise UserError(f"{found} holds no state_dict: give a checkpoint of lmsd")
    try:
        return migrated(loaded)
    except UserError as error:
        raise UserError(f"{found}: {error}") from error


def migrated(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's content in today's version; weights from elsewhere stay as they are.

    Raises UserError for a version that is too old, or of a later lmsd.
    """
    while (own := content.get(KEY)) is not None and own.get("version") != VERSION:
        version = own.get("version", 0)
        if version not in MIGRATIONS:
            way = "a later lmsd" if version > VERSION else "the lmsd that wrote it"
            oldest = min(MIGRATIONS)
            raise UserError(
                f"it is of version {version}, and {oldest} to {VERSION} are read here: take {way}"
            )
        content = MIGRATIONS[version](content)
    return content


def _from_2(content: dict[str, Any]) -> dict[str, Any]:
    """Only the generator had averages, optimizers were a list in the players' order; there was no spec."""
    own = content[KEY]
    state = {re.sub(r"^ema\.", "ema.generator.", key): value for key, value in content["state_dict"].items()}
    optimizers = dict(zip(own["players"], content["optimizer_states"], strict=True))
    rest = {key: value for key, value in content.items() if key != "optimizer_states"}
    mine = {"line": {}, **own, **_spec_of_2(str(own.get("config", ""))), "version": 3}
    return {**rest, "state_dict": state, "optimizers": optimizers, KEY: mine}


def _spec_of_2(text: str) -> dict[str, Any]:
    """The generator's tree, as "spec", from the configuration of a run, which diffused pixels.

    Empty for a run started from Python, whose configuration is empty or describes no generator.
    """
    config = plain(text) if text.strip() else {}
    if not config.keys() >= {"schedule", "conditioner", "net", "data", "generator"}:
        return {}
    spec = {
        "_target_": "lmsd.models.parts.from_parts",
        "schedule": config["schedule"],
        "conditioner": config["conditioner"],
        "net": {**config["net"], "_partial_": True},
        "channels": config["data"]["channels"],
        "image_size": config["data"]["image_size"],
        **config["generator"],
    }
    return {"spec": spec}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {2: _from_2}
"""What turns a checkpoint of a version into one of the next."""


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, "Tensor"]]:
    """Every tensor in nested dicts, lists and tuples, by its place."""
    from torch import Tensor

    match value:
        case Tensor():
            yield name, value
        case Mapping():
            for key, item in value.items():
                yield from tensors(item, f"{name}.{key}" if name else str(key))
        case list() | tuple():
            for number, item in enumerate(value):
                yield from tensors(item, f"{name}.{number}")


def roles(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The players whose weights a checkpoint's content holds, trained and frozen."""
    found = (_PLAYER.match(key) for key in content["state_dict"])
    return tuple(dict.fromkeys(match["role"] for match in found if match))


def averages(content: Mapping[str, Any], role: str) -> dict[str, str]:
    """The half-lives in images of a player's averages, in the configured order, and how their keys begin."""
    found = (_AVERAGE.match(key) for key in content["state_dict"])
    return {m["half_life"]: m[0] for m in found if m and m["role"] == role}


def weights(content: Mapping[str, Any], role: str, ema: str | None = None) -> dict[str, "Tensor"]:
    """One player's state from a checkpoint's content.

    ema: None for raw weights, "ema" for the first average, a half-life in images for another. Raises
    UserError if there is no such player or average.
    """
    prefix = f"players.{role}."
    if ema is not None:
        kept = averages(content, role)
        half_life = next(iter(kept), "") if ema == "ema" else ema
        if half_life not in kept:
            there = ", ".join(kept) or "none"
            raise UserError(f"the checkpoint holds no EMA {ema!r} of {role!r}; there are {there}, and raw")
        prefix = kept[half_life]
    state = content["state_dict"]
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise UserError(f"the checkpoint holds no player {role!r}; there are {', '.join(roles(content))}")
    return found


def spec_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's own tree, for `lmsd.spec.build`."""
    own = content.get(KEY, {})
    if "spec" not in own:
        raise UserError("it holds no spec of a generator: init_from= takes weights from elsewhere")
    return dict(own["spec"])


@dataclass(frozen=True)
class WeightsRef:
    """Where to find weights; ema: None for raw weights, "ema" for the first average, or a half-life."""

    path: Path
    player: str = "generator"
    ema: str | None = None

    @classmethod
    def parse(cls, text: str) -> "WeightsRef":
        """RUN|PATH[:player][@ema]."""
        match = _REF.fullmatch(text)
        if match is None:
            raise UserError(f"init_from={text!r} is not RUN|PATH[:player][@ema]")
        return cls(Path(match["path"]), match["player"] or "generator", match["ema"])


@dataclass(frozen=True)
class Mismatch:
    """Keys that the module has and the checkpoint lacks, and vice versa."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]


def load_weights(
    module: "nn.Module", path: Path, *, player: str = "generator", ema: str | None = None
) -> Mismatch:
    """Copy a player's weights from a checkpoint or run into `module`; returns the keys that did not match.

    ema: as in `weights`. Raises UserError if a shape differs or nothing matches.
    """
    content = read(path)
    try:
        return put(module, weights(content, player, ema))
    except UserError as error:
        raise UserError(f"init_from={path}: {error}") from error


def put(module: "nn.Module", state: Mapping[str, "Tensor"]) -> Mismatch:
    """Load a state into a module; returns the keys that did not match.

    Raises UserError if a shape differs or nothing matches.
    """
    own = module.state_dict()
    for key in own.keys() & state.keys():
        ours, theirs = _size(own[key]), _size(state[key])
        if ours != theirs:
            raise UserError(
                f"{key} is {ours} here and {theirs} there: build the same net, or choose another checkpoint"
            )
    if not any(_size(own[key]) != _NONE for key in own.keys() & state.keys()):
        raise UserError(f"it shares no key with this {type(module).__name__}")
    result = module.load_state_dict(state, strict=False)
    return Mismatch(tuple(result.missing_keys), tuple(result.unexpected_keys))


_NONE = "no tensor"


def _size(value: object) -> str:
    from torch import Tensor

    return str(list(value.shape)) if isinstance(value, Tensor) else _NONE


# -- runs ---------------------------------------------------------------------------------------------------


def folder_of(source: Path) -> Path:
    """The folder of a run, given that or one of its checkpoints."""
    return source.parent.parent if source.suffix == ".ckpt" else source


def by_age(pattern: str = "*") -> list[Path]:
    """The runs in outputs/ whose names match, sorted by when they began."""
    found = [path.parent for path in OUTPUTS.glob(f"{pattern}/config.yaml") if not path.parent.is_symlink()]
    return sorted(found, key=lambda folder: (begun(folder), folder.name))


def begun(folder: Path) -> float:
    """When a run began, in seconds since 1970; resuming does not change it."""
    try:
        return float(json.loads((folder / "env.json").read_text())["begun"])
    except (OSError, ValueError, KeyError, TypeError):  # of an older version
        first = folder / "overrides.txt"
        return (first if first.is_file() else folder / "config.yaml").stat().st_mtime


def find_run(name: str) -> Path:
    """The folder of a run by its path, its id, or `last` for the newest; or a checkpoint by its path."""
    path = Path(name) if Path(name).exists() else Path(name.replace("\\", "/")).expanduser()
    if (folder_of(path) / "config.yaml").is_file():
        return path
    if (path / "lmsd.json").is_file():
        why = f"{name} is an exported folder, which lmsd.load opens in Python"
        raise UserError(f"{why}: name the run itself here")
    known = by_age()
    if name in ("last", "latest") and known:
        return known[-1]
    found = [path for path in known if path.name == name or path.name.endswith(f"-{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"run '{name}' names {len(found)} folders: {', '.join(map(str, found))}; give the whole name"
        )
    listed = ", ".join(path.name for path in known[-5:]) or "none yet"
    raise UserError(f"no run '{name}' in {OUTPUTS}/; the newest: {listed}")
