"""Rewards that fail are named and cost their group; sums and functions of the user's."""

import math

import pytest
import torch

from lmsd.errors import UserError
from lmsd.rewards import Function, Reward, RewardError, Sharpness, WeightedSum, base, captions_of, judge
from lmsd.types import Batch

BATCH = Batch(torch.zeros(4, 1, 8, 8), torch.arange(4), text=["a", "b", "a", "c"])
IMAGES = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)


@pytest.fixture(autouse=True)
def untold():
    base._told.clear()


class Named(Reward):
    def __init__(self, answer):
        self.answer = answer

    def __call__(self, images, batch, players=base.NOBODY):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "valid", "words"),
    [
        (torch.tensor([1.0, math.nan, 2.0, math.inf]), [True, False, True, False], "2 of 4 scores"),
        (torch.ones(3), [False] * 4, r"returned \[3\] where scores \[4\]"),
        (torch.ones(4, 1), [False] * 4, r"returned \[4, 1\]"),
        ([1.0, 2.0, 3.0, 4.0], [False] * 4, "returned list"),
        (torch.ones(4, dtype=torch.complex64), [False] * 4, "returned complex numbers where real ones"),
        (RewardError.of(KeyError("score")), [False] * 4, "raised KeyError: 'score'"),
    ],
)
def test_a_failure_is_named_once_and_has_no_score(answer, valid, words):
    with pytest.warns(UserWarning, match=f"reward Named .*{words}"):
        verdict = judge(Named(answer), IMAGES, BATCH)
    assert verdict.valid.tolist() == valid
    assert not verdict.value[~verdict.valid].any()
    again = judge(Named(answer), IMAGES, BATCH)  # warnings are errors nowhere, but there is none: told once
    assert again.problem == verdict.problem


def test_what_is_right_passes_through():
    verdict = judge(Named(torch.tensor([3.0, -1.0, 0.0, 2.0])), IMAGES, BATCH)
    assert verdict.value.tolist() == [3.0, -1.0, 0.0, 2.0]
    assert verdict.valid.all()
    assert verdict.problem is None


def test_ctrl_c_is_no_failure_of_a_reward():
    def pressed(images, captions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(Function(pressed), IMAGES, BATCH)


def test_a_sum_is_weighted_and_names_the_term_that_fails():
    terms = {"one": Named(torch.arange(4.0)), "two": Named(torch.ones(4))}
    total = WeightedSum(terms, {"one": 2.0, "two": -1.0})
    assert total(IMAGES, BATCH).tolist() == [-1.0, 1.0, 3.0, 5.0]
    terms["two"].answer = RewardError("raised ValueError: no")
    with pytest.warns(UserWarning, match="term two: raised ValueError: no"):
        assert not judge(total, IMAGES, BATCH).valid.any()
    assert WeightedSum({"one": Sharpness()}).differentiable
    assert not WeightedSum({"one": Sharpness(), "two": terms["two"]}).differentiable
    with pytest.raises(UserError, match="three"):
        WeightedSum(terms, {"three": 1.0})


def test_a_function_gets_images_and_captions_and_may_return_numbers():
    seen = []

    def mine(images, captions):
        seen.extend(captions)
        return [float(len(caption)) for caption in captions]

    verdict = judge(Function(mine), IMAGES, BATCH)
    assert seen == ["a", "b", "a", "c"]
    assert verdict.value.tolist() == [1.0] * 4
    labels = Batch(torch.zeros(2, 1, 1, 1), torch.arange(2), label=torch.tensor([3, 7]))
    assert captions_of(labels) == ["3", "7"]
    with pytest.raises(UserError, match="not a function"):
        Function("text")


def spoiled(images, captions):
    """Works in place, on both of its arguments."""
    score = images.flatten(1).mean(1)
    images.zero_()
    captions.clear()
    return score


@pytest.mark.parametrize("slope", [False, True])
def test_a_function_that_works_in_place_has_its_own_copy(slope):
    """Alone, and as a term of a sum: the next term and whoever asked see the images as they were."""
    images = (IMAGES.clone() + 1).requires_grad_(slope)
    kept = images.detach().clone()
    mean = kept.flatten(1).mean(1)
    one, other = (
        Function(each, differentiable=True) for each in (spoiled, lambda x, words: x.flatten(1).mean(1))
    )
    assert torch.equal(judge(one, images, BATCH).value.detach(), mean)
    both = WeightedSum({"one": one, "two": other, "three": one})
    found = judge(both, images, BATCH).value
    torch.testing.assert_close(found.detach(), 3 * mean)
    assert torch.equal(images, kept)
    assert BATCH.text == ["a", "b", "a", "c"]
    if slope:
        found.sum().backward()
        torch.testing.assert_close(images.grad, torch.full_like(kept, 3 / 64))


@pytest.mark.parametrize("wrap", [lambda reward: reward, lambda reward: WeightedSum({"it": reward})])
def test_what_has_a_way_out_is_no_failure_of_a_reward(wrap):
    def raising(images, captions):
        raise error

    for error in (UserError("captions of other data"), torch.OutOfMemoryError("full")):
        for reward in (Named(error), Function(raising)):
            with pytest.raises(type(error)):
                judge(wrap(reward), IMAGES, BATCH)


@pytest.mark.parametrize("wrap", [lambda reward: reward, lambda reward: WeightedSum({"it": reward})])
def test_a_fault_of_ours_is_not_swallowed_and_one_of_a_function_is_told(wrap):
    error = AttributeError("'NoneType' object has no attribute 'x'")
    with pytest.raises(AttributeError):
        judge(wrap(Named(error)), IMAGES, BATCH)

    def raising(images, captions):
        raise error

    with pytest.warns(UserWarning, match="raised AttributeError: 'NoneType' object"):
        assert not judge(wrap(Function(raising)), IMAGES, BATCH).valid.any()
