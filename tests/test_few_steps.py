"""benchmarks/few_steps.json: every trial of every method is a configuration, and all methods have as many."""

import json
from pathlib import Path

import pytest

from lmsd.cli.config.compose import load
from lmsd.cli.config.limits import check_limits

ROOT = Path(__file__).parents[1]
PLANS = json.loads((ROOT / "benchmarks" / "few_steps.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "method"), [(data, method) for data, plan in PLANS.items() for method in plan["methods"]]
)
def test_every_trial_is_a_configuration(data: str, method: str) -> None:
    plan, own = PLANS[data], PLANS[data]["methods"][method]
    assert len(own["trials"]) == 6
    for trial in own["trials"]:
        words = [f"objective={own['objective']}", *own.get("words", []), *trial]
        check_limits(load([*plan["base"], *words]))
