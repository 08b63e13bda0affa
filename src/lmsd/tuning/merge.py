"""Adapters into weights, and weights of several runs into one (soups).

    W ← W + Σ_i w_i ΔW_i                        merged adapters, each against the base
    θ = (1/n) Σ_i θ_i                           a uniform soup (Wortsman et al. 2022)
    ΔW = Σ_i w_i ΔW_i ≈ B A,  r = rank           a soup of LoRAs: the sum cut to its largest singular values

Means of A and of B are not means of B A; the sum's own factors are. All sums are in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmsd.checkpoints import WeightsRef, find, find_run, read, spec_of, weights
from lmsd.errors import UserError
from lmsd.models.conditioner import PretrainedText
from lmsd.models.frozen import thaw
from lmsd.models.generator import Generator
from lmsd.models.pipeline import PipelineText
from lmsd.models.trained import located
from lmsd.spec import build
from lmsd.tuning.base import Base, digest_of, is_tuned
from lmsd.tuning.files import lows
from lmsd.tuning.lora import OWN, LoRA
from lmsd.tuning.low import Low, Place, changes, components, layers


@torch.no_grad()
def add(generator: Generator, parts: Sequence[tuple[Mapping[Place, Low], float]]) -> None:
    """Add changes with their strengths to the weights of a generator, in place.

    Raises UserError for a change of a shape that its weight does not have.
    """
    deltas: dict[Place, Tensor] = {}
    roots = components(generator)
    for found, strength in parts:
        for place, low in found.items():
            weight = cast(Tensor, roots[place[0]].get_submodule(place[1]).weight)
            if low.up.shape[0] != weight.shape[0] or low.down[0].numel() != weight[0].numel():
                raise UserError(
                    f"adapter: {'.'.join(place)} is {list(weight.shape)} here and was other where it was made"
                )
            change = low.delta(weight, strength)
            deltas[place] = deltas[place] + change if place in deltas else change
    for place, change in deltas.items():
        weight = cast(Tensor, roots[place[0]].get_submodule(place[1]).weight)
        weight.copy_((weight.double() + change).to(weight.dtype))


def taken_off(generator: Generator) -> dict[Place, Low]:
    """What the adapters of a generator do, if it has any, which are taken off their layers."""
    found = changes(generator)
    for (component, name), layer in list(layers(generator)):
        parent, _, last = name.rpartition(".")
        setattr(components(generator)[component].get_submodule(parent), last, layer.base_layer)
    return found


@torch.no_grad()
def merged(generator: Generator, parts: Sequence[tuple[Mapping[Place, Low], float]] = ()) -> Generator:
    """A tuned generator as an ordinary one, in place: adapters added to the weights, all of which move.

    parts: further changes of the same base with their strengths. Text encoders of a folder stay frozen and
    unsaved, unless there are adapters in them.
    """
    found = taken_off(generator)
    add(generator, [(found, 1.0), *parts])
    text = any(component.startswith("text_encoder") for component, _ in found)
    thaw(cast(nn.Module, generator.net))
    if text or not isinstance(generator.conditioner, PipelineText | PretrainedText):
        thaw(generator.conditioner)
    if is_tuned(generator) and not text:
        del generator.base
    return generator


def whole(spec: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
    """The tree of a tuned generator once it is merged; text: its text encoders are no longer the folder's."""
    base = dict(spec["generator"] if "tuning" in spec else spec)
    if base["_target_"] == "lmsd.models.trained.from_run":
        return spec_of(read(find(WeightsRef.parse(base["path"]).path)))
    if not text:
        return base
    everything = {"_target_": "lmsd.tuning.full.Full", "modules": ["*"], "text": ["*"]}
    return {"_target_": "lmsd.tuning.base.tuned", "generator": base, "tuning": everything}


@dataclass(frozen=True)
class Adapter:
    """An adapter to sample with: SOURCE or SOURCE*STRENGTH, of a LoRA's file or a run with adapters."""

    source: str
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Adapter":
        """Raises UserError for a strength that is no number."""
        source, star, number = text.rpartition("*")
        try:
            return cls(source, float(number)) if star else cls(text)
        except ValueError as error:
            raise UserError(f"adapter {text}: {number} is no strength: write SOURCE*0.7") from error

    def lows(self, generator: Generator) -> dict[Place, Low]:
        """Its changes, at their places in a generator.

        Raises UserError for a source without adapters, for another net, or from a run on another base.
        """
        if self.source.endswith(".safetensors"):
            return lows(Path(self.source), generator)
        source = WeightsRef.parse(located(self.source))
        content = read(find(source.path if source.path.exists() else find_run(str(source.path))))
        node = spec_of(content).get("tuning")
        tuning = build(node) if node else None
        if not isinstance(tuning, LoRA):
            raise UserError(f"adapter {self.source} is a run without adapters: take one of tuning=lora")
        state = weights(content, "generator", source.ema)
        own = cast(Base, generator.base).digest if is_tuned(generator) else digest_of(generator)
        told: Any = state["base._extra_state"]
        if told["digest"] != own:
            raise UserError(f"adapter {self.source} was trained on another base than this")
        return stored(state, generator, tuning)


def stored(state: Mapping[str, Any], generator: Generator, tuning: LoRA) -> dict[Place, Low]:
    """The changes in the state of a tuned generator, by their places in one of the same base."""
    places = {id(root): name for name, root in components(generator).items()}
    begin = {places[id(m)]: f"{name}." for name, m in generator.named_modules() if id(m) in places}
    found: dict[Place, Low] = {}
    for key, down in state.items():
        name, mark, _ = key.partition(f".lora_A.{OWN}.")
        for component, start in begin.items() if mark else ():
            if name.startswith(start):
                found[component, name.removeprefix(start)] = Low(
                    down,
                    state[f"{name}.lora_B.{OWN}.weight"],
                    tuning.scaling,
                    state.get(f"{name}.lora_magnitude_vector.{OWN}.weight"),
                )
    return found


def attach(generator: Generator, adapters: Sequence[Adapter]) -> None:
    """Sample with adapters: their changes, at their strengths, are added to the weights in memory.

    Those that the generator has itself are merged first, so that all are changes of the same base.
    """
    found = [(adapter.lows(generator), adapter.strength) for adapter in adapters]
    add(generator, [(taken_off(generator), 1.0), *found])
    told = ", ".join(f"{Path(a.source).name}*{a.strength:g}" for a in adapters)
    about = vars(generator).get("about", {})
    generator.about = {**about, "adapters": told}  # type: ignore[assignment]


def soup(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of states of one generator; what is no floating-point tensor is that of the first.

    Raises UserError for states with other names or shapes.
    """
    first = states[0]
    for state in states[1:]:
        if state.keys() != first.keys():
            strange = sorted(state.keys() ^ first.keys())[0]
            raise UserError(f"merge: the runs are of different nets: only some have {strange}")
    found: dict[str, Any] = {}
    for name, value in first.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            shapes = {tuple(state[name].shape) for state in states}
            if len(shapes) > 1:
                raise UserError(f"merge: the runs are of different nets: {name} is {sorted(shapes)}")
            total = sum((state[name].double() for state in states), torch.zeros((), dtype=torch.float64))
            found[name] = (total / len(states)).to(value.dtype)
        else:
            found[name] = value
    return found


def mixed(parts: Sequence[tuple[Mapping[Place, Low], float]], rank: int) -> dict[Place, Low]:
    """Σ_i w_i ΔW_i of LoRAs as one of this rank; exact where it is at least the sum's own.

    Raises UserError for a DoRA, whose changes do not add up.
    """
    found: dict[Place, Low] = {}
    for place in dict.fromkeys(place for part, _ in parts for place in part):
        here = [(part[place], strength) for part, strength in parts if place in part]
        if any(low.magnitude is not None for low, _ in here):
            raise UserError("merge: DoRAs have magnitudes and do not add up: merge each into weights")
        first = here[0][0]
        total = sum(
            (
                strength * low.scale * low.up.double().flatten(1) @ low.down.double().flatten(1)
                for low, strength in here
            ),
            torch.zeros((), dtype=torch.float64),
        )
        left, sizes, right = torch.linalg.svd(total, full_matrices=False)
        kept = min(rank, len(sizes))
        root = sizes[:kept].sqrt()
        up = torch.zeros(len(left), rank, dtype=torch.float64)
        down = torch.zeros(rank, right.shape[1], dtype=torch.float64)
        up[:, :kept], down[:kept] = left[:, :kept] * root, root[:, None] * right[:kept]
        found[place] = Low(
            down.view(rank, *first.down.shape[1:]).to(first.down.dtype),
            up.view(len(left), rank, *first.up.shape[2:]).to(first.up.dtype),
        )
    return found


@torch.no_grad()
def fill(generator: Generator, found: Mapping[Place, Low]) -> None:
    """Give the adapters of a tuned generator what they do."""
    for place, layer in layers(generator):
        low, down, up = found[place], layer.lora_A[OWN].weight, layer.lora_B[OWN].weight
        down.copy_(low.down.view_as(down))
        up.copy_((low.up * (low.scale / layer.scaling[OWN])).view_as(up))
