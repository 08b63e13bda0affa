"""Nearest training neighbors: distances against brute force, honest models against copies."""

import pytest
import torch

from lmsd.metrics import nearest_distances, nearest_neighbor_ratio
from lmsd.metrics import neighbors as module


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("d", [3, 40])
def test_distances_equal_brute_force_in_any_chunks(d, monkeypatch):
    x, to = draw(37, d, 0), draw(53, d, 1)
    x[5] = to[7]
    brute = (x[:, None] - to[None]).square().sum(dim=2).sqrt().min(dim=1).values
    torch.testing.assert_close(nearest_distances(x, to), brute, rtol=1e-12, atol=0)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 200)
    torch.testing.assert_close(nearest_distances(x, to), brute, rtol=1e-12, atol=0)


def test_an_honest_model_has_ratio_one_and_copies_show():
    train, held_out, honest = draw(1500, 8, 0), draw(600, 8, 1), draw(600, 8, 2)
    fair = nearest_neighbor_ratio(honest, train, held_out)
    assert fair.ratio == pytest.approx(1.0, abs=0.05)
    assert fair.low == pytest.approx(1.0, abs=0.1)
    assert fair.closer < 0.03
    copies = honest.clone()
    copies[:60] = train[:60] + 1e-3 * draw(60, 8, 3)
    caught = nearest_neighbor_ratio(copies, train, held_out)
    assert caught.low < 0.05, "a tenth of copies moves the low quantile to nothing"
    assert caught.closer == pytest.approx(0.1, abs=0.03)
    assert caught.ratio > 0.9, "the median does not see them"
