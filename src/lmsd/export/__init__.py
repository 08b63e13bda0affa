"""A trained generator → a folder that stands alone, with proof that it is still the same.

`FORMATS` names the formats; each is one module here that holds

    Options          a frozen dataclass: the options that it takes on the command line
    write            (model, folder, options) → Written: the files, and how they are read back
    check            (folder, model) → Parity: what the folder makes, against what the model makes

`lmsd.export.folder` does the rest for all of them: a temporary folder, the gate, the manifest, the model
card, and the name at the very end.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

FormatName: TypeAlias = Literal[
    "safetensors", "onnx", "torch_export", "aoti", "web", "diffusers", "lora", "kohya", "embedding"
]
FORMATS: Mapping[str, str] = {
    "safetensors": "weights and spec, bit-equal, for lmsd.load",
    "onnx": "programs for onnxruntime, and a sample.py that needs no torch; loop= quantize=int8|fp16|bf16",
    "torch_export": "programs for torch alone; loop=true|false",
    "aoti": "programs compiled for this kind of CPU, which C++ loads, too; loop=true|false; minutes",
    "web": "that of onnx with index.html, a page that draws in a browser; runtime=FOLDER",
    "diffusers": "a folder that plain diffusers opens: of a pipeline's run, or of a net of diffusers",
    "lora": "the adapters alone, for load_lora_weights of diffusers and readers of its keys",
    "kohya": "the adapters of a U-Net under the names of kohya's scripts",
    "embedding": "the new word of tuning=textual_inversion, for load_textual_inversion and others",
}
"""Every format, the module of its name here, and what it is for."""

MANIFEST = "lmsd.json"
"""The file by which an exported folder is known."""
