"""The autoencoder of the article's discriminator."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.nets.autoencoder import MLPAutoencoder


def test_it_learns_to_reproduce_what_its_code_can_hold():
    """Images on a plane: two numbers are enough, one is not."""
    torch.manual_seed(0)
    plane = torch.randn(2, 16)
    x = (torch.randn(256, 2) @ plane).view(256, 1, 4, 4)
    left = {}
    for code in (1, 2):
        net = MLPAutoencoder((1, 4, 4), 64, depth=1, code=code)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(300):
            loss = (net(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left[code] = float(loss.detach() / x.var())
    assert left[2] < 0.03
    assert left[1] > 3 * left[2]


def test_a_sample_is_judged_by_itself():
    net, x = MLPAutoencoder((2, 3, 3), 8, code=4), torch.randn(6, 2, 3, 3)
    assert net(x).shape == x.shape
    torch.testing.assert_close(net(x)[2:4], net(x[2:4]))


def test_sizes_below_one_are_refused():
    for options in ({"width": 0}, {"depth": 0}, {"code": 0}):
        with pytest.raises(UserError, match="at least 1"):
            MLPAutoencoder((1, 4, 4), **options)
