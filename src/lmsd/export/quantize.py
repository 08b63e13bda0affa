"""Smaller programs for onnxruntime: the weights in eight or sixteen bits.

    int8          y = s_x s_w Σ q_x q_w: weights of matrix products, a scale for each column; inputs by their
                  range at run time (dynamic quantization); faster where a CPU multiplies bytes
    fp16, bf16    how weights are stored: cast to float32 as the program is loaded, so as fast as before

With int8 convolutions keep their weights: onnxruntime multiplies them in eight bits more slowly than in
float32.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lmsd.errors import UserError

Kind: TypeAlias = Literal["int8", "fp16", "bf16"]
PRODUCTS = ("MatMul", "Gemm")
SMALL = 2_048
"""Weights of fewer numbers stay as they are: there is nothing to gain."""
LEAST = 0.1
"""Share of the files that must be saved, or a sentence says that it is not."""


def quantized(folder: Path, names: Sequence[str], kind: Kind) -> str:
    """Quantize programs of a folder in place; what came of it, in a sentence.

    Raises UserError where none of their weights can be.
    """
    paths = [folder / f"{name}.onnx" for name in names]
    before, weights = sum(path.stat().st_size for path in paths), sum(map(_large, paths))
    for path in paths:
        _int8(path) if kind == "int8" else _stored(path, kind)
    after, left = sum(path.stat().st_size for path in paths), sum(map(_large, paths))
    if left == weights:
        raise UserError(
            f"quantize={kind} finds no weights to turn here: those of convolutions and of small nets stay as "
            "they are; leave it out"
        )
    told = (
        f"{(weights - left) / weights:.0%} of the weights are {kind}, and the programs take "
        f"{after / before:.2f} of the space"
    )
    few = ": less than 10 % is saved, so better leave quantize out" if after > (1 - LEAST) * before else ""
    return f"{told}{few}. The images differ slightly; compare scores before you replace the run's."


def _large(path: Path) -> int:
    """How many numbers a program's float32 weights of some size have."""
    import onnx

    kept = onnx.load(path).graph.initializer
    return sum(
        _count(each) for each in kept if each.data_type == onnx.TensorProto.FLOAT and _count(each) >= SMALL
    )


def _count(tensor: Any) -> int:
    return math.prod(tensor.dims)


def _int8(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    was, root.disabled = root.disabled, True  # it advises a step that only float models of old exporters need
    try:
        quantize_dynamic(
            path,
            path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of 8 saturate on CPUs without VNNI
            op_types_to_quantize=list(PRODUCTS),
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        root.disabled = was


def _stored(path: Path, kind: Literal["fp16", "bf16"]) -> None:
    """Weights in half the bits, each cast to float32 where it is used."""
    import onnx
    from onnx import helper, numpy_helper

    program = onnx.load(path)
    half = onnx.TensorProto.FLOAT16 if kind == "fp16" else onnx.TensorProto.BFLOAT16
    dtype = helper.tensor_dtype_to_np_dtype(half)
    casts = []
    for tensor in list(program.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or _count(tensor) < SMALL:
            continue
        values = numpy_helper.to_array(tensor).astype(dtype)
        program.graph.initializer.remove(tensor)
        program.graph.initializer.append(numpy_helper.from_array(values, f"{tensor.name}.{kind}"))
        casts.append(
            helper.make_node("Cast", [f"{tensor.name}.{kind}"], [tensor.name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *program.graph.node]
    del program.graph.node[:]
    program.graph.node.extend(nodes)
    path.write_bytes(program.SerializeToString())
