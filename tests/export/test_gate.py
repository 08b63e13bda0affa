"""The parity gate sees ten faults, each of which changes a picture, and lets an equal model through."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from torch import nn

from lmsd.export.gate import Limits, asked, compare, drawn, probes, psnr
from lmsd.models.generator import Generator
from lmsd.sampling.model import Model
from lmsd.types import Batch, Cond
from lmsd.types import levels as quantized

LIMITS = Limits(n=6)


def no_guard(model: Model) -> Model:
    """NaN where a variance is 0."""
    for part in model.generator.modules():
        if isinstance(part, nn.GroupNorm):
            part.eps = 0.0
    return model


def swapped(model: Model) -> Model:
    """Red is blue."""
    return changed(model, decode=lambda self, x: Generator.decode(self, x).flip(1))


def shifted(model: Model) -> Model:
    """Every knot one later."""
    schedule = model.generator.process.schedule
    grid = schedule.grid
    vars(schedule)["grid"] = lambda steps: [*grid(steps + 1)[1:-1], 0.0, 0.0][: steps + 1]
    return model


def unguided(model: Model) -> Model:
    """Guidance is off."""
    return replace(model, config={**model.config, "evaluate": {**model.config["evaluate"], "guidance": 1.0}})


def never_null(model: Model) -> Model:
    """The null caption is the caption."""

    def condition(self: Generator, batch: Batch, drop: Any = None) -> Cond:
        return Generator.condition(self, batch)

    return changed(model, condition=condition)


def another_average(model: Model) -> Model:
    """Weights of another half-life: a few percent away."""
    torch.manual_seed(9)
    for value in model.generator.net.parameters():  # type: ignore[attr-defined]
        value.mul_(1 + 0.05 * torch.randn_like(value))
    return model


def transposed(model: Model) -> Model:
    """One square weight on its side."""
    square = next(v for v in model.generator.net.parameters() if v.ndim == 2 and v.shape[0] == v.shape[1])  # type: ignore[attr-defined]
    square.copy_(square.t().clone())
    return model


def misread(model: Model) -> Model:
    """What the net predicts is taken for eps, and is x0."""
    model.generator.prediction = "eps"
    return model


def first_alone(model: Model) -> Model:
    """The batch is fixed at 1."""

    def forward(self: Generator, x_t: Any, t: Any, cond: Cond, z: Any = None) -> Any:
        one = Generator.forward(self, x_t[:1], t[:1], cond.map(lambda v: v[:1]), None if z is None else z[:1])
        return one.expand_as(x_t)

    return changed(model, forward=forward)


def rescaled(model: Model) -> Model:
    """A wrong scale of the codec."""
    model.generator.codec.scale = 1.8  # type: ignore[assignment]
    return model


def changed(model: Model, **methods: Callable[..., Any]) -> Model:
    """A model whose generator has other methods."""
    generator: Any = model.generator
    generator.__class__ = type("Changed", (Generator,), methods)
    return model


FAULTS: dict[str, tuple[Callable[[Model], Model], str]] = {
    "NaN where a variance is 0": (no_guard, "cifar10"),
    "swapped channels": (swapped, "shapes"),
    "knots shifted by one": (shifted, "shapes"),
    "guidance off": (unguided, "shapes"),
    "null caption = caption": (never_null, "cifar10"),
    "the average of another half-life": (another_average, "cifar10"),
    "a transposed weight": (transposed, "digits"),
    "eps for x0": (misread, "chain"),
    "batch fixed at 1": (first_alone, "digits"),
    "a wrong codec scale": (rescaled, "squares"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str) -> None:
    plant, net = FAULTS[name]
    model = tiny_models.model(net, guidance=2.0)
    faulty = plant(replace(model, generator=copy.deepcopy(model.generator)))
    assert changes(model, faulty) > 1, "it would show"
    parity = compare(model, faulty, LIMITS)
    assert not parity.held, parity
    assert parity.missed


def changes(model: Model, faulty: Model) -> float:
    """The largest change of a level of 255: in drawn images, or in what is denoised from a constant one."""
    batch = asked(model, 3)
    far = (
        (drawn(model.generation(), batch).int() - drawn(faulty.generation(), batch).int()).abs().max().item()
    )
    inputs = [x for x in probes(model.generator, 4, batch) if not x[0].any()]
    for x_t, t, z in inputs:
        one, two = (
            quantized(each.generator.decode(each.generator(x_t, t, each.generator.condition(batch), z)))
            for each in (model, faulty)
        )
        far = max(far, (one.int() - two.int()).abs().max().item())
    return far


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("digits", 1.0), ("shapes", 2.0), ("cifar10", 2.0), ("emoji", 1.0), ("squares", 2.0)],
)
def test_the_same_model_passes(name: str, guidance: float) -> None:
    model = tiny_models.model(name, guidance=guidance, seed=3)
    parity = compare(model, replace(model, generator=copy.deepcopy(model.generator)), LIMITS)
    assert parity.held, parity.missed
    assert parity.rows[1].value == 100.0
    assert parity.setup == {"steps": 4, "guidance": guidance, "batches": [1, 2, 5], "images": 6}


def test_psnr_is_that_of_the_worst_image() -> None:
    one = torch.zeros(2, 1, 10, 10, dtype=torch.uint8)
    other = one.clone()
    assert psnr(one, other) == 100.0
    other[1, 0, 0, 0] = 255
    assert psnr(one, other) == pytest.approx(20.0)  # mean square error 255²/100
    other[0] = 255
    assert psnr(one, other) == pytest.approx(0.0)
    assert psnr(one, other[:1]) == -math.inf


def test_prompts_are_empty_short_and_too_long() -> None:
    model = tiny_models.model("digits")
    texts = asked(model, 6).text
    assert texts is not None
    assert texts[0] == ""
    assert model.generator.conditioner.cut(texts) >= 1
    assert len(set(texts)) == 6
    assert {word for text in texts for word in text.split()} <= {
        w for text in tiny_models.WORDS for w in text.split()
    }
