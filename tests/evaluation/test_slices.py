"""Slices of a split: which rows, and that a model that fails on one class is seen to."""

import json

import pytest
import torch

from lmsd.evaluation.scores import Scores
from lmsd.evaluation.slices import rows_by_slice, sliced
from lmsd.evaluation.verdict import slices_of
from lmsd.metrics import Score, kernel_distance_by_rows, wilson


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_labels_make_slices_in_their_order_if_there_are_enough_rows():
    labels = [10] * 50 + [2] * 40 + [3] * 39 + [0] * 60
    found = rows_by_slice(labels, ["a cat"] * 189)
    assert list(found) == ["0", "2", "10"]
    assert found["2"].tolist() == list(range(50, 90))
    assert rows_by_slice([1] * 50, None) == {}, "the whole is no slice"
    assert rows_by_slice(None, None) == {}


def test_words_that_some_captions_hold_make_slices():
    captions = ["a red circle", "A blue circle, red too"] * 30 + ["a blue ring"] * 45
    found = rows_by_slice(None, captions)
    assert list(found) == ["blue", "circle", "red", "ring"], "'a' is in every one, 'too' in 30"
    assert found["ring"].tolist() == list(range(60, 105))
    assert len(found["blue"]) == 75
    assert found["red"].tolist() == list(range(60))


def test_the_largest_thirty_are_kept():
    captions = [f"w{row % 31} v{row % 2}" for row in range(31 * 40 + 1)]
    found = rows_by_slice(None, captions)
    assert len(found) == 30
    assert {"v0", "v1", "w0"} < set(found)


def test_a_class_that_fails_is_seen_in_its_slice_alone():
    labels, right = torch.arange(200) % 2, torch.ones(200, 2, dtype=torch.bool)
    real = draw(200, 4, 0)
    fakes = [draw(200, 4, seed) + 2.0 * labels[:, None] for seed in (1, 2)]
    right[labels == 1, 0] = False
    rows = rows_by_slice(labels.tolist(), None)
    found = sliced(fakes, real, right, rows, extractor="net@ab12")
    good, bad = (found[name].scores["kid_paired[net@ab12]"].interval for name in ("0", "1"))
    assert good.low < 0.0 < good.high < bad.low
    groups = torch.arange(100) % 20
    by_hand = kernel_distance_by_rows([fake[1::2] for fake in fakes], real[1::2], groups)
    assert found["1"].scores["kid[net@ab12]"] == by_hand[0]
    assert found["1"].scores["kid_paired[net@ab12]"] == by_hand[1]
    assert [found[name].scores["right"].interval.value for name in ("0", "1")] == [1.0, 0.5]
    assert found["1"].n == 100
    assert "right" not in sliced(fakes, real, None, rows, extractor="x")["0"].scores

    record = Scores("net@ab12", 200, (0, 1), {}, None, (), {"split": "test"}, found).as_json()
    table = slices_of(json.loads(json.dumps(record)))
    assert table is not None
    assert table.scores == ["kid[net@ab12]", "kid_paired[net@ab12]", "right"]
    assert [row[:2] for row in table.rows] == [["0", "100"], ["1", "100"]]
    assert table.rows[0][4].replace("\u00a0", " ").startswith("100.0 % (")
    assert slices_of({"scores": {}}) is None


def test_an_interval_of_a_slice_is_that_of_its_rows():
    right = torch.tensor([[True], [False]] * 40)
    found = sliced([draw(80, 2, 0)], draw(80, 2, 1), right, {"x": torch.arange(40)}, extractor="x")
    score: Score = found["x"].scores["right"]
    expected = wilson(20, 40)
    assert (score.interval.low, score.interval.high) == pytest.approx((expected.low, expected.high))
