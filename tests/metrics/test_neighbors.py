"""Nearest training neighbors: distances against brute force, honest models against copies."""

import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from lmsd.errors import UserError
from lmsd.metrics import memorization, nearest, nearest_distances, nearest_neighbor_ratio
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


def test_the_k_nearest_are_those_of_brute_force():
    x, to = draw(20, 30, 0), draw(40, 30, 1)
    x[3] = to[11]
    brute = (x[:, None] - to[None]).square().sum(dim=2).sqrt().sort(dim=1)
    distances, rows = nearest(x, to, k=5)
    torch.testing.assert_close(distances, brute.values[:, :5], rtol=1e-12, atol=0)
    assert torch.equal(rows, brute.indices[:, :5])
    assert distances[3, 0] == 0.0
    with pytest.raises(UserError, match="4 training samples have no 5 nearest"):
        nearest(x, to[:4], k=5)


def test_mann_whitney_equals_scipy():
    a, b = draw(40, 1, 0)[:, 0].numpy(), draw(55, 1, 1)[:, 0].numpy() + 0.4
    theirs = mannwhitneyu(a, b, alternative="less", method="asymptotic", use_continuity=False).pvalue
    assert norm.cdf(module._mann_whitney(a, b)) == pytest.approx(theirs, rel=1e-9)


def test_the_level_of_the_test_for_copies_is_exact():
    """P(K ≥ k) of a beta-binomial against the definition: a random order of n and m equal values."""
    generator = torch.Generator().manual_seed(0)
    counts = []
    for _ in range(4000):
        generated, held_out = torch.rand(30, generator=generator), torch.rand(100, generator=generator)
        counts.append(module._exceedance(generated, held_out)[0])
    for level in (0.5, 0.1, 0.01):
        share = sum(p <= level for p in counts) / 4000
        assert share <= level + 4 * (level / 4000) ** 0.5


def blurred(n: int, seed: int) -> torch.Tensor:
    """An honest model of less variance than the data: nearer to the training set everywhere."""
    return 0.8 * draw(n, 8, seed)


@pytest.mark.parametrize("model", [lambda n, seed: draw(n, 8, seed), blurred], ids=["perfect", "blurred"])
def test_honest_models_are_not_flagged_and_copying_ones_are(model):
    """Twenty runs each: 400 samples for each of two seeds, a tenth of them copies with a little noise."""
    for run in range(20):
        train, held_out = draw(1000, 8, 10 * run), draw(400, 8, 10 * run + 1)
        honest = [model(400, 10 * run + place) for place in (2, 3)]
        found = memorization(honest, train, held_out)
        assert not found.flagged, run
        copying = [each.clone() for each in honest]
        for place, each in enumerate(copying):
            each[:40] = train[40 * place : 40 * place + 40] + 0.02 * draw(40, 8, 10 * run + 5)
        caught = memorization(copying, train, held_out)
        assert caught.flagged, run
        assert caught.copies == pytest.approx(0.1, abs=0.03)
        assert all(row < 40 and source == 40 * place + row for place, row, source in caught.pairs)


def test_c_t_is_near_zero_for_honest_models_and_far_below_for_overfit_ones():
    train, held_out = draw(2000, 8, 0), draw(500, 8, 1)
    honest = [memorization([draw(500, 8, seed)], train, held_out).c_t for seed in range(2, 12)]
    assert abs(sum(honest) / 10) < 1
    assert max(map(abs, honest)) < 3
    overfit = train[:500] + 0.3 * draw(500, 8, 20)
    assert memorization([overfit], train, held_out).c_t < -3
    assert memorization([2 * draw(500, 8, 21)], train, held_out).c_t > 3


def test_equal_training_samples_do_not_hide_their_copy():
    train, held_out = draw(500, 8, 0), draw(200, 8, 1)
    train[:50] = train[50:100]
    model = draw(200, 8, 2)
    model[:20] = train[:20]
    assert memorization([model], train, held_out).flagged


def test_held_out_samples_in_the_training_set_do_not_hide_copies():
    train, held_out, model = draw(1000, 8, 0), draw(800, 8, 1), draw(800, 8, 2)
    held_out[:20], model[:400] = train[:20], train[100:500]
    assert memorization([model], train, held_out).flagged
    nobody = memorization([model], train, train[:500])
    assert nobody.p != nobody.p
    assert not nobody.flagged
