"""`format=aoti`: the programs of `format=torch_export`, compiled by AOTInductor; C++ loads them, too.

    condition.pt2 denoiser.pt2 decoder.pt2 loop.pt2    packages: a shared library with the weights

A package is tied to the torch version and to the kind of CPU that it was compiled on. Compiling takes a C++
compiler and minutes; loading takes neither.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.errors import UserError
from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model

COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Options:
    """loop: the whole loop as one program too, which is compiled as often as there are steps."""

    loop: bool = False


def write(model: "Model", folder: Path, options: Options) -> Written:
    """All programs. Raises UserError where there is no compiler."""
    if not any(map(shutil.which, COMPILERS)):
        raise UserError(
            "format=aoti compiles C++ and finds no compiler: install g++, or take format=torch_export"
        )
    from torch._inductor import aoti_compile_and_package

    from lmsd.export.opening import node
    from lmsd.export.programs import parts, traced

    found = parts(model, loop=options.loop)
    for name, part in found.items():
        aoti_compile_and_package(traced(part), package_path=str(folder / f"{name}.pt2"))
    return Written(node(model, "aoti", found, folder, ".pt2"), model.spec, needs=("this version of torch",))


def check(folder: Path, model: "Model") -> Parity:
    """x̂₀ and images by `lmsd.load`."""
    from lmsd.export.onnx import check as both

    return both(folder, model)
