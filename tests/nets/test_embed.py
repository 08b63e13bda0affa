import math

import pytest
import torch

from lmsd.errors import UserError
from lmsd.nets.embed import Context, TimeEmbedding, modulate, sinusoidal


def test_sinusoidal_is_the_formula():
    time, dim = torch.tensor([0.0, 1.0, 333.3, -250.0]), 6
    wave = sinusoidal(time, dim)
    for row, tau in zip(wave.tolist(), time.tolist(), strict=True):
        angles = [tau * 10_000 ** (-i / 3) for i in range(3)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-4)


def test_neighboring_times_of_a_thousand_step_chain_stay_apart():
    wave = sinusoidal(torch.arange(1000.0), 64)
    assert torch.cdist(wave, wave).fill_diagonal_(1.0).min() > 0.5


def test_odd_width_is_refused():
    with pytest.raises(UserError, match="odd"):
        TimeEmbedding(8, frequencies=7)


def test_context_is_the_sum_of_its_terms():
    context = Context(8, cond_dim=3, z_dim=2)
    time, cond, z = torch.rand(5) * 1000, torch.randn(5, 3), torch.randn(5, 2)
    rest = context(time, None, z) - context.z(z)
    expected = rest + context.cond(cond) + context.z(z)
    torch.testing.assert_close(context(time, cond, z), expected)


def test_modulate_is_film():
    h, scale, shift = torch.randn(3, 4, 5)
    torch.testing.assert_close(modulate(h, scale, shift), (1 + scale) * h + shift)
