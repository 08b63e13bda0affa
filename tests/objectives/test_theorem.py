"""The discriminator's reward at one nat brings a wrong model to the data; half a nat overshoots."""

import importlib.util
import math
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "reward_theorem.py"
_SPEC = importlib.util.spec_from_file_location("reward_theorem", _PATH)
theorem = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(theorem)


def test_the_best_policy_tends_to_the_tilted_model():
    """Linear-quadratic optima of K steps: within 0.05 at 50, an error that falls as 1/K, the limits exact."""
    p, l = theorem.quadratic()
    assert theorem.tilted(p, l, 1.0) == pytest.approx((1.0, 1.0))
    assert theorem.tilted(p, l, 0.5) == pytest.approx((9 / 7, math.sqrt(9 / 14)))
    errors = []
    for steps in (50, 200, 800):
        mean, std = theorem.best(steps, 1.0, p=p, l=l)
        errors.append(max(abs(mean - 1), abs(std - 1)))
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.15)
    assert errors[2] == pytest.approx(errors[1] / 4, rel=0.25)
    mean, std = theorem.best(50, 0.5, p=p, l=l)
    assert mean > 1.2
    assert std < 0.85


def test_a_trained_discriminator_is_the_log_ratio_of_data_and_model():
    """Its P and L against those of the chain's own output, whose std is 1.43 at 50 steps."""
    _, std = theorem.best(50, math.inf, p=0.0, l=0.0)
    p, l = theorem.trained_discriminator(0, samples=50_000)
    want = theorem.quadratic(model=(0.0, std))
    assert (p, l) == pytest.approx(want, abs=0.04)


@pytest.mark.slow
def test_grpo_with_it_reaches_the_data_at_one_nat_and_overshoots_at_half():
    """τ = 1, a_T = 0, 50 steps, last std 0.05; trained discriminator."""
    p, l = theorem.trained_discriminator(0)
    mean, std, _ = theorem.train(1.0, p, l, steps=50, updates=250, batch=1024)
    assert mean == pytest.approx(1.0, abs=0.05)
    assert std == pytest.approx(1.0, abs=0.05)
    mean, std, _ = theorem.train(0.5, p, l, steps=50, updates=250, batch=1024)
    want = theorem.best(50, 0.5, p=p, l=l)
    assert (mean, std) == pytest.approx(want, abs=0.07)
    assert mean > 1.15
