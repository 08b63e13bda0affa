"""The learning rate's law, clipping, the clock's cadences and the meter."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lmsd.engine.meter import Meter
from lmsd.engine.optim import Optimization, adamw, clip, set_rate, step, step_on_device
from lmsd.types import Clock


def test_rate_warms_up_and_falls_as_written() -> None:
    for images, expected in ((0, 0.0), (50, 0.5), (100, 1.0), (5_000, 1.0)):
        assert Optimization({}, warmup_images=100).rate(images, 1_000) == expected
    cosine = [Optimization({}, decay="cosine").rate(n, 1_000) for n in (0, 250, 500, 750, 1_000, 2_000)]
    assert cosine == pytest.approx(
        [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0, 0.0], abs=1e-15
    )


def test_rates_are_multiples_of_the_configured_ones() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.4}], lr=1.0)
    for factor in (0.5, 0.25, 1.0):
        set_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1 * factor, 0.4 * factor]


def test_clipping_scales_to_the_limit_and_tells_the_norm_before() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(5))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip(parameters, None).item() == 5.0
    assert parameters[1].grad.item() == 4.0
    assert clip(parameters, 10.0).item() == 5.0
    assert parameters[1].grad.item() == 4.0
    assert clip(parameters, 0.5).item() == 5.0
    assert parameters[1].grad.item() == pytest.approx(0.4, rel=1e-5)
    assert parameters[2].grad is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_step_without_a_finite_norm(bad: float) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = adamw([parameter], lr=0.1, weight_decay=0.1)
    parameter.grad = torch.tensor([1.0, bad, 1.0])
    step(optimizer, clip([parameter], 1.0))
    assert torch.equal(parameter, torch.ones(3))
    assert not optimizer.state
    parameter.grad = torch.ones(3)
    step(optimizer, clip([parameter], 1.0))
    assert (parameter < 1).all()


@pytest.mark.parametrize("make", [adamw, lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True)])
def test_fused_optimizers_skip_without_being_asked_on_the_host(make: Any) -> None:
    """The way of GPUs, which fused optimizers on a CPU go as well: no step, no momentum, no count."""
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    skipping, plain = make([ours]), make([theirs])
    for grad, finite in ((1.0, True), (float("nan"), False), (2.0, True)):
        ours.grad, theirs.grad = torch.full((3,), grad), torch.full((3,), grad)
        step_on_device(skipping, clip([ours], None))
        if finite:
            plain.step()
        assert torch.equal(ours, theirs)
    assert skipping.state[ours].get("step") == plain.state[theirs].get("step")
    assert not hasattr(skipping, "found_inf")


def test_a_cadence_comes_once_for_each_multiple() -> None:
    for batch in (1, 3, 7, 10, 64):
        hits = sum(Clock(10_000, "g", images=n + batch).crossed(n, 10) for n in range(0, 10 * batch, batch))
        assert hits == (10 * batch // 10 if batch <= 10 else 10)
    assert not Clock(1_000, "g", images=1_000).crossed(0, 0)


def test_the_clock_counts_and_comes_back() -> None:
    clock = Clock(100, "generator", images=40, played={"generator": 5})
    other = Clock(80, "generator")
    other.load_state_dict(clock.state_dict())
    assert (other.progress, other.done, other.updates) == (0.5, False, 5)
    clock.images = 128
    assert (clock.progress, clock.done) == (1.0, True)


def test_meter_means_leave_out_what_is_not_finite() -> None:
    meter = Meter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))})
    meter.add({"a": torch.tensor(2.0), "b": torch.tensor(5.0)})
    meter.add({"a": torch.tensor(6.0)})
    meter.add({"c": torch.tensor(float("inf"))})
    copy = Meter()
    copy.load_state_dict(meter.state_dict())
    means = meter.read()
    assert {name: means[name] for name in "ab"} == {"a": 3.0, "b": 5.0}
    assert math.isnan(means["c"])
    assert meter.read() == {}
    meter.add({"a": torch.tensor(7.0)})
    assert meter.read() == {"a": 7.0}
    assert copy.read()["a"] == 3.0
