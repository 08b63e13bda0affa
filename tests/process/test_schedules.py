"""Schedules against their published figures, their ends, grids and refusals."""

import logging
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from lmsd.arguments import ArgumentError
from lmsd.errors import UserError
from lmsd.process import EDM, Article, Cosine, Flow, Linear, ScaledLinear, Schedule

ALL: list[Schedule] = [Linear(), ScaledLinear(), Cosine(), Article(), EDM(), Flow()]
schedules = pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)


def birthday(steps: int, t: int) -> float:
    """ᾱ_t of the article: (T - 1)! / ((T - 1 - t)! T^t), in exact fractions."""
    product = Fraction(1)
    for k in range(1, t + 1):
        product *= 1 - Fraction(k, steps)
    return float(product)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 11])
def test_article_is_the_birthday_product(steps):
    got = Article(steps).alpha_bar
    expected = [birthday(steps, t) for t in range(steps + 1)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert got[-1] == 0


def test_article_of_four_in_float32():
    alpha, sigma = Article()(torch.arange(5))
    abar = torch.tensor([1.0, 0.75, 0.375, 0.09375, 0.0])
    assert alpha.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(alpha, abar.sqrt(), rtol=1e-7, atol=0)
    torch.testing.assert_close(sigma, (1 - abar).sqrt(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(("steps", "kept"), [(100, 39), (1000, 132), (10_000, 425)])
def test_article_is_cut_where_its_signal_is_gone(steps, kept, caplog):
    with caplog.at_level(logging.WARNING, "lmsd"):
        schedule = Article(steps)
    assert (schedule.steps, schedule.t_noise) == (kept, kept)
    assert f"{steps - kept} of the article schedule's {steps} steps carry no signal" in caplog.text
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    assert snr[-1] >= 1e-4
    following = birthday(steps, kept + 1)
    assert following / (1 - following) < 1e-4


def test_article_table_at_a_thousand():
    got = Article(1000).alpha_bar
    figures = {
        1: 0.999,
        5: 0.985,
        10: 0.946,
        20: 0.809,
        37: 0.491,
        50: 0.273,
        67: 0.099,
        80: 0.036,
        100: 0.0054,
    }
    for t, value in figures.items():
        assert got[t].item() == pytest.approx(value, rel=0.02)
        assert got[t].item() == pytest.approx(birthday(1000, t), rel=1e-12)


def test_article_refuses_when_told_to(caplog):
    with pytest.raises(UserError, match="868 of the article schedule's 1000"):
        Article(1000, on_vanish="error")
    Article(11, on_vanish="error")  # the largest T of which only the last step vanishes
    with pytest.raises(UserError, match="choose T ≤ 11"):
        Article(12, on_vanish="error")
    assert not caplog.records


@pytest.mark.parametrize(
    ("schedule", "last"), [(Linear(), 4.0358e-5), (ScaledLinear(), 0.0046604), (Cosine(), 2.4288e-9)]
)
def test_last_alpha_bar_is_the_published_one(schedule, last):
    assert schedule.alpha_bar[-1].item() == pytest.approx(last, rel=1e-4)


@schedules
def test_ends_and_monotony(schedule):
    grid = schedule.grid(schedule.steps or 50)
    alpha, sigma, lam = schedule.coefficients(torch.tensor(grid, dtype=torch.float64))
    assert (grid[0], grid[-1]) == (schedule.t_noise, schedule.t_clean)
    assert (alpha[-1], sigma[-1], lam[-1]) == (1, 0, math.inf)
    assert (lam.diff() > 0).all()
    inner = alpha > 0
    torch.testing.assert_close(lam[inner][:-1], (alpha / sigma).log()[inner][:-1], rtol=1e-9, atol=1e-9)
    assert torch.equal(lam == -math.inf, alpha == 0)
    if schedule.steps is not None:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0)


@pytest.mark.parametrize("schedule", [Linear(), Article(8)], ids=["linear", "article"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8])
def test_discrete_grids_are_integers_going_down(schedule, steps):
    grid = schedule.grid(steps)
    assert len(grid) == steps + 1
    assert all(time == int(time) for time in grid)
    assert all(a > b for a, b in pairwise(grid))
    assert all(abs(time - schedule.steps * (steps - i) / steps) <= 0.5 for i, time in enumerate(grid))


def test_edm_grid_is_equation_5():
    n, low, high = 18, 0.002, 80.0
    expected = [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]
    assert EDM().grid(n) == pytest.approx([*expected, 0.0], rel=1e-12)
    assert EDM().grid(1) == [80.0, 0.0]


def test_flow_grid_is_even():
    assert Flow().grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]


@schedules
def test_share_of_the_way(schedule):
    t = schedule.at(torch.tensor([1e-6, 0.25, 0.5, 1.0]))
    assert t[-1] == schedule.t_noise
    assert (t.diff() > 0).all() if schedule.steps != 4 else t.tolist() == [1, 1, 2, 4]
    assert t[0] > schedule.t_clean


def test_model_times():
    assert Linear().model_time(torch.tensor([1, 1000])).tolist() == [0, 999]
    assert Article().model_time(torch.tensor([1.0, 4.0])).tolist() == [0, 750]
    assert Flow().model_time(torch.tensor([0.25])).item() == 250
    sigma = torch.tensor([0.002, 1.0, 80.0])
    torch.testing.assert_close(EDM().model_time(sigma), 1000 * sigma.log() / 4)
    assert EDM().model_time(torch.zeros(1)).isfinite().all()


def test_knots_are_copied_to_a_device_once():
    schedule = Flow()
    first = schedule.knots(4, torch.device("cpu"))
    assert first.tolist() == schedule.grid(4)
    assert schedule.knots(4, torch.device("cpu")) is first


@pytest.mark.parametrize("time", [-1.0, 5.0])
def test_times_outside_a_chain_are_errors(time):
    with pytest.raises(ArgumentError, match=r"Schedule.__call__ cannot work with t=Tensor .*out of"):
        Article()(torch.tensor([time]))


def test_refusals_name_the_value():
    with pytest.raises(UserError, match="steps=5 on a chain of 4"):
        Article().grid(5)
    with pytest.raises(UserError, match="steps=0 is not a number of steps"):
        Flow().grid(0)
    with pytest.raises(UserError, match="steps=-3 is not a number of steps"):
        Linear(-3)
    with pytest.raises(UserError, match=r"\(0, 1\]; these go from 0\.0001 to 1\.5"):
        Linear(beta_end=1.5)
    with pytest.raises(UserError, match="sigma_min < sigma_max"):
        EDM(1.0, 0.5)
