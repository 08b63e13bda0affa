"""`format=safetensors`: the weights and the spec, for `lmsd.load`; every number is the model's, bit for bit.

model.safetensors    the generator's tensors by name
extra.json           what its state holds besides: the tokenizer, and which codec and encoder it belongs to
parts/NAME           copies of the files that the spec names: a pretrained text encoder, an autoencoder
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model


@dataclass(frozen=True)
class Options:
    """It takes none."""


def write(model: "Model", folder: Path, options: Options) -> Written:
    """The weights, contiguous and each by itself, and what of the state is no tensor."""
    import torch
    from safetensors.torch import save_file

    from lmsd.export.parts import copied
    from lmsd.models.exported import REST, WEIGHTS

    state = model.generator.state_dict()
    tensors = {name: value.clone().contiguous() for name, value in state.items() if torch.is_tensor(value)}
    save_file(tensors, folder / WEIGHTS)
    rest = {name: value for name, value in state.items() if name not in tensors}
    (folder / REST).write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")
    spec = copied(model.spec, folder)
    return Written({"_target_": "lmsd.models.exported.restored", "generator": spec}, spec)


def check(folder: Path, model: "Model") -> Parity:
    """Images and x̂₀ must be equal to the last bit."""
    from lmsd.export.gate import EXACT, compare
    from lmsd.sampling.model import load

    return compare(model, load(folder), EXACT)
