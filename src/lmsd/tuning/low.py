"""Low-rank changes of weights by place, apart from how a net or a file holds them.

    ΔW = s B A,     or  m (W + s B A)/‖W + s B A‖ − W  with a magnitude m (DoRA)

A place is a component of a pipeline (unet, transformer, text_encoder, text_encoder_2, ...) and the dotted
name of a module in it, as diffusers and transformers call it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from lmsd.models.generator import Generator
from lmsd.models.pipeline import PipelineNet, PipelineText
from lmsd.tuning.lora import OWN, adapters

Place: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Low:
    """One change: down A [r,in,...], up B [out,r,...], scale s, magnitude m [out] or None."""

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number r of its rows."""
        return len(self.down)

    def product(self, like: Tensor) -> Tensor:
        """The product s B A in the shape of a weight, float64."""
        found = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return (self.scale * found).view(like.shape)

    def delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """ΔW for a weight of the base, float64; strength: a factor on s, 0 is the base itself.

        As in peft, the magnitudes of a DoRA stay whole at every other strength.
        """
        change = strength * self.product(weight)
        if self.magnitude is None or strength == 0:
            return change
        whole = weight.double() + change
        norm = whole.flatten(1).norm(dim=1)
        ratio = self.magnitude.double().flatten() / norm
        grown: Tensor = ratio.view(-1, *[1] * (weight.ndim - 1)) * whole
        return grown - weight.double()


class Layer(Protocol):
    """A layer of peft's with adapters, as far as it is used here."""

    lora_A: Mapping[str, Any]
    lora_B: Mapping[str, Any]
    lora_magnitude_vector: Mapping[str, Any]
    scaling: Mapping[str, float]
    base_layer: Any


def components(generator: Generator) -> dict[str, nn.Module]:
    """The nets of a generator that can be tuned, by the names that a pipeline has for them."""
    net, text = generator.net, generator.conditioner
    if isinstance(net, PipelineNet) and isinstance(text, PipelineText):
        encoders = {
            name: cast(Any, encoder).model
            for name, encoder in zip(net.layout.encoders, text.encoders, strict=False)
        }
        return {net.layout.net: net.model, **encoders}
    model = dict(cast(nn.Module, net).named_children()).get("model", cast(nn.Module, net))
    parts = dict(text.named_children())
    name = "transformer" if "Transformer" in type(model).__name__ else "unet"
    return {name: model, **({"text_encoder": parts["encoder"]} if "encoder" in parts else {})}


def layers(generator: Generator) -> Iterator[tuple[Place, Layer]]:
    """The layers with adapters."""
    for component, module in components(generator).items():
        for name, layer in adapters(module):
            yield (component, name), cast(Layer, layer)


@torch.no_grad()
def changes(generator: Generator) -> dict[Place, Low]:
    """What the adapters of a tuned generator do, copied."""
    found = {}
    for place, layer in layers(generator):
        magnitudes = layer.lora_magnitude_vector
        found[place] = Low(
            layer.lora_A[OWN].weight.clone(),
            layer.lora_B[OWN].weight.clone(),
            float(layer.scaling[OWN]),
            magnitudes[OWN].weight.clone() if OWN in magnitudes else None,
        )
    return found
