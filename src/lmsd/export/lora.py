"""`format=lora`: what a run's adapters learned, in one file that plain diffusers loads with the same effect.

pytorch_lora_weights.safetensors    diffusers' keys, the scale folded in: `pipe.load_lora_weights(FOLDER)`

The base is no part of the folder; the spec says where it was.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.errors import UserError
from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from torch import Tensor

    from lmsd.sampling.model import Model

FILE = "pytorch_lora_weights.safetensors"
READ = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3", "Flux", "Sana")
"""Families whose pipelines in diffusers read such a file."""


@dataclass(frozen=True)
class Options:
    """It takes none."""


def write(model: "Model", folder: Path, options: Options) -> Written:
    """The adapters. Raises UserError for a run without any."""
    from lmsd.models.pipeline import PipelineNet
    from lmsd.tuning.written import diffusers_keys

    net = model.generator.net
    family = type(net.layout).__name__ if isinstance(net, PipelineNet) else None
    notes = () if family in READ else ("diffusers has no reader of this file for this net; lmsd reads it.",)
    return written(model, folder / FILE, diffusers_keys, notes)


def written(
    model: "Model",
    file: Path,
    keys: "Callable[[Mapping[Any, Any]], Mapping[str, Tensor]]",
    notes: tuple[str, ...],
) -> Written:
    """A file of the model's adapters under the names that `keys` gives them."""
    from safetensors.torch import save_file

    from lmsd.tuning.low import changes

    found = changes(model.generator)
    if not found:
        raise UserError(f"{model.name} has no adapters, which tuning=lora makes: take another format")
    save_file(dict(keys(found)), file, metadata={"format": "pt"})
    return Written(opens(model, file), model.spec, needs=("diffusers", "peft"), notes=notes)


def opens(model: "Model", file: Path) -> dict[str, Any]:
    """The node that reads a file back onto the base, as any reader does: at scale 1."""
    from lmsd.models.exported import PLACE

    tuning = {**model.spec["tuning"], "alpha": None, "rslora": False}
    spec = {**model.spec, "tuning": tuning}
    return {"_target_": "lmsd.tuning.files.filled", "generator": spec, "file": f"{PLACE}{file.name}"}


def check(folder: Path, model: "Model") -> Parity:
    """The base with the file loaded onto it, against the run."""
    from lmsd.export.gate import Limits, compare
    from lmsd.sampling.model import load

    return compare(model, load(folder), Limits())
