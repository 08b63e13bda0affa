"""The benchmark of intervals, in short: 60 experiments each here, 2,000 in `benchmarks/coverage.py`."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
SPEC = importlib.util.spec_from_file_location("benchmark_of_coverage", PATH)
assert SPEC is not None
assert SPEC.loader is not None
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)


@pytest.mark.parametrize("name", BENCHMARK.EXPERIMENTS)
def test_intervals_hold_the_truth(name):
    """At 95 % fewer than 50 of 60 happen once in 100,000 times."""
    assert BENCHMARK.covered(name, 60)["covered"] >= 50 / 60


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARK.EXPERIMENTS)
def test_intervals_hold_the_truth_in_93_to_97_percent(name):
    assert BENCHMARK.within(name, BENCHMARK.covered(name, 2000)["covered"])
