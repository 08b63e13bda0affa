"""The parts of a generator as functions of tensors alone, for exporters: what goes in, what comes out.

    condition   ids, mask | label → [tokens], [pooled]
    denoiser    x_t, t, [pooled, tokens, mask, label], [z] → x̂₀, not clamped
    decoder     z → images in [-1,1], where the codec is more than the pixels
    loop        x_T of deviation 1, the condition, [the null one], [z of every step], [noise of the steps that
                draw any] → images: the whole of few-step sampling, deterministic given its inputs

All tensors have the batch first. Example inputs have three rows, as a program traced with one would be for
one alone.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.export.plan import noisy, plan
from lmsd.models.codec import Identity
from lmsd.models.conditioner import CaptionConditioner, Conditioner, LabelConditioner
from lmsd.models.generator import Generator
from lmsd.models.parts import from_parts
from lmsd.sampling.generation import Generation
from lmsd.sampling.model import Model
from lmsd.spec import locate
from lmsd.types import Cond

ROWS = 3
MOST_CALLS = 16
"""Evaluations of the net up to which the whole loop is exported, too: they are unrolled."""


@dataclass(frozen=True)
class Part:
    """A function to export: its module, example inputs by name and in order, and names of what it returns."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


def check(model: Model) -> None:
    """Raise UserError for a generator that is not made of the parts that programs are made of."""
    target = locate(str(model.spec["_target_"]))
    if target is not from_parts:
        raise UserError(
            f"{model.name} was made by {target.__name__}, and this format is for nets with a schedule of "
            "ours: take format=safetensors, or a format of pipelines"
        )


def parts(model: Model, *, loop: bool | None) -> dict[str, Part]:
    """All functions of a model; loop: None for few evaluations alone."""
    check(model)
    generator, generate = model.generator, model.generation()
    found: dict[str, Part] = {}
    match generator.conditioner:
        case CaptionConditioner() as text:
            ids, mask = text.ids(["a", "b c", ""])
            found["condition"] = Part(_Text(text), {"ids": ids, "mask": mask}, ("tokens", "pooled"))
        case LabelConditioner() as labels:
            label = torch.arange(ROWS) % (labels.classes + 1)
            found["condition"] = Part(_Labels(labels), {"label": label}, ("pooled",))
    cond = condition_of(generator)
    times = torch.full((ROWS,), float(generator.process.schedule.t_noise))
    inputs = {"x_t": torch.randn(ROWS, *generator.shape), "t": times, **cond, **_z(generator)}
    found["denoiser"] = Part(_Denoiser(generator, list(cond)), inputs, ("x0",))
    if type(generator.codec) is not Identity:
        found["decoder"] = Part(_Decoder(generator), {"z": torch.randn(ROWS, *generator.shape)}, ("images",))
    table = plan(generate)
    calls = len(table["calls"]) + sum(call["guided"] for call in table["calls"])
    if loop or (loop is None and calls <= MOST_CALLS):
        found["loop"] = loop_of(generate, table, cond)
    return found


def condition_of(generator: Generator) -> dict[str, Tensor]:
    """Example tensors of the condition that the net reads, by the names of `Cond`."""
    net, length = generator.net, _length(generator.conditioner)
    found: dict[str, Tensor] = {}
    if net.pooled_dim:
        found["pooled"] = torch.randn(ROWS, net.pooled_dim)
    if net.token_dim:
        found["tokens"] = torch.randn(ROWS, length, net.token_dim)
        found["mask"] = torch.ones(ROWS, length, dtype=torch.bool)
    if generator.conditioner.reads == "label" and not net.pooled_dim:
        found["label"] = torch.zeros(ROWS, dtype=torch.int64)
    return found


def _length(conditioner: Conditioner) -> int:
    return int(vars(conditioner).get("length", 0))


def _z(generator: Generator) -> dict[str, Tensor]:
    return {"z": torch.randn(ROWS, generator.z_dim)} if generator.z_dim else {}


class _Denoiser(nn.Module):
    """X̂₀ of a generator, its condition as loose tensors."""

    def __init__(self, generator: Generator, names: Sequence[str]) -> None:
        super().__init__()
        self.generator, self.names = generator, tuple(names)

    def forward(self, x_t: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        cond = Cond(**dict(zip(self.names, rest, strict=False)))
        z = rest[len(self.names)] if len(rest) > len(self.names) else None
        return self.generator(x_t, t, cond, z)  # type: ignore[no-any-return]


class _Text(nn.Module):
    """Token ids to the condition."""

    def __init__(self, conditioner: CaptionConditioner) -> None:
        super().__init__()
        self.conditioner = conditioner

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.conditioner.states(ids, mask)


class _Labels(nn.Module):
    """A label to its row."""

    def __init__(self, conditioner: LabelConditioner) -> None:
        super().__init__()
        self.table = conditioner.table

    def forward(self, label: Tensor) -> Tensor:
        return self.table(label)  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """What is diffused to images."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, z: Tensor) -> Tensor:
        return self.generator.decode(z)


class _Loop(nn.Module):
    """A plan, unrolled around the denoiser; inputs in the order of `names`."""

    def __init__(
        self, generator: Generator, table: Mapping[str, Any], cond: Sequence[str], names: Sequence[str]
    ) -> None:
        super().__init__()
        self.generator, self.table, self.cond, self.names = generator, table, tuple(cond), tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        known = {"x_T": given["x_T"]}
        known |= {f"noise.{step}": given["noise"][:, place] for place, step in enumerate(noisy(self.table))}
        for number, call in enumerate(self.table["calls"]):
            x_t = self._sum(call["x"], known)
            found = self._denoised(x_t, call, given, "")
            if call["guided"]:
                free = self._denoised(x_t, call, given, "null_")
                found = free + self.table["guidance"] * (found - free)
            low, high = self.table["bounds"]
            known[f"x0.{number}"] = found if high is None else found.clamp(low, high)
        return self.generator.decode(self._sum(self.table["result"], known))

    def _sum(self, weights: Sequence[tuple[str, float]], known: Mapping[str, Tensor]) -> Tensor:
        terms = [known[name] if weight == 1 else weight * known[name] for name, weight in weights]
        return sum(terms[1:], terms[0])

    def _denoised(
        self, x_t: Tensor, call: Mapping[str, Any], given: Mapping[str, Tensor], kind: str
    ) -> Tensor:
        cond = Cond(**{name: given[f"{kind}{name}"] for name in self.cond})
        z = given["z"][:, call["step"]] if "z" in given else None
        t = torch.full_like(x_t[:, 0, 0, 0], call["t"])
        return self.generator(x_t, t, cond, z)  # type: ignore[no-any-return]


def loop_of(generate: Generation, table: Mapping[str, Any], cond: Mapping[str, Tensor]) -> Part:
    """The whole loop of a plan."""
    generator = generate.generator
    inputs = {"x_T": torch.randn(ROWS, *generator.shape), **cond}
    if any(call["guided"] for call in table["calls"]):
        inputs |= {f"null_{name}": value.clone() for name, value in cond.items()}
    if generator.z_dim:
        inputs["z"] = torch.randn(ROWS, generate.settings.steps, generator.z_dim)
    steps = noisy(table)
    if steps:
        inputs["noise"] = torch.randn(ROWS, len(steps), *generator.shape)
    return Part(_Loop(generator, table, list(cond), list(inputs)), inputs, ("images",))


def traced(part: Part) -> torch.export.ExportedProgram:
    """A part as an ExportedProgram for 1 to 63 rows."""
    rows = torch.export.Dim("rows", min=1, max=63)  # 64 is where diffusers' upsampling branches
    shapes: list[Any] = [{0: rows} for _ in part.inputs]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates parts of its own
        found = torch.export.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            dynamic_shapes=tuple(_as_arguments(part.module, shapes)),
            strict=False,
        )
    for module in found.graph_module.modules():
        match module:
            case torch.fx.GraphModule():
                for node in module.graph.nodes:
                    node.meta.pop("stack_trace", None)  # paths of this machine
    return found


def _as_arguments(module: nn.Module, shapes: list[Any]) -> Iterator[Any]:
    """Shapes as forward takes the tensors: those of *inputs in a tuple of their own."""
    named = {_Denoiser: 2, _Loop: 0}.get(type(module), len(shapes))  # type: ignore[call-overload]
    yield from shapes[:named]
    if named < len(shapes):
        yield tuple(shapes[named:])
