"""Adapters and words in files of others: diffusers' and kohya's LoRA, embeddings. Safetensors only.

    diffusers   unet.down_blocks.0....to_q.lora_A.weight, .lora_B.weight, or .lora.down, .lora.up; α apart
    kohya       lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha, .dora_scale
    embedding   one tensor [k,D] under the word's name, or under clip_l and clip_g

What we cannot place by name goes once through diffusers' own conversion for the family, which knows other
names of blocks; a file of which nothing fits is refused.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.models.pipeline import PipelineNet
from lmsd.tuning.lora import KINDS, OWN
from lmsd.tuning.low import Layer, Low, Place, components, layers

DOWN = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down")
UP = ("lora_B", "lora_up", "lora.up", "lora_linear_layer.up")
MAGNITUDE = ("lora_magnitude_vector", "dora_scale")
KOHYA: Mapping[str, tuple[str, ...]] = {
    "lora_unet": ("unet", "transformer"),
    "lora_transformer": ("transformer",),
    "lora_te": ("text_encoder",),
    "lora_te1": ("text_encoder",),
    "lora_te2": ("text_encoder_2",),
    "lora_te3": ("text_encoder_3",),
}
"""How kohya's keys begin, and the components that are meant."""
ENCODERS = ("clip_l", "clip_g", "t5")
"""The names of text encoders, in order, in files of embeddings for several."""


def opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises UserError for another one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no file of safetensors: {error}") from error


def lows(path: Path, generator: Generator) -> dict[Place, Low]:
    """The changes in a LoRA file at their places in a generator.

    Raises UserError where nothing in it fits.
    """
    tensors, told = opened(path)
    found = placed(tensors, told, generator)
    if not found and isinstance(generator.net, PipelineNet):
        found = placed(converted(tensors, generator.net), told, generator)
    if not found:
        first = next(iter(tensors), "nothing")
        raise UserError(
            f"{path} holds no LoRA for this generator: none of its {len(tensors)} keys ({first}, ...) names "
            "one of its layers"
        )
    return found


def placed(tensors: Mapping[str, Tensor], told: Mapping[str, str], generator: Generator) -> dict[Place, Low]:
    """Those of a file's tensors that are changes at places of the generator."""
    known = names(generator)
    parts: dict[Place, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, kind = split(key)
        if kind and (place := known.get(module)):
            parts.setdefault(place, {})[kind] = value
    scales = json.loads(told.get("lora_adapter_metadata", "{}"))
    found = {}
    for place, part in parts.items():
        if "down" in part and "up" in part:
            scale = scaling(place[0], len(part["down"]), part.get("alpha"), scales)
            found[place] = Low(part["down"], part["up"], scale, part.get("magnitude"))
    return found


def scaling(component: str, rank: int, alpha: Tensor | None, told: Mapping[str, Any]) -> float:
    """S of a change: by its own α, else by what the metadata tell of the component, else 1."""
    if alpha is not None:
        return float(alpha) / rank
    named = told.get(f"{component}.lora_alpha")
    if named is None:
        return 1.0
    return float(named) / (rank**0.5 if told.get(f"{component}.use_rslora") else rank)


def split(key: str) -> tuple[str, str]:
    """A key of a file as the module that is meant and down, up, magnitude or alpha; "" for anything else."""
    key = key.removesuffix(".weight")
    key = re.sub(r"\.processor\.(to_[qkv])_lora\.", r".\1.lora.", key)
    key = key.replace(".processor.to_out_lora.", ".to_out.0.lora.")
    for kind, ends in {"down": DOWN, "up": UP, "magnitude": MAGNITUDE, "alpha": ("alpha",)}.items():
        for end in ends:
            if key.endswith(f".{end}"):
                return key[: -len(end) - 1], kind
    return key, ""


def names(generator: Generator) -> dict[str, Place]:
    """Every name that files have for a linear layer or a convolution of the generator."""
    found: dict[str, Place] = {}
    for component, root in components(generator).items():
        text = component.startswith("text_encoder")
        starts = [start for start, meant in KOHYA.items() if component in meant]
        for name, module in root.named_modules():
            bare = name.removesuffix(".base_layer")
            if not isinstance(module, KINDS) or ".lora_" in name:
                continue
            plain = bare.removeprefix("text_model.")
            spelled = [plain, f"text_model.{plain}"] if text else [plain]
            for one in spelled:
                found[f"{component}.{one}"] = (component, bare)
                found |= {f"{start}_{one.replace('.', '_')}": (component, bare) for start in starts}
    return found


def converted(tensors: Mapping[str, Tensor], net: PipelineNet) -> dict[str, Tensor]:
    """A file's tensors under diffusers' names, by its own conversion for the family, if it has one."""
    from diffusers import (
        FluxPipeline,
        SanaPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )

    config = net.model.config
    of: Mapping[str, Callable[[dict[str, Tensor]], Any]] = {
        "StableDiffusion": partial(StableDiffusionPipeline.lora_state_dict, unet_config=config),
        "StableDiffusionXL": partial(StableDiffusionXLPipeline.lora_state_dict, unet_config=config),
        "StableDiffusion3": lambda tensors: (StableDiffusion3Pipeline.lora_state_dict(tensors), None),
        "Flux": partial(FluxPipeline.lora_state_dict, return_alphas=True),
        "Sana": lambda tensors: (SanaPipeline.lora_state_dict(tensors), None),
    }
    convert = of.get(type(net.layout).__name__)
    if convert is None:
        return {}
    try:
        found, alphas = convert(dict(tensors))[:2]
    except (ValueError, KeyError, RuntimeError, NotImplementedError):  # what it does not know
        return {}
    return {**found, **{key: torch.tensor(float(value)) for key, value in (alphas or {}).items()}}


@torch.no_grad()
def load(path: Path, generator: Generator) -> tuple[list[str], list[str]]:
    """Fill the adapters, or the new word, of a tuned generator from a file: what it lacks, what is not used.

    Raises UserError where nothing fits, or rank and kind are others.
    """
    words = [speller.rows() for speller in generator.conditioner.spellers()]
    if any(rows is not None for rows in words):
        load_words(path, words)
        return [], []
    mine = dict(layers(generator))
    if not mine:
        raise UserError(
            f"init_from={path} is a LoRA, and this generator has no adapters: take tuning=lora, or merge it "
            "into the weights (lmsd merge)"
        )
    found = lows(path, generator)
    for place in found.keys() & mine.keys():
        fill(path, mine[place], found[place])
    if not found.keys() & mine.keys():
        name = next(iter(found))[1]
        raise UserError(
            f"init_from={path} adapts {name} and others, none of which tuning.modules= adapts here"
        )
    sides = mine.keys() - found, found.keys() - mine
    told = [[".".join(place) for place in sorted(side)] for side in sides]
    return told[0], told[1]


def fill(path: Path, layer: Layer, low: Low) -> None:
    """Copy a change into a layer's adapter."""
    down, up, magnitudes = layer.lora_A[OWN].weight, layer.lora_B[OWN].weight, layer.lora_magnitude_vector
    if low.rank != len(down):
        raise UserError(f"init_from={path} has rank {low.rank} and tuning.rank={len(down)}: make them equal")
    if (low.magnitude is None) != (OWN not in magnitudes):
        kind = ("a LoRA", "tuning=lora") if low.magnitude is None else ("a DoRA", "tuning=dora")
        raise UserError(f"init_from={path} is {kind[0]}: take {kind[1]}")
    down.copy_(low.down.view_as(down))
    up.copy_((low.up * (low.scale / layer.scaling[OWN])).view_as(up))
    if low.magnitude is not None:
        own = magnitudes[OWN].weight
        own.copy_(low.magnitude.view_as(own))


def load_words(path: Path, words: Sequence[nn.Parameter | None]) -> None:
    """Fill the rows of a new word from a file of embeddings; words: those of the text encoders in order."""
    tensors, _ = opened(path)
    for name, rows in zip(ENCODERS, words, strict=False):
        if rows is None:
            continue
        value = tensors.get(name, next(iter(tensors.values())) if len(tensors) == 1 else None)
        if value is None or value.numel() != rows.numel() or value.shape[-1] != rows.shape[-1]:
            listed = ", ".join(f"{key} {list(value.shape)}" for key, value in tensors.items())
            raise UserError(
                f"init_from={path} holds {listed}, and the word has {list(rows.shape)} in {name} here: "
                "give tuning.vectors= and tuning.encoders= as the file has them"
            )
        rows.copy_(value.view_as(rows))


def filled(generator: Generator, file: str, *, folder: Path) -> Generator:
    """A tuned generator with what a file holds, for `lmsd.load` of an exported folder.

    folder: the exported one, within which the file lies.
    """
    load(Path(file), generator)
    return generator
