"""Adapters into weights, and weights of several runs into one (soups).

    W ← W + Σ_i w_i ΔW_i                        merged adapters, each against the base
    θ = (1/n) Σ_i θ_i                           a uniform soup (Wortsman et al. 2022)
    ΔW = Σ_i w_i ΔW_i ≈ B A,  r = rank           a soup of LoRAs: the sum cut to its largest singular values

Means of A and of B are not means of B A; the sum's own factors are. All sums are in float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.models.frozen import thaw
from lmsd.models.generator import Generator
from lmsd.tuning.base import tuned_parts
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


@torch.no_grad()
def merged(generator: Generator) -> Generator:
    """A tuned generator as an ordinary one, in place: adapters added to the weights, all of which move."""
    found = changes(generator)
    for (component, name), layer in list(layers(generator)):
        root = components(generator)[component]
        parent, _, last = name.rpartition(".")
        setattr(root.get_submodule(parent), last, layer.base_layer)
    add(generator, [(found, 1.0)])
    for part in tuned_parts(generator):
        thaw(part)
    if "base" in dict(generator.named_children()):
        del generator.base
    return generator


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
    for place in dict.fromkeys(place for lows, _ in parts for place in lows):
        here = [(lows[place], strength) for lows, strength in parts if place in lows]
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
