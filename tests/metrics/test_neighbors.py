"""Nearest training neighbors: distances against brute force, honest models against copies."""

import pytest
import torch
from scipy.stats import betabinom, mannwhitneyu, norm

from lmsd.errors import UserError
from lmsd.metrics import memorization, nearest, wilson
from lmsd.metrics import neighbors as module


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("d", [3, 40])
def test_distances_equal_brute_force_in_any_chunks(d, monkeypatch):
    x, to = draw(37, d, 0), draw(53, d, 1)
    x[5] = to[7]
    brute = (x[:, None] - to[None]).square().sum(dim=2).sqrt().min(dim=1).values
    torch.testing.assert_close(nearest(x, to)[0][:, 0], brute, rtol=1e-12, atol=0)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 200)
    torch.testing.assert_close(nearest(x, to)[0][:, 0], brute, rtol=1e-12, atol=0)


def test_an_honest_model_has_ratio_one_and_copies_show():
    train, held_out, honest = draw(1500, 8, 0), draw(600, 8, 1), draw(600, 8, 2)
    fair = memorization([honest], train, held_out).near
    assert fair.ratio.value == pytest.approx(1.0, abs=0.05)
    assert fair.low.value == pytest.approx(1.0, abs=0.1)
    assert fair.closer.value < 0.03
    for each, truth in ((fair.ratio, 1.0), (fair.low, 1.0), (fair.closer, 0.01)):
        assert each.low < truth < each.high
    copies = honest.clone()
    copies[:60] = train[:60] + 1e-3 * draw(60, 8, 3)
    caught = memorization([copies], train, held_out).near
    assert caught.low.value < caught.low.high < 0.3, "a tenth of copies moves the low quantile to nothing"
    assert caught.closer.value == pytest.approx(0.1, abs=0.03)
    assert caught.closer.low > 0.05
    assert caught.ratio.value > 0.9, "the median does not see them"


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
        below = int((generated < held_out.min()).sum())
        counts.append(module._exceedance(below, 30, 100))
    for level in (0.5, 0.1, 0.01):
        share = sum(p <= level for p in counts) / 4000
        assert share <= level + 4 * (level / 4000) ** 0.5


def blurred(n: int, seed: int) -> torch.Tensor:
    """An honest model of less variance than the data: nearer to the training set everywhere."""
    return 0.8 * draw(n, 8, seed)


@pytest.mark.parametrize("model", [lambda n, seed: draw(n, 8, seed), blurred], ids=["perfect", "blurred"])
def test_honest_models_are_not_flagged_and_copying_ones_are(model):
    """Twenty runs each: 400 samples for each of two seeds, a tenth of them copies with a little noise."""
    surprises = 0
    for run in range(20):
        train, held_out = draw(1000, 8, 10 * run), draw(400, 8, 10 * run + 1)
        honest = [model(400, 10 * run + place) for place in (2, 3)]
        found = memorization(honest, train, held_out)
        assert not found.flagged, run
        surprises += found.copies.low > 0.0
        copying = [each.clone() for each in honest]
        for place, each in enumerate(copying):
            each[:40] = train[40 * place : 40 * place + 40] + 0.02 * draw(40, 8, 10 * run + 5)
        caught = memorization(copying, train, held_out)
        assert caught.flagged, run
        assert caught.copies.low > 0.0
        assert caught.copies.value == pytest.approx(0.1, abs=0.03)
        assert all(row < 40 and source == 40 * place + row for place, row, source in caught.pairs)
    assert surprises <= 3, "an end of a 95 % interval"


def test_c_t_is_near_zero_for_honest_models_and_far_below_for_overfit_ones():
    train, held_out = draw(2000, 8, 0), draw(500, 8, 1)
    honest = [memorization([draw(500, 8, seed)], train, held_out).c_t.value for seed in range(2, 12)]
    assert abs(sum(honest) / 10) < 1
    assert max(map(abs, honest)) < 3
    overfit = train[:500] + 0.3 * draw(500, 8, 20)
    assert memorization([overfit], train, held_out).c_t.high < -3
    assert memorization([2 * draw(500, 8, 21)], train, held_out).c_t.low > 3


def test_equal_training_samples_do_not_hide_their_copy():
    train, held_out = draw(500, 8, 0), draw(200, 8, 1)
    train[:50] = train[50:100]
    model = draw(200, 8, 2)
    model[:20] = train[:20]
    assert memorization([model], train, held_out).flagged


def test_held_out_samples_in_the_training_set_do_not_hide_copies():
    """Twenty of 800 are copies in truth, or but for the rounding of another batch."""
    train, held_out, model = draw(1000, 8, 0), draw(800, 8, 1), draw(800, 8, 2)
    clean = memorization([model], train, held_out[20:])
    model[:400] = train[100:500]
    for rounding in (0.0, 1e-6):
        held_out[:20] = train[:20] + rounding * draw(20, 8, 3)
        found = memorization([model], train, held_out)
        assert found.flagged
        assert found.twins == 20
        assert found.near.closer.value > 0.5
        honest = memorization([draw(800, 8, 2)], train, held_out)
        for kind in ("ratio", "low", "closer"):
            assert getattr(honest.near, kind).value == getattr(clean.near, kind).value
        assert honest.c_t.value == pytest.approx(clean.c_t.value, abs=0.2)
    nobody = memorization([model], train, train[:500] + 1e-6 * draw(500, 8, 3))
    assert nobody.twins == 500
    assert not nobody.flagged
    for number in (nobody.p, nobody.near.ratio.value, nobody.near.low.high, nobody.copies.value):
        assert number != number
    assert nobody.c_t.value != nobody.c_t.value


def test_the_share_of_copies_has_the_interval_of_a_difference():
    """By hand: 12 of 100 below the smallest of 50; Wilson's ends, and those of Beta(1, 50)."""
    generated = torch.where(torch.arange(100)[:, None] < 12, 0.1, 0.9).double()
    p, found = module._copies(generated, torch.linspace(0.2, 1.0, 50).double())
    assert p == pytest.approx(betabinom.sf(11, 100, 1, 50))
    share, level = wilson(12, 100), 1 / 51
    low, high = (1 - 0.975 ** (1 / 50), 1 - 0.025 ** (1 / 50))
    assert found.value == pytest.approx(0.12 - level)
    assert found.low == pytest.approx(
        0.12 - level - ((0.12 - share.low) ** 2 + (high - level) ** 2) ** 0.5, abs=1e-12
    )
    assert found.high == pytest.approx(
        0.12 - level + ((share.high - 0.12) ** 2 + (level - low) ** 2) ** 0.5, abs=1e-12
    )


def test_seeds_of_one_prompt_are_no_more_rows():
    """Three equal seeds: the intervals of one."""
    train, held_out, model = draw(600, 8, 0), draw(300, 8, 1), draw(300, 8, 2)
    one, three = (memorization([model] * seeds, train, held_out) for seeds in (1, 3))
    assert three.near.ratio == one.near.ratio
    assert three.copies.high == pytest.approx(one.copies.high, rel=0.02)
    least, of_three = (memorization([draw(300, 8, 7)] * seeds, train, held_out).p for seeds in (1, 3))
    assert 0 < least < 1 / 3
    assert of_three == pytest.approx(3 * least), "the least of three is small three times as often"
