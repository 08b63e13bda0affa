"""Precision, recall, density, coverage: the definitions written out, and what is known of equal sets."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.metrics import manifold, manifolds, thirds
from lmsd.metrics import manifold as function


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(y, x, k):
    """Every ball and every sample, by the definition."""

    def gap(u, v):
        return float((u - v).square().sum().sqrt())

    def radius(z, i):
        return sorted(gap(z[i], z[j]) for j in range(len(z)) if j != i)[k - 1]

    rx, ry = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    inside = [[gap(x[i], y[j]) < rx[i] for j in range(len(y))] for i in range(len(x))]
    precision = sum(any(inside[i][j] for i in range(len(x))) for j in range(len(y))) / len(y)
    recall = sum(any(gap(x[i], y[j]) < ry[j] for j in range(len(y))) for i in range(len(x))) / len(x)
    density = sum(map(sum, inside)) / (k * len(y))
    return precision, recall, density, sum(map(any, inside)) / len(x)


@pytest.mark.parametrize("k", [1, 3])
def test_equals_the_definition(k, monkeypatch):
    generated, real = draw(31, 3) * 0.8 + 0.4, draw(40, 3, seed=1)
    expected = written_out(generated, real, k)
    found = manifold(generated, real, k=k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        expected, rel=1e-12
    )
    monkeypatch.setitem(function.__globals__, "_CELLS", 90)
    assert manifold(generated, real, k=k) == found


def test_thirds_are_scored_by_themselves():
    """Row i of both arrays falls into one third."""
    generated, real = draw(90, 3) * 0.8 + 0.2, draw(90, 3, seed=1)
    whole, *parts = manifolds(generated, real, k=4)
    assert whole == manifold(generated, real, k=4)
    assert parts == [manifold(generated[rows], real[rows], k=4) for rows in thirds(90)]
    assert len(parts) == 30


def test_equal_distributions_have_the_known_coverage_and_density_one():
    """1 − Π_j (n−j)/(n+m−j) over j = 1 ... k (Naeem et al. 2020, Lemma 2), for any distribution."""
    n, m, k = 60, 50, 3
    found = [manifold(draw(m, 4, 2 * s), draw(n, 4, 2 * s + 1), k=k) for s in range(120)]
    miss = 1.0
    for j in range(1, k + 1):
        miss *= (n - j) / (n + m - j)
    coverage = torch.tensor([each.coverage for each in found])
    density = torch.tensor([each.density for each in found])
    assert abs(coverage.mean() - (1 - miss)) < 3.5 * coverage.std() / 120**0.5
    assert abs(density.mean() - 1) < 3.5 * density.std() / 120**0.5


def test_one_mode_of_two_is_precise_and_covers_half():
    real = torch.cat([draw(200, 2), draw(200, 2, seed=1) + 50])
    found = manifold(draw(400, 2, seed=2), real)
    assert found.precision > 0.9
    assert found.coverage == pytest.approx(0.5, abs=0.03)
    assert found.recall == pytest.approx(0.5, abs=0.05)


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="5 generated and 9 real samples are too few for k=5"):
        manifold(draw(5, 2), draw(9, 2))


@pytest.mark.parametrize("function", [manifold, manifolds])
def test_neighbors_are_counted_from_one(function):
    with pytest.raises(UserError, match="k=0: neighbors are counted from 1"):
        function(draw(20, 2), draw(20, 2), k=0)
    with pytest.raises(UserError, match="feature widths differ: 2 and 3"):
        function(draw(20, 2), draw(20, 3))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_ties_are_decided_by_differences(offset, seed, monkeypatch):
    """Features on a grid, and copies of real ones: distances tie with radii, and rounding decides nothing."""
    generator = torch.Generator().manual_seed(seed)
    real = torch.randint(0, 4, (60, 3), generator=generator).double() * 0.125 + offset
    generated = torch.cat(
        [real[:20], torch.randint(0, 4, (20, 3), generator=generator).double() * 0.125 + offset]
    )
    found = manifold(generated, real, k=3)
    expected = written_out(generated, real, 3)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        expected, abs=1e-12
    )
    monkeypatch.setitem(function.__globals__, "_CELLS", 200)
    assert manifold(generated, real, k=3) == found
