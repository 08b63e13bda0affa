"""Averages against their closed form."""

import pytest
import torch
from torch import nn

from lmsd.engine.ema import EMA, RAMP
from lmsd.errors import UserError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def test_average_is_the_weighted_sum_of_all_weights() -> None:
    source, half_lives, batch = net(), (50, 400), 16
    ema = EMA(source, half_lives)
    history = [source[0].weight.detach().clone()]
    for k in range(1, 41):
        with torch.no_grad():
            source[0].weight.normal_()
        history.append(source[0].weight.detach().clone())
        ema.advance(source, k * batch)
    for half_life in half_lives:
        betas = [0.5 ** (batch / min(half_life, RAMP * k * batch)) for k in range(1, 41)]
        expected = history[0]
        total = torch.ones(()).double()  # weight left to what came before, from the newest backwards
        expected = torch.zeros_like(history[0])
        for beta, value in zip(reversed(betas), reversed(history[1:]), strict=True):
            expected += total * (1 - beta) * value
            total = total * beta
        expected += total * history[0]
        torch.testing.assert_close(ema.average(half_life)[0].weight, expected, rtol=1e-12, atol=1e-13)
    assert ema.average() is ema.average(50), "the first half-life that is named"


def test_after_its_half_life_half_of_the_past_is_left() -> None:
    """Past the ramp, for any batch size: that is what a half-life in images means."""
    for batch in (10, 25):
        source = net()
        ema = EMA(source, (1_000,))
        start = 100_000
        ema.advance(source, start)
        before = ema.average()[0].weight.clone()
        with torch.no_grad():
            source[0].weight.zero_()
        for images in range(start + batch, start + 1_000 + 1, batch):
            ema.advance(source, images)
        torch.testing.assert_close(ema.average()[0].weight, before / 2, rtol=1e-9, atol=0)


def test_averages_are_modules_of_their_own() -> None:
    source = net()
    source[2].weight.requires_grad_(False)
    ema = EMA(source, (100, 10)).train()
    assert not any(module.training for module in ema.modules())
    assert not any(p.requires_grad for p in ema.parameters())
    assert source[0].weight.requires_grad
    assert ema.average()[2].weight is source[2].weight  # frozen: shared
    assert ema.average()[0].weight is not source[0].weight
    assert {name.split(".")[0] for name in ema.state_dict()} == {"100", "10", "_extra_state"}
    source(torch.randn(8, 3).double())
    ema.advance(source, 8)
    assert torch.equal(ema.average(10)[1].running_mean, source[1].running_mean)
    assert source[1].running_mean.any()


def test_a_state_brings_back_averages_and_their_age() -> None:
    source = net()
    ours, theirs = EMA(source, (30,)), EMA(source, (30,))
    for images in (10, 20):
        with torch.no_grad():
            source[0].weight.normal_()
        ours.advance(source, images)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        source[0].weight.normal_()
    ours.advance(source, 30)
    theirs.advance(source, 30)
    assert torch.equal(ours.average()[0].weight, theirs.average()[0].weight)


def test_an_average_that_is_not_kept_is_refused() -> None:
    with pytest.raises(UserError, match=r"no EMA with a half-life of 7 images; there are \[30\]"):
        EMA(net(), (30,)).average(7)
    with pytest.raises(UserError, match="keeps no EMA"):
        EMA(net(), ()).average()
