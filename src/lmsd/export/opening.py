"""How a folder of programs is read back: the node for `lmsd.models.runtimes.from_programs`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsd.export.programs import Part
from lmsd.models.codec import Identity, Unshuffle
from lmsd.models.conditioner import LabelConditioner, PretrainedText, TextConditioner
from lmsd.models.exported import PLACE
from lmsd.models.runtimes import Runtime
from lmsd.sampling.model import Model


def node(
    model: Model, runtime: Runtime, found: Mapping[str, Part], folder: Path, suffix: str
) -> dict[str, Any]:
    """The node of a folder whose programs lie in NAME + suffix."""
    generator = model.generator
    programs = {
        name: {"file": f"{name}{suffix}", "inputs": list(part.inputs), "outputs": list(part.outputs)}
        for name, part in found.items()
    }
    net = generator.net
    sizes = {
        name: int(vars(net)[name]) for name in ("channels", "image_size", "token_dim", "pooled_dim", "z_dim")
    }
    return {
        "_target_": "lmsd.models.runtimes.from_programs",
        "runtime": runtime,
        "programs": programs,
        "sizes": sizes,
        "schedule": model.spec["schedule"],
        "conditioner": conditioner_of(model, folder),
        "codec": codec_of(model),
        "prediction": generator.prediction,
        "precondition": generator.precondition,
        "sigma_data": generator.sigma_data,
    }


def conditioner_of(model: Model, folder: Path) -> dict[str, Any] | None:
    """What of the conditioner is no net: its tokenizer or its number of classes."""
    found = model.generator.conditioner
    match found:
        case LabelConditioner():
            target = "lmsd.models.runtimes.ProgramLabels"
            return {"_target_": target, "classes": found.classes, "pooled": found.pooled_dim}
        case TextConditioner():
            own = {"tokenizer": found.tokenizer, "pretrained": False}
        case PretrainedText():
            found.tokenizer.save_pretrained(folder / "tokenizer")
            own = {"tokenizer": f"{PLACE}tokenizer", "pretrained": True}
        case _:
            return None
    sizes = {"tokens": found.token_dim, "pooled": found.pooled_dim, "length": found.length}
    return {"_target_": "lmsd.models.runtimes.ProgramText", **sizes, **own}


def codec_of(model: Model) -> dict[str, Any] | None:
    """The codec itself where it has no weights, else what is known of its images."""
    codec = model.generator.codec
    match codec:
        case Identity():
            return None
        case Unshuffle():
            return dict(model.spec["codec"])
    image = list(model.generator.image_shape)
    return {"_target_": "lmsd.models.runtimes.ProgramCodec", "image": image, "bound": codec.bound}
