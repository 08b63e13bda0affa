"""`format=torch_export`: denoiser, text encoder and decoder as ExportedPrograms, for torch alone.

    condition.pt2 denoiser.pt2 decoder.pt2 loop.pt2    see `lmsd.export.programs`

In any program: `torch.export.load("denoiser.pt2").module()(x_t, t, ...)`, with 1 to 63 rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model


@dataclass(frozen=True)
class Options:
    """loop: the whole loop as one program too; null: of at most 16 evaluations of the net."""

    loop: bool | None = None


def write(model: "Model", folder: Path, options: Options) -> Written:
    """All programs."""
    import torch

    from lmsd.export.opening import node
    from lmsd.export.programs import parts, traced

    found = parts(model, loop=options.loop)
    for name, part in found.items():
        torch.export.save(traced(part), folder / f"{name}.pt2")
    return Written(node(model, "torch_export", found, folder, ".pt2"), model.spec)


def check(folder: Path, model: "Model") -> Parity:
    """x̂₀ and images by `lmsd.load`; images by loop.pt2 where it is."""
    from lmsd.export.onnx import check as both

    return both(folder, model)
