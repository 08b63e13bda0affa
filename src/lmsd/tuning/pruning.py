"""What a net can do without: by the exact change of its estimates, for every FLOP that it saves.

    s_u = E_{t, ε} ‖x̂₀(x_t, t) − x̂₀^{−u}(x_t, t)‖²/D / ΔFLOPs_u        t over the knots that are sampled

u runs over heads, groups of channels and blocks (`lmsd.models.cut`); −u: without it. Units of the smallest s
are taken out until the FLOPs of one evaluation have fallen by the asked share, in rounds, each of which
measures anew what is left (Molchanov et al. 2019, with the loss itself in the place of its expansion).
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lmsd.errors import UserError
from lmsd.models.cut import BLOCK, Axis, axes, module_of, take_out
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.types import Batch, Cond

CHUNKS = 16
"""Units at most that an axis is measured in; of more channels, those of similar weight go together."""


@dataclass(frozen=True)
class Probe:
    """Inputs of the net that everything is measured on: x_t [B,C,H,W], t [B], the condition, z."""

    x_t: Tensor
    t: Tensor
    cond: Cond
    z: Tensor | None

    @torch.no_grad()
    def estimate(self, generator: Generator) -> Tensor:
        """x̂₀ [B,C,H,W]."""
        found: Tensor = generator(self.x_t, self.t, self.cond, self.z)
        return found

    def one(self) -> "Probe":
        """The first row alone."""
        z = None if self.z is None else self.z[:1]
        return Probe(self.x_t[:1], self.t[:1], self.cond.map(lambda value: value[:1]), z)


@torch.no_grad()
def probe(generator: Generator, batch: Batch, knots: Tensor, *, seed: int = 0) -> Probe:
    """Noisy versions of real images at all knots in turn; batch: encoded already."""
    rng = Rng(seed, batch.position)
    rows = torch.arange(len(batch.x)) % len(knots)
    t = knots[rows].to(batch.x.dtype)
    eps = rng.normal(batch.x.shape[1:], "eps").to(batch.x.dtype)
    nobody = torch.zeros(len(batch.x), dtype=torch.bool)
    z = rng.normal((generator.z_dim,), "z").to(batch.x.dtype) if generator.z_dim else None
    return Probe(generator.process.noise(batch.x, t, eps), t, generator.condition(batch, nobody), z)


def flops(generator: Generator, seen: Probe) -> int:
    """FLOPs of one evaluation of the net for one image, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        seen.one().estimate(generator)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Unit:
    """What is left out together: a place of the net and its units there; a block has none."""

    place: str
    units: tuple[int, ...] = ()


@dataclass
class Cut:
    """What was decided: units left by place, the net's FLOPs before and after, in which order units went."""

    kept: dict[str, list[int]]
    before: int
    after: int
    order: list[tuple[Unit, float]] = field(default_factory=list)


def chosen(
    generator: Generator, seen: Probe, share: float, *, rounds: int = 3, told: Callable[[str], None] = print
) -> Cut:
    """What to leave of a generator's net so that its FLOPs fall by `share` of (0, 1).

    rounds: after each the rest is measured again. Raises UserError for a share that nothing reaches.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"prune={share:g} is the share of FLOPs to be saved, between 0 and 1, e.g. 0.3")
    generator = copy.deepcopy(generator).requires_grad_(False)
    whole = flops(generator, seen)
    found = Cut({}, whole, whole)
    for number in range(rounds):
        goal = whole * (1.0 - share * (number + 1) / rounds)
        _round(generator, seen, found, goal, told=told)
        told(f"round {number + 1} of {rounds}: {1 - found.after / whole:.1%} of the FLOPs are saved")
    return found


def _round(
    generator: Generator, seen: Probe, found: Cut, goal: float, *, told: Callable[[str], None]
) -> None:
    """Take out the cheapest of what is left until the FLOPs are at the goal."""
    small = smaller(generator, found.kept)
    reference = seen.estimate(generator)
    ranked = sorted(scores(small, seen, reference, found), key=lambda each: each[1])
    for unit, score in ranked:
        if found.after <= goal:
            return
        trial = without(generator, found.kept, unit)
        if trial is None:
            continue
        found.after = flops(smaller(generator, trial), seen)
        found.kept = trial
        found.order.append((unit, score))
    if found.after > goal:
        saved = 1 - found.after / found.before
        raise UserError(
            f"of this net's FLOPs {saved:.0%} can be saved at most: ask for less, prune={saved:.2f}"
        )


def smaller(generator: Generator, kept: Mapping[str, Sequence[int]]) -> Generator:
    """A copy of a generator with its net cut."""
    made = copy.deepcopy(generator)
    take_out(cast(nn.Module, made.net), kept)
    return made


def scores(small: Generator, seen: Probe, reference: Tensor, found: Cut) -> Iterator[tuple[Unit, float]]:
    """Every unit of the net as it is now, by names of the whole net, with s_u."""
    net = cast(nn.Module, small.net)
    now, costs = error(seen.estimate(small), reference), dict[str, float]()
    cost = flops(small, seen)
    for unit in units(net):
        if unit.place not in costs:
            less = copy.deepcopy(small)
            take_out(cast(nn.Module, less.net), _left(net, unit))
            costs[unit.place] = max(1.0, (cost - flops(less, seen)) / max(1, len(unit.units)))
        with left_out(net, unit):
            more = error(seen.estimate(small), reference) - now
        saved = costs[unit.place] * max(1, len(unit.units))
        yield renamed(unit, found.kept), more / saved


def error(one: Tensor, other: Tensor) -> float:
    """Mean square of the difference."""
    return float((one - other).double().square().mean())


def units(net: nn.Module) -> Iterator[Unit]:
    """What can be left out of a net: blocks, heads, groups, channels in chunks; one of each axis stays."""
    for place, axis in axes(net).items():
        if axis is None:
            yield Unit(place)
            continue
        module: Any = module_of(net, place)
        count = axis.units(module)
        order = _weights(module, axis).view(count, -1).norm(dim=1).argsort()
        if count > 1:
            parts = order.tensor_split(min(count, CHUNKS))
            yield from (Unit(place, tuple(sorted(part.tolist()))) for part in parts)


def _weights(module: Any, axis: Axis) -> Tensor:
    """How much every channel of an axis weighs in what reads it."""
    columns = [module.get_submodule(name).weight.detach().transpose(0, 1).flatten(1) for name in axis.read]
    found: Tensor = torch.cat(columns, dim=1).norm(dim=1)
    return found


def _left(net: nn.Module, unit: Unit) -> dict[str, list[int]]:
    axis = axes(net)[unit.place]
    if axis is None:
        return {unit.place: []}
    count = axis.units(module_of(net, unit.place))
    return {unit.place: [each for each in range(count) if each not in unit.units]}


def renamed(unit: Unit, kept: Mapping[str, Sequence[int]]) -> Unit:
    """A unit of the cut net by its numbers in the whole one."""
    names = kept.get(unit.place)
    return unit if names is None else Unit(unit.place, tuple(names[each] for each in unit.units))


def without(
    generator: Generator, kept: Mapping[str, Sequence[int]], unit: Unit
) -> dict[str, list[int]] | None:
    """What is kept without one unit more; None where nothing of its axis is left, or its block is gone."""
    path = unit.place.partition(":")[0]
    gone = [place.partition(":")[0] for place in kept if place.endswith(f":{BLOCK}")]
    if any(path == block or path.startswith(f"{block}/") for block in gone):
        return None
    if unit.place.endswith(f":{BLOCK}"):
        inside = [place for place in kept if f"{place.partition(':')[0]}/".startswith(f"{path}/")]
        return {**{place: list(kept[place]) for place in kept if place not in inside}, unit.place: []}
    axis = axes(cast(nn.Module, generator.net))[unit.place]
    assert axis is not None
    count = axis.units(module_of(cast(nn.Module, generator.net), unit.place))
    left = [each for each in kept.get(unit.place, range(count)) if each not in unit.units]
    return {**{place: list(each) for place, each in kept.items()}, unit.place: left} if left else None


@contextmanager
def left_out(net: nn.Module, unit: Unit) -> Iterator[None]:
    """Let a net work as if a unit were taken out."""
    axis, module = axes(net)[unit.place], module_of(net, unit.place)
    if axis is not None:
        with axis.without(module, unit.units):
            yield
        return
    module.forward, before = _passed, module.forward
    try:
        yield
    finally:
        module.forward = before


def _passed(x: Tensor, *others: Any, **named: Any) -> Tensor:
    return x
