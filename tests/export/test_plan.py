"""The table of a way of sampling draws what the sampler draws, whichever sampler that is."""

from typing import Any

import pytest
import tiny_models
import torch

from lmsd.export.gate import asked
from lmsd.export.plan import noisy, plan
from lmsd.rng import Rng
from lmsd.sampling.generation import Generation
from lmsd.types import Batch

SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": tiny_models.DDIM,
    "ancestral": tiny_models.ANCESTRAL,
    "half": {**tiny_models.DDIM, "tau": 0.5},
    "heun": tiny_models.HEUN,
    "dpmpp": tiny_models.DPMPP,
}


def followed(generate: Generation, batch: Batch, seed: int) -> torch.Tensor:
    """Images by the table alone."""
    table, generator, rng = plan(generate), generate.generator, Rng(seed, batch.position)
    cond, null = (
        generator.condition(batch),
        generator.condition(batch, torch.ones(len(batch), dtype=torch.bool)),
    )
    known = {name: rng.at(turn).normal(table["shape"], tag) for name, turn, tag in table["noise"]}

    def total(weights: list[list[Any]]) -> torch.Tensor:
        return torch.stack([weight * known[name] for name, weight in weights]).sum(0)

    for number, call in enumerate(table["calls"]):
        x_t, t = total(call["x"]), torch.full((len(batch),), call["t"])
        z = rng.at(call["step"]).normal((table["z_dim"],), "z") if table["z_dim"] else None
        found = generator(x_t, t, cond, z)
        if call["guided"]:
            free = generator(x_t, t, null, z)
            found = free + table["guidance"] * (found - free)
        known[f"x0.{number}"] = found.clamp(*table["bounds"])
    return generator.decode(total(table["result"]))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_it_draws_what_the_sampler_draws(name: str, sampler: str) -> None:
    interval = (0.3, 0.8) if name == "cifar10" else None
    model = tiny_models.model(name, guidance=1.5, sampler=SAMPLERS[sampler])
    model.config["evaluate"]["interval"] = interval
    generate, batch = model.generation(), asked(model, 3)
    there = generate(batch, Rng(4, batch.position))
    assert (there - followed(generate, batch, 4)).abs().max() < 2e-5
    assert generate.record()["nfe"] == sum(1 + call["guided"] for call in plan(generate)["calls"])


def test_a_linear_multistep_of_fourth_order_too() -> None:
    model = tiny_models.model("linear", steps=9, sampler={"_target_": "lmsd.sampling.PLMS"})
    generate, batch = model.generation(), asked(model, 2)
    there = generate(batch, Rng(1, batch.position))
    assert (there - followed(generate, batch, 1)).abs().max() < 2e-4


def test_what_is_drawn_and_when() -> None:
    ancestral = plan(tiny_models.model("digits", sampler=SAMPLERS["ancestral"]).generation())
    assert noisy(ancestral) == [0, 1, 2], "the last step draws nothing"
    still = plan(tiny_models.model("digits").generation())
    assert (noisy(still), still["noise"]) == ([], [["x_T", 0, "x_T"]])
    assert [call["t"] for call in still["calls"]] == [4.0, 3.0, 2.0, 1.0]
    heun = plan(tiny_models.model("shapes", sampler=SAMPLERS["heun"], steps=2).generation())
    assert [(call["t"], call["step"]) for call in heun["calls"]] == [(1.0, 0), (0.5, 0), (0.5, 1)]
