"""`format=onnx`: denoiser, text encoder and decoder for onnxruntime, and a program that draws with them alone.

    condition.onnx denoiser.onnx decoder.onnx loop.onnx    see `lmsd.export.programs`
    sample.json    how it is sampled (`lmsd.export.plan`), the tokenizer, which programs take what
    sample.py      draws with numpy, pillow and onnxruntime alone, from runs with a tokenizer of their own
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model


@dataclass(frozen=True)
class Options:
    """quantize: int8, the weights of matrix products, dynamically; loop: also the whole loop as one file.

    loop: null where there are at most 16 evaluations of the net.
    """

    quantize: Literal["int8"] | None = None
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
    notes = []
    if options.quantize:
        from lmsd.export.quantize import quantized

        notes.append(quantized(folder, list(found)))
    opens = node(model, "onnx", found, folder, ".onnx")
    notes += standalone.write(model, folder, opens)
    return Written(opens, model.spec, needs=("onnxruntime",), notes=tuple(notes))
