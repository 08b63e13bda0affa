"""`format=kohya`: a run's adapters under the names of kohya's scripts, which many tools read.

lora.safetensors    lora_unet_..., lora_te_... or lora_te1_... and lora_te2_...; every .alpha is the rank
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.export.base import Parity, Written
from lmsd.export.lora import check as compared
from lmsd.export.lora import written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model

FILE = "lora.safetensors"
_DORA = "diffusers leaves out the magnitudes of a DoRA under these names; format=lora keeps them."


@dataclass(frozen=True)
class Options:
    """It takes none."""


def write(model: "Model", folder: Path, options: Options) -> Written:
    """The adapters. Raises UserError for a run without any, and for other nets than U-Nets."""
    from lmsd.tuning.written import kohya_keys

    dora = bool(model.spec.get("tuning", {}).get("dora"))
    return written(model, folder / FILE, kohya_keys, (_DORA,) if dora else ())


def check(folder: Path, model: "Model") -> Parity:
    """The base with the file loaded onto it, against the run."""
    return compared(folder, model)
