"""KID and CMMD: against torchmetrics, against sums written out, and their variance against experiments."""

import pytest
import torch

from lmsd.errors import UserError
from lmsd.metrics import (
    clip_mmd,
    gaussian,
    jackknife_groups,
    kernel_distance,
    kernel_distance_by_rows,
    polynomial,
)
from lmsd.metrics import kernel as module


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cubic(u, v):
    return (sum(p * q for p, q in zip(u, v, strict=True)) / len(u) + 1) ** 3


def written_out(x, y, k=cubic):
    """The definition, in Python's numbers."""
    x, y = x.tolist(), y.tolist()
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / (n * m)


def test_equals_the_definition():
    x, y = draw(21, 5), draw(17, 5, seed=1) * 1.3 + 0.2
    assert kernel_distance(x, y).value == pytest.approx(written_out(x, y), rel=1e-9)


def test_cmmd_equals_the_definition():
    x, y = draw(15, 6) + 1.0, draw(12, 6, seed=1)
    unit = [each / each.norm(dim=1, keepdim=True) for each in (x, y)]

    def k(u, v):
        return 2.718281828459045 ** (-sum((p - q) ** 2 for p, q in zip(u, v, strict=True)) / 200)

    assert clip_mmd(x, y).value == pytest.approx(1000 * written_out(*unit, k=k), rel=1e-9)


def test_equals_torchmetrics_on_the_same_subsets(monkeypatch):
    """The mean of 10 subsets of 40, whose rows its class draws, in float64."""
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = draw(120, 16), draw(130, 16, seed=1) * 1.2
    drawn, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n: drawn.append(randperm(n)) or drawn[-1])
    theirs = KernelInceptionDistance(feature=torch.nn.Identity(), subsets=10, subset_size=40)
    theirs.real_features, theirs.fake_features = [real], [fake]
    mean, _ = theirs.compute()
    subsets = zip(drawn[::2], drawn[1::2], strict=True)
    ours = [kernel_distance(real[a[:40]], fake[b[:40]]).value for a, b in subsets]
    assert mean.dtype == torch.float64
    assert sum(ours) / 10 == pytest.approx(float(mean), rel=1e-9)


def test_strips_make_no_difference(monkeypatch):
    x, y, groups = draw(60, 4), draw(60, 4, seed=1), jackknife_groups(60)
    whole = kernel_distance(x, y), *kernel_distance_by_rows([y], x, groups)
    monkeypatch.setattr(module, "_CELLS", 130)
    parts = kernel_distance(x, y), *kernel_distance_by_rows([y], x, groups)
    assert parts[0].value == pytest.approx(whole[0].value, rel=1e-12)
    assert parts[0].high == pytest.approx(whole[0].high, rel=1e-12)
    for kind in (1, 2):
        assert parts[kind].interval.high == pytest.approx(whole[kind].interval.high, rel=1e-12)
        assert parts[kind].parts == pytest.approx(whole[kind].parts, rel=1e-12)


def test_by_rows_is_the_one_sample_form_also_without_a_group():
    real, fakes, groups = draw(50, 3), [draw(50, 3, seed=k) + 0.4 for k in (1, 2)], jackknife_groups(50)

    def value(keep):
        r, n = real[keep], int(keep.sum())
        total = 0.0
        for f in (fake[keep] for fake in fakes):
            cross = polynomial(r, f)
            h = polynomial(r, r) + polynomial(f, f) - cross - cross.T
            total += float(h.sum() - h.diagonal().sum()) / (n * (n - 1)) / 2
        return total

    found = kernel_distance_by_rows(fakes, real, groups)[1]
    assert found.interval.value == pytest.approx(value(groups >= 0), rel=1e-10)
    assert sum(found.by_seed) / 2 == pytest.approx(found.interval.value, rel=1e-10)
    assert kernel_distance_by_rows(fakes[:1], real, groups)[1].by_seed == pytest.approx(found.by_seed[:1])
    assert found.parts == pytest.approx([value(groups != group) for group in range(20)], rel=1e-10)


def test_the_usual_one_by_rows_is_kids_own_value():
    """Row i of real and generated from one prompt: usual counts them, paired does not."""
    common = 2.0 * draw(60, 3, 9)
    real, fakes, groups = (
        common + draw(60, 3),
        [common + draw(60, 3, k) for k in (1, 2)],
        jackknife_groups(60),
    )
    usual, paired = kernel_distance_by_rows(fakes, real, groups)
    by_seed = [kernel_distance(fake, real).value for fake in fakes]
    assert usual.by_seed == pytest.approx(by_seed, rel=1e-10)
    assert usual.interval.value == pytest.approx(sum(by_seed) / 2, rel=1e-10)
    assert usual.interval.value < paired.interval.value - 0.3
    assert sum(usual.parts) / 20 == pytest.approx(usual.interval.value, rel=0.02)
    cross = polynomial(real, fakes[0])
    off = (cross.sum() - cross.diagonal().sum()) / (60 * 59)
    gap = 2 / 60 * float(off - cross.diagonal().mean())
    assert usual.by_seed[0] - paired.by_seed[0] == pytest.approx(gap, rel=1e-9)


def test_the_usual_ones_interval_is_that_of_repeated_experiments():
    """600 pairs of arrays that share prompts: the mean estimated variance is near the one seen."""
    found = []
    for k in range(600):
        common = draw(40, 2, 3 * k)
        real, fake = (common + draw(40, 2, 3 * k + place) for place in (1, 2))
        groups = torch.arange(40) % 20
        found.append(kernel_distance_by_rows([fake + 0.6], real, groups, kernel=gaussian_like)[0].interval)
    seen = torch.tensor([each.value for each in found]).var().item()
    estimated = torch.tensor([((each.high - each.low) / 2 / 1.959964) ** 2 for each in found]).mean().item()
    assert 0.85 < estimated / seen < 1.2


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_variance_is_that_of_repeated_experiments(shift):
    """600 experiments: the mean estimated variance is near the one seen (never far below it)."""
    found = [
        kernel_distance(draw(60, 2, 2 * k), draw(40, 2, 2 * k + 1) + shift, kernel=gaussian_like)
        for k in range(600)
    ]
    seen = torch.tensor([each.value for each in found]).var().item()
    estimated = torch.tensor([((each.high - each.low) / 2 / 1.959964) ** 2 for each in found]).mean().item()
    assert 0.85 < estimated / seen < (2.0 if shift == 0 else 1.15)


def gaussian_like(x, y):
    """A bounded kernel on the scale of the data, whose variance settles fast."""
    return gaussian(10.0 * x, 10.0 * y)


def test_an_unbiased_estimate_of_nothing_is_as_often_below_zero():
    values = [
        kernel_distance(draw(30, 2, 2 * k), draw(30, 2, 2 * k + 1), kernel=gaussian_like) for k in range(200)
    ]
    mean = torch.tensor([each.value for each in values])
    assert abs(mean.mean()) < 3 * mean.std() / 200**0.5
    assert (mean < 0).any()


def test_bad_arrays_are_refused():
    with pytest.raises(UserError, match="widths differ: 3 and 4"):
        kernel_distance(draw(9, 3), draw(9, 4))
    with pytest.raises(UserError, match="3 and 9 rows are too few"):
        kernel_distance(draw(3, 3), draw(9, 3))


def test_rows_that_do_not_belong_together_are_refused():
    with pytest.raises(UserError, match=r"fake arrays \[\[9, 3\]\] and the real one \[8, 3\] must be alike"):
        kernel_distance_by_rows([draw(9, 3)], draw(8, 3), torch.arange(8))
    with pytest.raises(UserError, match="x are complex numbers: take their real part"):
        kernel_distance(torch.zeros(9, 3, dtype=torch.complex64), draw(9, 3))
