"""Exported folders, read: their manifest, and generators from what lies beside it.

    lmsd.json        format, version, spec, config, knots, digests; files: each with its sha256 and size
    opens            in lmsd.json: a node for `lmsd.spec.build`, whose constructor is given `folder` and
                     returns the generator

So a format is read by a constructor on the allow-list that its writer names; nothing here knows any format.
A text of `opens` that begins with `PLACE` is a path within the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsd.checkpoints import put
from lmsd.errors import UserError
from lmsd.files import sha256_of
from lmsd.models.generator import Generator
from lmsd.spec import build

MANIFEST = "lmsd.json"
VERSION = 1
"""Of the manifest's layout."""
PLACE = "folder:"
WEIGHTS = "model.safetensors"
NET = "diffusion_pytorch_model.safetensors"
"""What diffusers calls a net's weights."""
REST = "extra.json"
"""What a state holds besides tensors: the tokenizer, and which codec and encoder the weights belong to."""


def manifest_in(folder: Path) -> dict[str, Any]:
    """The manifest of an exported folder, all of whose files are as they were written.

    Raises UserError for a manifest that cannot be read, a later version's, and a file that is missing or
    differs.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, files = int(content["version"]), dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: export the run again") from error
    if version > VERSION:
        raise UserError(f"{path} is of version {version}, and {VERSION} is read here: update lmsd")
    for name, told in files.items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing: copy the folder again, or export the run again")
        if file.stat().st_size != told["bytes"] or sha256_of(file) != told["sha256"]:
            raise UserError(
                f"{file} is damaged or was changed: copy the folder again, or export the run again"
            )
    return content  # type: ignore[no-any-return]


def opened(folder: Path, content: Mapping[str, Any]) -> Generator:
    """The generator of an exported folder, by its manifest.

    Raises UserError where the manifest names what may not be built, or builds something else.
    """
    built = build(placed(content["opens"], folder), folder=folder)
    match built:
        case Generator():
            return built
    raise UserError(f"{folder / MANIFEST}: it builds a {type(built).__name__} and no Generator")


def placed(node: Any, folder: Path) -> Any:
    """A tree of plain data whose paths within the folder are spelled out."""
    match node:
        case Mapping():
            return {key: placed(value, folder) for key, value in node.items()}
        case list() | tuple():
            return [placed(item, folder) for item in node]
        case str() if node.startswith(PLACE):
            return str(folder / node.removeprefix(PLACE))
    return node


def restored(generator: Generator, *, folder: Path) -> Generator:
    """A generator with the weights that lie in `WEIGHTS` and `REST`, bit-equal to what was exported.

    Raises UserError where they belong to another net, or some are missing.
    """
    from safetensors.torch import load_file

    rest = json.loads((folder / REST).read_text(encoding="utf-8"))
    mismatch = put(generator, {**load_file(folder / WEIGHTS), **rest})
    if mismatch.missing:
        raise UserError(
            f"{folder / WEIGHTS} lacks {', '.join(mismatch.missing[:5])}: its spec is of another net"
        )
    return generator


def given(generator: Generator, *, folder: Path) -> Generator:
    """The generator of a folder whose own files hold all of it."""
    return generator


def assembled(generator: Generator, *, component: str, folder: Path) -> Generator:
    """A generator around one of diffusers' nets, from the folder of its own pipeline.

    component: where the net lies. Raises UserError where weights are missing.
    """
    from safetensors.torch import load_file

    state = {f"net.model.{key}": v for key, v in load_file(folder / component / NET).items()}
    for key, value in load_file(folder / "extra.safetensors").items():
        state[f"conditioner.{key}" if key.startswith("table.") else f"net.{key}"] = value
    text = folder / "text_encoder" / "model.safetensors"
    for key, value in load_file(text).items() if text.is_file() else ():
        ours = f"conditioner.encoder.{key}"
        state[ours if ours in generator.state_dict() else ours.replace("text_model.", "", 1)] = value
    rest = json.loads((folder / REST).read_text(encoding="utf-8"))
    mismatch = put(generator, {**state, **rest})
    if mismatch.missing:
        raise UserError(f"{folder} lacks {', '.join(mismatch.missing[:5])}: export the run again")
    return generator
