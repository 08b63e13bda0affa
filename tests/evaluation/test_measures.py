"""Scores from feature arrays: what stands beside them, what is refused, alignment of known embeddings."""

import pytest
import torch

from lmsd.evaluation.measures import alignment, class_scores, clip_distance, measures
from lmsd.metrics import (
    clip_mmd,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold,
    matched_halves,
    wilson,
)


def draw(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_score_has_its_floors():
    fakes, real, training = [draw(400, 4, 1) * 1.5, draw(400, 4, 2) * 1.5], draw(400, 4, 3), draw(400, 4, 4)
    found = measures(fakes, real, [0, 1] * 200, training=training, halvings=2)
    assert found.notes == ()
    scores = found.scores
    for kind in ("fd", "kid", "kid_paired", "precision", "recall", "density", "coverage"):
        assert {kind, f"{kind}_floor", f"{kind}_train"} <= set(scores)
        assert len(scores[kind].parts) == (20 if kind in ("fd", "kid", "kid_paired") else 30)
        assert len(scores[kind].by_seed) == 2
        assert scores[kind].interval.low <= scores[kind].interval.value <= scores[kind].interval.high
        assert scores[kind].interval.low < scores[kind].interval.high
        assert sum(scores[kind].by_seed) / 2 == pytest.approx(scores[kind].interval.value)
    assert scores["fd_train"].interval.value == pytest.approx(frechet_distance(training, real), rel=1e-9)
    for kind in ("fd_infinity", "fd_matched", "fd_ratio"):
        assert len(scores[kind].by_seed) == 2
        mean = sum(scores[kind].by_seed) / 2
        assert mean == pytest.approx(scores[kind].interval.value)
    assert scores["coverage"].by_seed[1] == manifold(fakes[1], real).coverage
    usual = sum(kernel_distance(fake, real).value for fake in fakes) / 2
    assert scores["kid"].interval.value == pytest.approx(usual, rel=1e-10)
    assert scores["kid_paired"].interval.value == pytest.approx(usual, abs=0.05), (
        "without the pairs i = i, which make no difference to independent rows"
    )
    assert scores["kid"].interval.low > scores["kid_train"].interval.high
    assert scores["fd"].interval.low > scores["fd_train"].interval.high


def test_intervals_have_a_width_also_in_many_dimensions():
    """In 64 dimensions neighborhoods of few samples hold everything: that is no certainty."""
    found = measures([draw(500, 64, 1) * 0.8], draw(500, 64, 2), [0] * 500, halvings=1).scores
    assert found["coverage"].interval.value == 1.0
    ends, least = found["coverage"].interval, wilson(500, 500)
    assert ends.low <= least.low < 1.0 == ends.high
    assert all(found[kind].interval.low < found[kind].interval.high for kind in ("precision", "recall"))


def test_the_floor_of_kid_is_unbiased_with_labels_that_tell_much():
    """Halves with the same labels in both are nearer to each other than draws; the pairs are left out."""
    values = []
    for seed in range(20):
        labels = torch.arange(100) % 5
        real = draw(100, 3, seed) * 0.3 + 3.0 * draw(5, 3, 99)[labels]
        values.append(measures([real], real, labels.tolist(), halvings=1).scores)
    usual, mean = (
        torch.tensor([found[name].interval.value for found in values])
        for name in ("kid_floor", "kid_paired_floor")
    )
    assert abs(mean.mean()) < 4 * mean.std() / 20**0.5
    assert usual.mean() < -8 * usual.std() / 20**0.5, "the usual estimate counts the pairs"


def test_class_scores_are_the_inception_scores_of_seeds():
    logits, real = [3 * draw(60, 5, 1), 3 * draw(60, 5, 2)], 3 * draw(60, 5, 3)
    found = class_scores(logits, real)
    by_hand = [inception_score(each).value for each in logits]
    assert found["class_score"].by_seed == pytest.approx(by_hand)
    real_score, expected = found["class_score_real"].interval, inception_score(real)
    assert (real_score.value, real_score.low) == pytest.approx((expected.value, expected.low), rel=1e-12)


def test_alignment_stands_between_real_and_wrong_captions():
    """Texts and real images agree; generated ones half the time."""
    texts = draw(200, 8, 1)
    real = texts + 0.2 * draw(200, 8, 2)
    half = torch.where(torch.arange(200)[:, None] % 2 == 0, real, draw(200, 8, 3))
    found = {name: score.interval for name, score in alignment([half, half], real, texts).items()}
    assert found["r_precision_real"].value > 0.98
    assert found["r_precision"].value == pytest.approx(0.5, abs=0.06)
    assert found["r_precision_shuffled"].value < 0.06
    assert found["clip_score_shuffled"].high < found["clip_score"].low
    assert found["clip_score"].high < found["clip_score_real"].low
    assert not any(name.startswith("r_precision") for name in alignment([half[:99]], real[:99], texts[:99]))


def test_cmmd_by_rows_is_near_the_two_sample_form():
    x, y, training = draw(100, 6, 1) + 1.0, draw(100, 6, 2), draw(100, 6, 3)
    found = clip_distance([x], y, [0] * 100, training=training)
    for name, one in (("cmmd", x), ("cmmd_train", training)):
        assert found[name].interval.value == pytest.approx(clip_mmd(one, y).value, rel=1e-9)
        paired = found[name.replace("cmmd", "cmmd_paired")].interval.value
        assert paired == pytest.approx(clip_mmd(one, y).value, rel=0.05, abs=0.3)
    ends = found["cmmd"].interval
    assert ends.low < ends.value < ends.high
    a, b = matched_halves([0] * 100, 0)
    assert found["cmmd_floor"].interval.value == pytest.approx(clip_mmd(y[a], y[b]).value, rel=1e-9)
    assert ends.low > max(found[f"cmmd_{floor}"].interval.high for floor in ("floor", "train"))
    assert set(clip_distance([x], y, [0] * 100)) == {
        "cmmd", "cmmd_floor", "cmmd_paired", "cmmd_paired_floor",
    }  # fmt: skip


def test_wrong_captions_are_other_ones_where_there_are_any():
    """Two captions for all rows, most of which have a neighbor of the same: none is scored with its own."""
    captions = draw(2, 8, 1)
    texts = captions[torch.tensor([0] * 30 + [1] * 10)]
    found = alignment([texts], texts, texts)
    apart = float(torch.nn.functional.cosine_similarity(captions[0], captions[1], dim=0).clamp(min=0.0))
    assert found["clip_score"].interval.value == pytest.approx(2.5)
    assert found["clip_score_shuffled"].interval.value == pytest.approx(2.5 * apart, abs=1e-12)
    alike = texts[:20]
    assert set(alignment([alike], alike, alike)) == {"clip_score", "clip_score_real"}, "there are no others"


def test_the_floor_of_fd_infinity_is_about_nothing():
    """Real halves, and training images, without the bias that lifts their FD: over 20 sets the mean is 0."""
    sets = [[draw(200, 4, 3 * k + place) for place in range(3)] for k in range(20)]
    found = [
        measures([2 * fake], real, [0, 1] * 100, training=training, halvings=1).scores
        for fake, real, training in sets
    ]
    for floor in ("floor", "train"):
        values = torch.tensor([each[f"fd_infinity_{floor}"].interval.value for each in found])
        biased = torch.tensor([each[f"fd_{floor}"].interval.value for each in found]).mean()
        assert abs(values.mean()) < 4 * values.std() / 20**0.5
        assert abs(values.mean()) < 0.3 * biased
        held = [each[f"fd_infinity_{floor}"].interval for each in found]
        assert sum(each.low <= 0.0 <= each.high for each in held) >= 17
    assert all(
        each["fd_infinity"].interval.low > each["fd_infinity_floor"].interval.high for each in found[:5]
    )


def test_halves_that_are_too_small_for_it_give_no_floor_of_fd_infinity():
    scores = measures([draw(100, 40)], draw(100, 40, 1), [0] * 100, halvings=1).scores
    assert "fd_infinity" in scores
    assert "fd_infinity_floor" not in scores


def test_what_n_cannot_bear_is_refused_with_the_alternatives():
    few = measures([draw(70, 4)], draw(70, 4, 1), [0] * 70)
    assert few.scores == {}
    assert few.notes == (
        "no distances: n=70 images make 35 pairs, and intervals need 40; take a larger n",
    ), "no label tells them apart"
    (note,) = measures([draw(70, 4)], draw(70, 4, 1), [0] * 36 + [1] * 34).notes
    assert (
        note
        == "no distances: n=70 images make 35 label-matched pairs, and intervals need 40; take a larger n"
    )
    wide = measures([draw(100, 60)], draw(100, 60, 1), [0] * 100)
    assert "kid" in wide.scores
    assert not any(name.startswith("fd") for name in wide.scores)
    assert "no fd: n=100 is below 120, twice the number of features" in wide.notes[0]
    assert "or read kid_paired" in wide.notes[0]
