"""FD with floor and ratio: the formulas by hand, and leaving groups out by subtraction."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.evaluation.distances import distances, row_groups
from lmsd.metrics import frechet_by_rows, frechet_distance, jackknife, matched_halves
from lmsd.metrics.matching import dealt


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_and_intervals_are_the_formulas():
    """Every statistic recomputed from the arrays, group by group, without any subtraction."""
    real, fakes = draw(91, 4, 0) + 7.0, [draw(91, 4, 1) * 1.2 + 7.0, draw(91, 4, 2) * 1.2 + 7.0]
    pairs = matched_halves([0, 1] * 45 + [2], 0)
    groups, halves = row_groups(91, pairs), [dealt(pairs, seed) for seed in range(3)]

    def statistics(keep):
        fd = sum(frechet_distance(fake[keep], real[keep]) for fake in fakes) / 2
        cut = [(a[keep[a]], b[keep[b]]) for a, b in halves]
        floor = sum(frechet_distance(real[a], real[b]) for a, b in cut) / 3
        matched = sum(
            frechet_distance(fake[a], real[b]) + frechet_distance(fake[b], real[a])
            for fake in fakes
            for a, b in cut
        )
        return fd, matched / 12, floor, matched / 12 / floor

    values = statistics(torch.ones(91, dtype=torch.bool))
    without = [statistics(groups != group) for group in range(20)]
    found = distances(fakes, real, pairs, groups, halvings=3)
    fd, without_bias = frechet_by_rows(fakes, real, groups)
    for place, score in enumerate((fd, found.matched, found.floor, found.ratio)):
        scale, interval = "log" if score is found.ratio else "linear", score.interval
        by_hand = jackknife(values[place], [each[place] for each in without], scale=scale)
        assert interval.value == pytest.approx(by_hand.value, rel=1e-10)
        assert interval.high == pytest.approx(by_hand.high, rel=1e-8)
        assert interval.low == pytest.approx(by_hand.low, rel=1e-8)
    assert fd.parts == pytest.approx([each[0] for each in without], rel=1e-8)
    assert fd.by_seed == pytest.approx([frechet_distance(fake, real) for fake in fakes], rel=1e-10)
    pseudo = [20 * values[0] - 19 * each[0] for each in without]
    assert without_bias.interval.value == pytest.approx(sum(pseudo) / 20, rel=1e-7)


def test_halves_stay_matched_with_any_group_left_out():
    labels = torch.randint(0, 5, (203,), generator=torch.Generator().manual_seed(0))
    pairs = matched_halves(labels, 0)
    groups = row_groups(203, pairs)
    for seed in range(3):
        a, b = dealt(pairs, seed)
        assert set(a.tolist()).isdisjoint(b.tolist())
        assert not torch.equal(a, pairs[0])
        for group in range(20):
            left = [labels[half[groups[half] != group]].bincount(minlength=5) for half in (a, b)]
            assert torch.equal(*left)
            assert len(a) - left[0].sum() in (len(a) // 20, len(a) // 20 + 1)


def test_the_ratio_of_perfect_models_is_one():
    """Over 30 perfect models with real sets of their own: matched and floor agree within their error."""
    pairs = matched_halves([0] * 128, 0)
    groups = row_groups(128, pairs)
    found = [
        distances([draw(128, 8, 2 * k)], draw(128, 8, 2 * k + 1), pairs, groups, halvings=4)
        for k in range(30)
    ]
    matched = torch.tensor([each.matched.interval.value for each in found])
    floor = torch.tensor([each.floor.interval.value for each in found])
    gap = matched - floor
    assert abs(gap.mean()) < 3 * gap.std() / 30**0.5
    assert floor.mean() > 0.2
    inside = sum(each.ratio.interval.low <= 1.0 <= each.ratio.interval.high for each in found)
    assert inside >= 26


def test_real_images_that_are_all_alike_give_no_ratio():
    pairs = matched_halves([0] * 128, 0)
    alike = torch.ones(128, 4, dtype=torch.float64)
    with pytest.raises(UserError, match="halves of the real images have the same features"):
        distances([draw(128, 4, 0)], alike, pairs, row_groups(128, pairs), halvings=1)
