"""`format=embedding`: the new word of a run with tuning=textual_inversion, in one file.

NAME.safetensors    {<my-cat>: [k,D]}, for `pipe.load_textual_inversion`; {clip_l, clip_g} of two encoders
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmsd.errors import UserError
from lmsd.export.base import Parity, Written

if TYPE_CHECKING:
    from lmsd.sampling.model import Model

_TWO = (
    "diffusers loads a word of two encoders one at a time: load_textual_inversion(load_file(FILE)['clip_l'], "
    "token=..., text_encoder=..., tokenizer=...)."
)


@dataclass(frozen=True)
class Options:
    """It takes none."""


def write(model: "Model", folder: Path, options: Options) -> Written:
    """The word's rows. Raises UserError for a run that learned none."""
    from safetensors.torch import save_file

    from lmsd.models.exported import PLACE
    from lmsd.tuning.written import embeddings

    word = model.spec.get("tuning", {}).get("word")
    if word is None:
        raise UserError(f"{model.name} has learned no word, as tuning=textual_inversion does")
    found = embeddings(model.generator, f"<{word}>")
    file = folder / f"{word}.safetensors"
    save_file(found, file, metadata={"format": "pt"})
    opens = {"_target_": "lmsd.tuning.files.filled", "generator": model.spec, "file": f"{PLACE}{file.name}"}
    return Written(opens, model.spec, needs=("diffusers",), notes=(_TWO,) if len(found) > 1 else ())


def check(folder: Path, model: "Model") -> Parity:
    """The base with the word loaded, against the run."""
    from lmsd.export.gate import EXACT, compare
    from lmsd.sampling.model import load

    return compare(model, load(folder), EXACT)
