"""Adapters and words under the names that other tools read; the scale is folded into B, so that α = r.

    diffusers   unet.NAME.lora_A.weight, .lora_B.weight; transformer.NAME...; text_encoder.text_model.NAME...
    kohya       lora_unet_NAME.lora_down.weight, .lora_up.weight, .alpha = r, .dora_scale; lora_te_NAME
    embedding   {WORD: R [k,D]}, or {clip_l: R, clip_g: R} for two encoders

Readers that know nothing of a scale (ComfyUI, older diffusers) take it as 1. Text encoders have the names of
transformers 4, which all readers know.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.tuning.files import ENCODERS
from lmsd.tuning.low import Low, Place


def diffusers_keys(found: Mapping[Place, Low]) -> dict[str, Tensor]:
    """Changes as `load_lora_weights` of diffusers reads them."""
    written: dict[str, Tensor] = {}
    for place, low in found.items():
        name = f"{place[0]}.{old_name(place)}"
        written[f"{name}.lora_A.weight"] = low.down
        written[f"{name}.lora_B.weight"] = low.up * low.scale
        if low.magnitude is not None:
            end = ".weight" * place[0].startswith(
                "text_encoder"
            )  # transformers reads it so, diffusers without
            written[f"{name}.lora_magnitude_vector{end}"] = low.magnitude.flatten()
    return packed(written)


def kohya_keys(found: Mapping[Place, Low]) -> dict[str, Tensor]:
    """Changes of a U-Net and CLIPs as kohya's scripts name them. Raises UserError for other nets."""
    components = {component for component, _ in found}
    if strange := components - {"unet", "text_encoder", "text_encoder_2"}:
        raise UserError(
            f"format=kohya is for U-Nets with CLIPs, and this run adapts a {sorted(strange)[0]}, for which "
            "kohya's scripts have names of their own: take format=lora"
        )
    two = "text_encoder_2" in components
    starts = {
        "unet": "lora_unet",
        "text_encoder": "lora_te1" if two else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    written: dict[str, Tensor] = {}
    for place, low in found.items():
        name = f"{starts[place[0]]}_{old_name(place).replace('.', '_')}"
        written[f"{name}.lora_down.weight"] = low.down
        written[f"{name}.lora_up.weight"] = low.up * low.scale
        written[f"{name}.alpha"] = torch.tensor(float(low.rank))
        if low.magnitude is not None:
            written[f"{name}.dora_scale"] = low.magnitude.flatten()[:, None]
    return packed(written)


def old_name(place: Place) -> str:
    """A module's name as transformers 4 has it: with text_model. in text encoders."""
    component, name = place
    clip = component.startswith("text_encoder") and name.startswith(("encoder.layers", "embeddings"))
    return f"text_model.{name}" if clip else name


def embeddings(generator: Generator, word: str) -> dict[str, Tensor]:
    """The rows of a new word: one tensor under its name, or one for each encoder that learned it."""
    words = [speller.rows() for speller in generator.conditioner.spellers()]
    rows = {name: value for name, value in zip(ENCODERS, words, strict=False) if value is not None}
    return packed(rows if len(rows) > 1 else dict.fromkeys([word], next(iter(rows.values()))))


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: each by itself, in order."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
