"""How often to save: Young's and Daly's intervals, and the share that trains, against machines that fail."""

import importlib.util
import math
import statistics
from pathlib import Path

import pytest

from lmsd.engine.failures import Failing

_SPEC = importlib.util.spec_from_file_location(
    "benchmark_of_plans", Path(__file__).parents[2] / "benchmarks" / "plan.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)


@pytest.mark.parametrize(
    ("rate", "save", "restart"), [(0.002, 60.0, 300.0), (0.01, 30.0, 300.0), (0.02, 120.0, 600.0)]
)
def test_the_share_is_that_of_a_thousand_machines_in_thirty_days(
    rate: float, save: float, restart: float
) -> None:
    failing = Failing(between=86_400 / (1_000 * rate), save=save, restart=restart)
    interval = failing.daly()
    found = [benchmark.simulated(1_000, rate, save, restart, interval, seed=seed) for seed in range(20)]
    assert statistics.fmean(found) == pytest.approx(failing.share(interval), abs=0.01)


def test_no_interval_is_better_than_dalys() -> None:
    failing = Failing(between=9_000.0, save=200.0, restart=300.0)
    best = max(range(100, 9_000, 10), key=failing.share)
    assert failing.daly() == pytest.approx(best, rel=0.03)
    assert failing.share(failing.daly()) == pytest.approx(failing.share(best), abs=1e-4)
    assert failing.share(failing.young()) < failing.share(failing.daly())


def test_young_is_the_limit_of_quick_saves_and_slow_ones_fill_the_time() -> None:
    quick = Failing(between=1e6, save=1e-3, restart=0.0)
    assert quick.young() == pytest.approx(math.sqrt(2e3))
    assert quick.daly() == pytest.approx(quick.young(), rel=1e-3)
    assert Failing(between=10.0, save=20.0, restart=0.0).daly() == 10.0


def test_failures_without_a_pause_train_for_no_time_at_all():
    failing = Failing(between=0.1, save=100.0, restart=300.0)
    assert failing.share(failing.daly()) == 0.0
