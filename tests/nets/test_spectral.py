"""Spectral normalization as a function of the weights alone."""

import pytest
import torch
from torch import nn

from lmsd.nets.critics import ConvCritic, MLPCritic
from lmsd.nets.spectral import Spectral, normalize


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (8, 4, 3, 3)], ids=str)
def test_the_largest_singular_value_is_one(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64).flatten(1), full_matrices=False)
    spectrum = torch.logspace(0, -2, u.shape[1], dtype=torch.float64) * 5  # well apart
    weight = (u * spectrum @ v).view(shape)
    made = Spectral()(weight)
    assert torch.linalg.matrix_norm(made.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(made, weight / 5, rtol=1e-3, atol=1e-6)


def test_scale_has_no_influence_and_zeros_stay():
    torch.manual_seed(1)
    weight = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(Spectral()(7 * weight), Spectral()(weight))
    assert not Spectral()(torch.zeros(3, 4)).any()


@pytest.mark.parametrize(
    "critic", [MLPCritic((2, 4, 4), 16, depth=1), ConvCritic((2, 8, 8))], ids=["mlp", "conv"]
)
def test_a_critic_is_the_same_however_often_it_was_called(critic):
    names = dict(critic.named_parameters()).keys()
    normalize(critic)
    side = 4 if "inside" in critic._modules and isinstance(critic.inside, nn.Linear) else 8
    x, time = torch.randn(3, 2, side, side), torch.ones(3)
    first = critic.train()(x, time)
    assert torch.equal(first, critic(x, time))
    assert torch.equal(first, critic.eval()(x, time))
    assert dict(critic.named_parameters()).keys() != names
    assert not list(critic.buffers()) or "u" not in dict(critic.named_buffers())
    loss = critic(x, time).square().sum()
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in critic.parameters())
