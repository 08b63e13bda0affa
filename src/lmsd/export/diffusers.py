"""`format=diffusers`: a folder for plain diffusers.

A pipeline's run goes out as the folder that it began from, with its own net: everything else is copied as it
is, so that older readers find the names and files that they know. A run from scratch, whose net is one of
diffusers', becomes components and a pipeline of its own (`lmsd.export.own_pipeline`).
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.export.base import Parity, Row, Written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".onnx", ".json")
"""Files of a net's weights, and their indices."""


OWN = (
    "Without lmsd: `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER + '/pipeline.py', "
    "trust_remote_code=True)`."
)


@dataclass(frozen=True)
class Options:
    """It takes none."""


def write(model: "Model", folder: Path, options: Options) -> Written:
    """The base folder with the trained net, or the components of a run from scratch.

    Raises UserError for a run from scratch that diffusers has no counterpart of.
    """
    from lmsd.models.exported import PLACE, REST
    from lmsd.models.pipeline import PipelineGenerator

    generator = model.generator
    if type(generator) is not PipelineGenerator:
        from lmsd.export import own_pipeline

        component = own_pipeline.write(model, folder)
        rest = {
            name: value for name, value in generator.state_dict().items() if name.endswith("_extra_state")
        }
        (folder / REST).write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")
        opens = {
            "_target_": "lmsd.models.exported.assembled",
            "generator": model.spec,
            "component": component,
        }
        return Written(opens, model.spec, needs=("diffusers",), notes=(OWN,))
    base, name = Path(str(model.spec["path"])), generator.net.layout.net  # type: ignore[attr-defined]
    shutil.copytree(base, folder, dirs_exist_ok=True, ignore=partial(without_weights, base / name))
    net: Any = generator.net.model  # type: ignore[attr-defined]
    net.save_pretrained(folder / name, safe_serialization=True, variant=model.spec.get("variant"))
    spec = {**model.spec, "path": PLACE}
    return Written({"_target_": "lmsd.models.exported.given", "generator": spec}, spec, needs=("diffusers",))


def without_weights(net: Path, where: str, names: list[str]) -> list[str]:
    """What of a folder is not copied: the base net's files, hidden files, and single-file checkpoints."""
    place = Path(where)
    hidden = [name for name in names if name.startswith(".")]
    if place == net:
        return [*hidden, *(name for name in names if Path(name).suffix in SUFFIXES)]
    top = (place / "model_index.json").is_file()
    return [*hidden, *(name for name in names if top and Path(name).suffix in SUFFIXES[:-1])]


def check(folder: Path, model: "Model") -> Parity:
    """Equal to the last bit through `lmsd.load`; and plain diffusers finds every weight of the net."""
    from lmsd.export.gate import EXACT, Limits, compare
    from lmsd.models.pipeline import PipelineGenerator
    from lmsd.sampling.model import load

    found = compare(model, load(folder), EXACT)
    if type(model.generator) is not PipelineGenerator:
        from lmsd.export import own_pipeline

        return Parity((*found.rows, own_pipeline.row(folder, model, Limits())), found.setup)
    apart = Row("tensors of the net that plain diffusers reads otherwise", strange(folder, model), 0)
    return Parity((*found.rows, apart), found.setup)


def strange(folder: Path, model: "Model") -> int:
    """How many tensors differ, or are missing, in the net of `DiffusionPipeline.from_pretrained`."""
    import diffusers

    net: Any = model.generator.net
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
        str(folder), local_files_only=True, variant=model.spec.get("variant")
    )
    theirs: Mapping[str, Any] = pipeline.components[net.layout.net].state_dict()
    ours = net.model.state_dict()
    equal = [key for key in ours.keys() & theirs.keys() if bool((ours[key] == theirs[key]).all())]
    return len(ours.keys() | theirs.keys()) - len(equal)
