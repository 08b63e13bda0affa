"""`sample.py` and what it reads: how a folder of programs draws without lmsd."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsd.export.plan import plan
from lmsd.models.conditioner import PretrainedText, TextConditioner
from lmsd.sampling.model import Model

PROGRAM = "sample.py"
TABLE = "sample.json"


def write(model: Model, folder: Path, opens: Mapping[str, Any]) -> list[str]:
    """Both files, for a run whose tokenizer is its own; else what the folder needs, in a sentence."""
    conditioner = model.generator.conditioner
    if type(conditioner) is PretrainedText:
        return [
            "There is no sample.py: prompts go through the pretrained tokenizer in tokenizer/, which "
            "transformers reads; the programs themselves need onnxruntime alone."
        ]
    told = {
        "reads": conditioner.reads,
        "classes": conditioner.classes,
        "programs": {name: part for name, part in opens["programs"].items() if name != "loop"},
        "plan": plan(model.generation()),
        **_tokenizer(conditioner),
    }
    (folder / TABLE).write_text(json.dumps(told) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(PROGRAM), folder / PROGRAM)
    return ['`python sample.py "..." --seed 0` draws with numpy, pillow and onnxruntime alone.']


def _tokenizer(conditioner: Any) -> dict[str, Any]:
    """Vocabulary, merges in order, and the letter that stands for each byte."""
    if type(conditioner) is not TextConditioner:
        return {"vocab": {}, "merges": [], "letters": [], "length": 0}
    model = json.loads(conditioner.tokenizer)["model"]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = {byte: chr(256 + number) for number, byte in enumerate(sorted({*range(256)} - {*plain}))}
    return {
        "vocab": model["vocab"],
        "merges": [list(pair) for pair in model["merges"]],
        "letters": [shifted.get(byte, chr(byte)) for byte in range(256)],
        "length": conditioner.length,
    }
