"""`format=onnx`: denoiser, text encoder and decoder for onnxruntime, and a program that draws with them.

condition.onnx denoiser.onnx decoder.onnx loop.onnx    see `lmsd.export.programs`
sample.json    how it is sampled (`lmsd.export.plan`), the tokenizer, which programs take what
sample.py      draws with numpy, pillow and onnxruntime alone, from runs with a tokenizer of their own
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmsd.errors import UserError
from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from lmsd.sampling.model import Model


@dataclass(frozen=True)
class Options:
    """loop: the whole loop as one program too; null: of at most 16 evaluations of the net.

    quantize: int8, weights of matrix products; fp16, bf16, how all weights are stored.
    """

    loop: bool | None = None
    quantize: Literal["int8", "fp16", "bf16"] | None = None


def write(model: "Model", folder: Path, options: Options) -> Written:
    """All programs, exported from an ExportedProgram each, without the exporter's own optimizer.

    That one takes 1e-15 for 0, and with it the guards of divisions; onnxruntime optimizes by itself.
    """
    installed()
    from lmsd.export import standalone
    from lmsd.export.opening import node
    from lmsd.export.programs import parts, traced

    found = parts(model, loop=options.loop)
    for name, part in found.items():
        save(traced(part), folder / f"{name}.onnx", list(part.inputs), list(part.outputs))
    opens = node(model, "onnx", found, folder, ".onnx")
    notes = standalone.write(model, folder, opens)
    if options.quantize:
        from lmsd.export.quantize import quantized

        notes.append(quantized(folder, list(found), options.quantize))
    return Written(opens, model.spec, needs=("onnxruntime",), notes=tuple(notes))


def installed() -> None:
    """Raise UserError where a package of the extra is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'lmsd[export]'")


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
    without_empty_squeezes(proto.graph)
    path.write_bytes(proto.SerializeToString())


def without_empty_squeezes(graph: Any) -> None:
    """Turn every Squeeze of a side that is not 1 into what torch does there: nothing; ONNX refuses it."""
    from onnx import numpy_helper

    sides = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input)
    }
    axes = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        for each in node.attribute if node.op_type == "Constant" else ():
            if each.name == "value":
                axes[node.output[0]] = numpy_helper.to_array(each.t)
        if node.op_type == "Squeeze" and len(node.input) > 1 and node.input[1] in axes:
            known = sides.get(node.input[0], [])
            if any(known and known[int(axis)] > 1 for axis in axes[node.input[1]].flatten()):
                node.op_type = "Identity"
                del node.input[1:]


def check(folder: Path, model: "Model") -> Parity:
    """x̂₀ and images by `lmsd.load`; images by loop.onnx and by sample.py, where they are."""
    from lmsd.export import alone
    from lmsd.export.gate import QUANTIZED, Limits, compare
    from lmsd.models.exported import manifest_in
    from lmsd.sampling.model import load

    kind = manifest_in(folder)["options"].get("quantize")
    other, limits = load(folder), QUANTIZED.get(kind, Limits())
    found = compare(model, other, limits)
    return Parity((*found.rows, *alone.rows(folder, model, other, limits)), found.setup)
