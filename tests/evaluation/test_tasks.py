"""What a matrix of scores says of tasks that were learned one after the other."""

import math

import pytest

from lmsd.errors import UserError
from lmsd.evaluation.tasks import learned, table

# rows: before, after the first, the second and the third task
ONE = [[0.1, 0.1, 0.1], [0.9, 0.3, 0.2], [0.6, 0.8, 0.4], [0.5, 0.6, 0.9]]


def test_forgetting_and_transfer_are_the_formulas():
    found = learned([ONE])
    assert found.average.value == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert found.forgetting.value == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)
    assert found.transfer.value == pytest.approx(((0.3 - 0.1) + (0.4 - 0.1)) / 2)
    assert math.isnan(found.average.low)


def test_of_errors_the_least_is_the_best():
    errors = [[1 - value for value in row] for row in ONE]
    found, of_errors = learned([ONE]), learned([errors], higher=False)
    assert of_errors.forgetting.value == pytest.approx(found.forgetting.value)
    assert of_errors.transfer.value == pytest.approx(found.transfer.value)
    assert of_errors.average.value == pytest.approx(1 - found.average.value)


def test_a_task_that_is_learned_again_counts_from_its_best():
    again = [[0.0, 0.0], [0.5, 0.0], [0.7, 0.9]]
    assert learned([again]).forgetting.value == pytest.approx(-0.2)  # it got better


def test_seeds_give_intervals():
    other = [[value + 0.1 for value in row] for row in ONE]
    found = learned([ONE, other])
    assert found.average.low < found.average.value < found.average.high
    assert found.forgetting.low == pytest.approx(found.forgetting.value)  # the same in both
    text = table({"plain": found}, unit="right prompts")
    assert text.splitlines()[2].startswith("| plain | 0.717 [")


@pytest.mark.parametrize("matrix", [[[0.1], [0.2]], [[0.1, 0.2], [0.3, 0.4]]], ids=["one task", "no start"])
def test_another_form_is_refused(matrix):
    with pytest.raises(UserError, match="a matrix of scores"):
        learned([matrix])
