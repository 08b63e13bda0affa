"""`export`: what every format goes through, from the model to a folder with a name.

write      into FOLDER.tmp.ID, beside it
lmsd.json  format, version, spec, configuration, knots, digests, and every file with its sha256
gate       the folder is opened with `lmsd.load` and compared with the model: parity.json
README.md  the model card
rename     to FOLDER, once all of it is on the disk; what fails the gate gets no name and is removed
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from lmsd import __version__
from lmsd.errors import UserError
from lmsd.export.base import Format, Parity, Written
from lmsd.export.card import Told, card
from lmsd.files import sha256_of, sync
from lmsd.models.exported import MANIFEST, VERSION
from lmsd.models.runtimes import ProgramGenerator
from lmsd.sampling import levels
from lmsd.sampling.model import Model

PLAIN = (bool, int, str, type(None))
"""Types of options that a manifest keeps; folders of this machine are left out."""
PRIVATE = ("path", "prompts", "captions")
"""Of a method, what nobody needs to sample what it taught."""


def format_of(name: str) -> Format:
    """The module of a format."""
    found: Any = import_module(f"lmsd.export.{name}")
    return found  # type: ignore[no-any-return]


def export(model: Model, name: str, to: Path, options: Any, told: Told) -> Parity:
    """Write a model as format `name` into the new folder `to`; what the gate measured.

    model: with the settings that it is to be sampled with in its configuration; options: the format's; told:
    for the card. Raises UserError where `to` holds something, where the format cannot hold the model, and
    where the folder does not give the model back.
    """
    if type(model.generator) is ProgramGenerator:
        raise UserError(
            f"{model.checkpoint.parent} holds programs, of which nothing else can be made: export the run "
            "itself, or a folder of format=safetensors"
        )
    kind = format_of(name)
    with naming(to) as folder:
        written = kind.write(model, folder, options)
        (folder / MANIFEST).write_text(
            json.dumps(manifest(model, name, folder, written, options), indent=1) + "\n", encoding="utf-8"
        )
        parity = kind.check(folder, model)
        if not parity.held:
            raise UserError(
                f"format={name} does not give this model back, and nothing was written: {parity.missed}; "
                "format=safetensors keeps every bit"
            )
        (folder / "parity.json").write_text(json.dumps(parity.plain(), indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(card(model, name, written, parity, told), encoding="utf-8")
    return parity


def check_place(to: Path) -> None:
    """Raise UserError for a place where something is, or nothing may be written."""
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise UserError(f"to={to} exists: name a new folder, or remove it")
    place = to.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"to={to}: {place} is no folder that may be written; name another place")


@contextmanager
def naming(to: Path) -> Iterator[Path]:
    """A new folder beside `to` for the block to fill, which gets that name if nothing is raised."""
    check_place(to)
    folder = to.with_name(f"{to.name}.tmp.{os.urandom(4).hex()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        for path in sorted(folder.rglob("*"), reverse=True):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some libraries write for their user alone
            sync(path)
        sync(folder)
        folder.rename(to)
        sync(to.absolute().parent)
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"to={to} cannot be written: {said}; name another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def manifest(model: Model, name: str, folder: Path, written: Written, options: Any) -> dict[str, Any]:
    """What lmsd.json says."""
    settings = model.generation().settings
    return {
        "format": name,
        "version": VERSION,
        "lmsd": __version__,
        "name": model.name,
        "opens": written.opens,
        "needs": list(written.needs),
        "options": {name: value for name, value in vars(options).items() if type(value) in PLAIN},
        "images": model.images,
        "ema": model.ema,
        "knots": [level.time for level in levels(model.generator.process.schedule, settings.steps)],
        "steps": settings.steps,
        "guidance": settings.guidance,
        "interval": settings.interval,
        "sampler": model.config["sampler"],
        "image_shape": list(model.generator.image_shape),
        "digests": digests(model),
        "spec": written.spec,
        "config": kept(model.config),
        "files": {
            path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def kept(config: Mapping[str, Any]) -> str:
    """What of a run's configuration an exported model is sampled by, YAML, without paths and captions."""
    own = {key: config["evaluate"].get(key) for key in ("steps", "guidance", "interval")}
    parts = {key: public(config[key]) for key in ("name", "sampler", "objective") if key in config}
    return str(yaml.safe_dump({**parts, "evaluate": own}, sort_keys=False))


def public(node: Any) -> Any:
    """A node without places on this machine (a teacher's, a reward's) and without texts of the data."""
    match node:
        case Mapping():
            return {key: public(value) for key, value in node.items() if key not in PRIVATE}
    return node


def digests(model: Model) -> dict[str, str]:
    """sha256 of the checkpoint and of the exported weights, by names and bytes."""
    found = hashlib.sha256()
    for name, value in sorted(model.generator.state_dict().items()):
        if torch.is_tensor(value):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    own = {"checkpoint": sha256_of(model.checkpoint)} if model.checkpoint.is_file() else {}
    return {**own, "weights": found.hexdigest()}
