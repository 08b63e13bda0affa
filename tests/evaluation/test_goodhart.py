"""The record of `benchmarks/goodhart.py`: a distance trained down to its floor, and what the verdict says."""

import json
from pathlib import Path

import pytest

from lmsd.evaluation.families import verdict_of

RECORD = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "results" / "goodhart.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("row", RECORD["rows"], ids=lambda row: f"seed {row['seed']}")
def test_a_distance_that_was_trained_down_makes_no_better(row) -> None:
    """Its own family sees it nearly as near as real images, the others farther than before."""
    teacher, last = row["teacher"], row["student"][-1]
    own, *others = (name for name in teacher if name != "images")
    assert last[own]["fd"] < 1.2 < teacher[own]["fd"]
    assert all(last[name]["fd"] > teacher[name]["fd"] for name in others)
    assert all(last[name]["recall"] <= teacher[name]["recall"] for name in others)
    verdict = verdict_of(row["records"]["student"], row["records"]["teacher"])
    assert verdict == row["verdict"]
    assert not verdict.startswith("better")
