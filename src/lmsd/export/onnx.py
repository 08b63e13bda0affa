"""`format=onnx`: denoiser, text encoder and decoder for onnxruntime, and a program that draws with them.

condition.onnx denoiser.onnx decoder.onnx loop.onnx    see `lmsd.export.programs`
sample.json    how it is sampled (`lmsd.export.plan`), the tokenizer, which programs take what
sample.py      draws with numpy, pillow and onnxruntime alone, from runs with a tokenizer of their own
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from lmsd.sampling.model import Model


@dataclass(frozen=True)
class Options:
    """loop: the whole loop as one program too; null: of at most 16 evaluations of the net."""

    loop: bool | None = None


def write(model: "Model", folder: Path, options: Options) -> Written:
    """All programs, exported from an ExportedProgram each, without the exporter's own optimizer.

    That one takes 1e-15 for 0, and with it the guards of divisions; onnxruntime optimizes by itself.
    """
    from lmsd.export import standalone
    from lmsd.export.opening import node
    from lmsd.export.programs import parts, traced

    found = parts(model, loop=options.loop)
    for name, part in found.items():
        save(traced(part), folder / f"{name}.onnx", list(part.inputs), list(part.outputs))
    opens = node(model, "onnx", found, folder, ".onnx")
    notes = standalone.write(model, folder, opens)
    return Written(opens, model.spec, needs=("onnxruntime",), notes=tuple(notes))


def save(program: "ExportedProgram", path: Path, inputs: list[str], outputs: list[str]) -> None:
    """One program as an ONNX file."""
    import logging
    import warnings

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision's operators are not there: we know
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program, (), input_names=inputs, output_names=outputs, optimize=False, verbose=False
        )
    if made is None:
        raise RuntimeError(f"torch.onnx.export made nothing of {path.stem}")
    proto = made.model_proto
    for node in proto.graph.node:  # where in whose files each was traced
        del node.metadata_props[:]
    path.write_bytes(proto.SerializeToString())


def check(folder: Path, model: "Model") -> Parity:
    """x̂₀ and images by `lmsd.load`; images by loop.onnx and by sample.py, where they are."""
    from lmsd.export import alone
    from lmsd.export.gate import Limits, compare
    from lmsd.sampling.model import load

    other, limits = load(folder), Limits()
    found = compare(model, other, limits)
    return Parity((*found.rows, *alone.rows(folder, model, other, limits)), found.setup)
