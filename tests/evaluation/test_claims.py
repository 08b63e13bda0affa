"""Families of features: what a record holds of them, and that a claim takes all of them."""

import json
import math

import pytest
import torch
from test_eval_ranks import extractor as untrained
from tiny_set import TinySet, blobs

from lmsd.evaluation import Evaluator
from lmsd.evaluation.compare import write_comparison
from lmsd.evaluation.families import Families, families_of, told, verdict_of
from lmsd.evaluation.verdict import rows_of, sentences, shown
from lmsd.features.random_conv import RandomExtractor
from lmsd.features.ssl import train_without_labels

N = 240


def fresh(batch, rng):
    """A perfect model: new draws of the same law, one by one."""
    return torch.cat(
        [
            blobs(batch.label[row : row + 1], 9000 + int(batch.position[row]))
            for row in range(len(batch.label))
        ]
    )


def noisy(batch, rng):
    return (fresh(batch, rng) + 0.5 * rng.normal((1, 8, 8), "noise")).clamp(-1, 1)


@pytest.fixture(scope="module")
def families():
    train = TinySet(400, 1)
    return Families([train_without_labels(train, images=2000, augment="none"), RandomExtractor(1)], train)


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(TinySet(N, 2), untrained(), halvings=1)


@pytest.fixture(scope="module")
def perfect(evaluator, families):
    return evaluator(fresh, families=families, split="test", setup={"tuned_on": "fd[lmsd-cnn] on val"})


@pytest.fixture(scope="module")
def worse(evaluator, families):
    return evaluator(noisy, families=families, split="test")


def test_a_record_holds_every_family_and_what_they_say_together(perfect, families, evaluator):
    names = [evaluator.extractor.name, *(each.name for each in families.beside)]
    record = perfect.as_json()
    for name in names:
        for kind in ("fd", "fd_ratio", "fd_floor", "sw_ratio"):
            assert f"{kind}[{name}]" in record["scores"], (kind, name)
    assert f"kid_paired[{names[1]}]" not in record["scores"]
    mean = math.exp(sum(math.log(perfect.scores[f"sw_ratio[{name}]"].interval.value) for name in names) / 3)
    assert perfect["sw_families"].value == pytest.approx(mean)
    for each in families.beside:
        assert f"{each.name}={each.sha256}" in record["setup"]["families"]
    assert list(families_of(record)) == names, "the evaluation's own family first"


def test_scores_of_before_do_not_change_by_a_digit(perfect, evaluator):
    alone = evaluator(fresh, split="test")
    assert "sw_families" not in alone
    assert {name: perfect.scores[name] for name in alone.scores} == dict(alone.scores)
    assert perfect["fd"] == alone["fd"], "by its kind, a score is the evaluation's own family's"


def test_a_perfect_model_is_not_told_apart_and_a_noisy_one_is(perfect, worse, families, evaluator):
    for each in (evaluator.extractor, *families.beside):
        good, bad = (found.scores[f"sw_ratio[{each.name}]"].interval for found in (perfect, worse))
        assert good.low <= 1.0 <= good.high, each.name
        assert bad.low > 1.0, each.name
    said = sentences({"test": perfect.as_json()}, [])
    assert any("none tells them apart" in each for each in said)
    assert any("all tell them apart" in each for each in sentences({"test": worse.as_json()}, []))
    assert "The run was tuned on fd[lmsd-cnn] on val: a claim rests on the other families." in said


def test_better_takes_all_families(perfect, worse, families):
    one, other = perfect.as_json(), worse.as_json()
    assert verdict_of(one, other) == "better, and all 3 families agree"
    assert verdict_of(other, one) == "worse, and all 3 families agree"
    assert verdict_of(one, one) == "not told apart, and all 3 families agree"
    name = families.beside[0].name
    gamed = json.loads(json.dumps(other))
    for kind, score in one["scores"].items():
        if kind.endswith(f"[{name}]"):
            gamed["scores"][kind] = score
    said = verdict_of(gamed, other)
    assert said is not None
    assert said.startswith("neither better nor worse, for the families do not agree: ")
    assert f"smaller by {name}" in said


def test_one_family_alone_is_no_claim(perfect, worse, evaluator):
    only = [
        {**each.as_json(), "scores": {k: v for k, v in each.as_json()["scores"].items() if "lmsd-cnn" in k}}
        for each in (perfect, worse)
    ]
    said = verdict_of(*only)
    assert said is not None
    assert "alone, which is no claim" in said
    assert "by one family of features alone" in " ".join(sentences({"test": only[0]}, []))
    assert told({"a": -1, "b": -1}) == "better, and all 2 families agree"


def test_two_runs_are_compared_with_the_claim_in_words(perfect, worse, tmp_path):
    for name, scores in (("a", perfect), ("b", worse)):
        scores.write(tmp_path / name)
    page, words = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    assert "a is better, and all 3 families agree" in words
    assert "a is better, and all 3 families agree" in page.read_text()


def test_what_all_families_say_is_compared_where_they_are_the_same(perfect, worse, tmp_path):
    perfect.write(tmp_path / "a")
    record = json.loads(worse.write(tmp_path / "b").read_text())
    named = record["setup"]["families"].split(", ")
    for families, alike in ((named[::-1], True), (named[1:], False)):
        record["setup"]["families"] = ", ".join(families)
        for path in (tmp_path / "b").rglob("*.json"):
            path.write_text(json.dumps(record))
        words = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")[1]
        for kind in ("sw_families", "kinds"):
            assert (f"note: {kind} is not compared" in words) is not alike
            assert any(line.split()[0] == kind for line in words.splitlines()) is alike


def test_too_few_rows_for_intervals_have_no_families_and_fail_nothing(families):
    scores = Evaluator(TinySet(30, 2), untrained())(fresh, families=families)
    assert "sw_families" not in scores


def test_real_images_stand_beside_a_score_of_the_same_features(families):
    held_out, train = TinySet(N, 2), TinySet(400, 1)
    scores = Evaluator(held_out, untrained(), halvings=1, train=train)(fresh, families=families)
    beside = {row.name: row.beside for row in rows_of(scores.as_json())}
    own, other = untrained().name, families.beside[1].name
    assert f"training images {shown('fd')(scores['fd_train'].value)}" in beside[f"fd[{own}]"]
    assert "training images" not in beside[f"fd[{other}]"], "those are of another family"
