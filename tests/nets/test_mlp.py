import pytest
import torch
from torch import nn

from lmsd.nets.mlp import ResidualMLP


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Leave no layer at its zero start, so that every path through the net carries something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net


@pytest.fixture
def net():
    return randomized(ResidualMLP((2, 4, 4), 24, depth=3, time_dim=16, cond_dim=5, z_dim=3))


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(6, 2, 4, 4), torch.rand(6) * 1000, torch.randn(6, 5), torch.randn(6, 3)


def test_starts_at_zero_and_learns_from_there():
    net = ResidualMLP((1, 4, 4), 16, depth=2)
    x = torch.randn(3, 1, 4, 4)
    out = net(x, torch.zeros(3))
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().sum().backward()
    assert net.outside.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("which", range(4))
def test_every_input_counts(net, inputs, which):
    moved = [value.clone() for value in inputs]
    moved[which] += 1.0
    assert (net(*inputs) - net(*moved)).abs().flatten(1).max(1).values.min() > 1e-3


def test_samples_do_not_mix(net, inputs):
    together = net(*inputs)
    alone = torch.cat([net(*(value[i : i + 1] for value in inputs)) for i in range(6)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_nothing(net, inputs):
    net(*inputs).square().sum().backward()
    plain = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net.gradient_checkpointing = True
    net(*inputs).square().sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, net.parameters(), strict=True))


def test_learns_the_linear_denoiser_of_a_gaussian():
    """x₀ ~ N(0, ¼ I), x = x₀ + σ ε: E[x₀|x] = x / (1 + 4 σ²), for every σ told through the time."""
    torch.manual_seed(0)
    net = ResidualMLP((1, 2, 2), 32, depth=2, time_dim=32)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(400):
        x_0, sigma = 0.5 * torch.randn(256, 1, 2, 2), torch.rand(256)
        x = x_0 + sigma[:, None, None, None] * torch.randn_like(x_0)
        loss = (net(x, sigma * 1000) - x_0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for sigma in (0.2, 0.5, 0.9):
        x = torch.randn(2000, 1, 2, 2) * (0.25 + sigma**2) ** 0.5
        error = net(x, torch.full((2000,), sigma * 1000)) - x / (1 + 4 * sigma**2)
        assert error.square().mean() < 0.02 * (x / (1 + 4 * sigma**2)).square().mean()
