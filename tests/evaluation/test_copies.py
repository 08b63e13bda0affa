"""Copies at the level of a run: the record and the report's verdict; 20 runs in `benchmarks/copies.py`."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "benchmarks" / "copies.py"
SPEC = importlib.util.spec_from_file_location("benchmark_of_copies", PATH)
assert SPEC is not None
assert SPEC.loader is not None
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)


def test_a_run_that_copies_is_flagged_and_an_honest_one_is_not(tmp_path):
    found = BENCHMARK.judged(2, tmp_path)
    assert (found["copying"]["flagged"], found["copying"]["verdicts"]) == (2, 2)
    assert (found["honest"]["flagged"], found["honest"]["verdicts"]) == (0, 0)
    assert all(0.05 < share < 0.15 for share in found["copying"]["copies"])
    assert 'alt="closest pairs"' in (tmp_path / "copying-0" / "report.html").read_text()
