"""The sliced Wasserstein ratio: closed forms, its level where nothing differs, what it sees."""

import math

import pytest
import torch

from lmsd.errors import UserError
from lmsd.evaluation.distances import row_groups
from lmsd.metrics import matched_halves
from lmsd.metrics.sliced import geometric_mean, sliced_ratio, sliced_wasserstein, whitening


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ratio(fakes, real, seed=0, projections=200):
    halves = matched_halves([0] * len(real), seed)
    white = whitening(draw(600, real.shape[1], 77))
    return sliced_ratio(fakes, real, halves, row_groups(len(real), halves), white, projections=projections)


def test_a_shift_and_a_scale_have_their_closed_forms():
    """SW₂²(x, x + m) = E_u (u·m)² = |m|²/d, and SW₂²(x, cx) = (c − 1)² E_u mean (u·x)² = (c − 1)² |x|²/d."""
    x, shift = draw(300, 8, 0), torch.linspace(-1, 1, 8, dtype=torch.float64)
    found = sliced_wasserstein(x, x + shift, projections=20_000)
    assert found**2 == pytest.approx(float(shift.square().sum()) / 8, rel=0.03)
    found = sliced_wasserstein(x, 1.5 * x, projections=20_000)
    assert found**2 == pytest.approx(0.25 * float(x.square().sum(dim=1).mean()) / 8, rel=0.03)
    one = sliced_wasserstein(x[:, :1], x[:, 1:2])
    assert one == pytest.approx(math.sqrt(float((x[:, 0].sort()[0] - x[:, 1].sort()[0]).square().mean())))
    assert sliced_wasserstein(x, x[torch.randperm(300)]) == 0.0


def test_whitening_makes_the_training_images_covariance_the_identity():
    x = draw(500, 6, 1) @ torch.diag(torch.tensor([100.0, 1, 1, 0.01, 1, 0], dtype=torch.float64))
    white = whitening(x)
    assert white.map.shape == (6, 5), "a feature that never moves is left out"
    torch.testing.assert_close(white(x).T.cov(), torch.eye(5, dtype=torch.float64))
    with pytest.raises(UserError, match="tell nothing apart"):
        whitening(torch.ones(50, 3))
    assert whitening(x[:4]).map.shape == (6, 3), "four rows have three directions"


def test_fresh_draws_of_the_same_law_have_one_in_their_interval():
    inside, values = 0, []
    for seed in range(20):
        found = ratio([draw(200, 6, 1000 + seed)], draw(200, 6, 2000 + seed)).interval
        inside += found.low <= 1.0 <= found.high
        values.append(math.log(found.value))
    assert inside >= 19
    assert abs(sum(values) / 20) < 0.05, "1 on average"


def test_it_sees_a_shift_a_scale_and_a_lost_mode_and_a_second_seed_is_averaged():
    real = draw(400, 6, 3)
    assert ratio([draw(400, 6, 4) + 0.5], real).interval.low > 1.0
    assert ratio([draw(400, 6, 4) * 0.7], real).interval.low > 1.0
    assert ratio([draw(400, 6, 4).abs()], real).interval.low > 1.0
    two = ratio([draw(400, 6, 4), draw(400, 6, 5) + 1.0], real)
    assert len(two.by_seed) == 2
    assert two.interval.value == pytest.approx(math.sqrt(sum(each**2 for each in two.by_seed) / 2))
    assert len(two.parts) == 20
    assert two.method == "log jackknife"


def test_one_array_for_all_has_no_floor():
    with pytest.raises(UserError, match="no distance has a floor"):
        ratio([draw(100, 4, 0)], torch.ones(100, 4, dtype=torch.float64))


def test_the_geometric_mean_is_over_values_parts_and_seeds():
    real = draw(200, 6, 3)
    scores = [ratio([draw(200, 6, 4) + shift], real) for shift in (0.2, 0.6)]
    mean = geometric_mean(scores)
    assert mean.interval.value == pytest.approx(
        math.sqrt(scores[0].interval.value * scores[1].interval.value)
    )
    assert mean.parts[3] == pytest.approx(math.sqrt(scores[0].parts[3] * scores[1].parts[3]))
    assert mean.interval.low < mean.interval.value < mean.interval.high
