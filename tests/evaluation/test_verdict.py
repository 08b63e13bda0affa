"""What stands beside each score in the table, and the first sentence of a report."""

import json
import math

import pytest
from test_eval_ranks import extractor as untrained
from tiny_set import TinySet, blobs

from lmsd.evaluation import Evaluator
from lmsd.evaluation.compare import write_comparison
from lmsd.evaluation.overlap import Overlap
from lmsd.evaluation.scores import Scores
from lmsd.evaluation.verdict import rows_of, sentences, slices_of
from lmsd.metrics import Interval, Memorization, NeighborRatio, Score

NAME = "inception-v3@6726"


def scores(named: dict[str, tuple[float, float, float]], near: Memorization | None = None) -> Scores:
    setup = {"split": "test", "ema": "0.05", "sampler": "FewStep", "steps": 4, "guidance": 1.0, "nfe": 4.0}
    found = {name: Score(Interval(*ends)) for name, ends in named.items()}
    return Scores(NAME, 500, (0,), found, near, (), setup)


def neighbors(ratio: float = 0.9) -> Memorization:
    near = NeighborRatio(Interval(ratio, 0.85, 0.95), Interval(0.7, 0.6, 0.8), Interval(0.013, 0.006, 0.02))
    return Memorization(near, 0.2, Interval(0.004, 0.0, 0.012), Interval(-2.5, -3.25, -1.75), ())


def test_floors_stand_beside_scores_with_bare_names_too():
    """`fid` and `is` have those of fd and class_score, which keep their extractor's name."""
    named = {
        "fid": (9.0, 8.0, 10.0),
        "is": (7.0, 6.5, 7.5),
        f"fd_train[{NAME}]": (2.0, 1.9, 2.1),
        f"class_score_real[{NAME}]": (8.0, 7.5, 8.5),
        f"fd_infinity[{NAME}]": (5.0, 4.0, 6.0),
        f"fd_infinity_floor[{NAME}]": (0.1, -0.2, 0.4),
        f"fd_infinity_train[{NAME}]": (0.2, -0.1, 0.5),
        f"cmmd[{NAME}]": (0.3, 0.2, 0.4),
        f"cmmd_floor[{NAME}]": (0.01, -0.1, 0.1),
    }
    beside = {row.name: row.beside for row in rows_of(scores(named).as_json())}
    assert beside == {
        "fid": "training images 2",
        "is": "real images 8",
        f"fd_infinity[{NAME}]": "real halves (n/2) 0.1; training images 0.2",
        f"cmmd[{NAME}]": "real halves (n/2) 0.01",
    }
    text = str(scores(named))
    assert "fid 9 [8, 10] (floor: train 2)" in text
    assert "is 7 [6.5, 7.5] (floor: real 8)" in text
    assert f"fd_infinity[{NAME}] 5 [4, 6] (floor: halves, n/2, 0.1, train 0.2)" in text


def test_numbers_about_neighbors_have_intervals_and_what_held_out_images_have():
    found = {row.name: row for row in rows_of(scores({}, neighbors()).as_json())}
    ratio, copies, c_t = (found[name] for name in ("nearest neighbor ratio", "copies", "C_T"))
    assert (ratio.value, ratio.interval) == ("0.90", "0.85 to 0.95")
    assert ratio.beside == "held-out images 1, by definition"
    assert "at 5 % 0.70 (0.60 to 0.80)" in ratio.meaning
    assert (copies.value, copies.interval) == ("0.4\u00a0%", "0.0\u00a0% to 1.2\u00a0%")
    assert (c_t.value, c_t.interval, c_t.beside) == (
        "-2.5",
        "-3.2 to -1.8",
        "held-out images 0, by definition",
    )
    said = str(scores({}, neighbors()))
    assert "training image 0.9 [0.85, 0.95] x as far as held-out ones' (at 5 %: 0.7 [0.6, 0.8])" in said
    numbers = scores({}, neighbors()).scalars("val/")
    assert numbers["val/neighbor_ratio/low"] == 0.85
    assert numbers["val/copies/high"] == 0.012


def test_a_record_without_intervals_of_neighbors_is_still_read():
    record = scores({}, neighbors()).as_json()
    del record["scores"]["neighbors"]["intervals"]
    assert [row.interval for row in rows_of(record)] == ["–", "–", "–"]


def test_where_all_held_out_images_were_trained_on_nothing_is_told():
    nothing = Interval(math.nan, math.nan, math.nan)
    found = scores(
        {}, Memorization(NeighborRatio(nothing, nothing, nothing), math.nan, nothing, nothing, (), 9)
    )
    assert [row.meaning for row in rows_of(found.as_json())] == [
        "cannot tell: held-out images lie on training images"
    ]
    assert "cannot tell" in str(found)
    assert found.scalars() == {}


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (
            {"fd_ratio": (0.8, 0.7, 0.9), "kid_paired": (0.1, 0.0, 0.2)},
            "FD is 0.80 × the real-vs-real floor on test",
        ),
        ({"fd_ratio": (0.8, 0.7, 0.9)}, "nearer than fresh real data, so with less variety"),
        ({"fd_ratio": (1.2, 0.9, 1.5)}, "at this n not told apart from held-out data."),
        ({"fd_ratio": (0.9, 0.7, 1.1)}, "at this n not told apart from held-out data."),
        ({"fd_ratio": (1.2, 1.1, 1.3)}, "(95 % interval 1.10 to 1.30): told apart from held-out data."),
        (
            {"kid_paired": (0.1, 0.05, 0.2)},
            "Paired KID is 0.1 on test (95 % interval 0.05 to 0.2): told apart from",
        ),
        ({"kid_paired": (0.1, -0.05, 0.2)}, ": at this n not told apart from held-out data."),
    ],
)
def test_the_first_sentence_is_about_distance(named, said):
    """Of FD over its floor; of KID where n is too small for FD."""
    record = scores({f"{kind}[{NAME}]": ends for kind, ends in named.items()}).as_json()
    assert said in sentences({"test": record}, [])[0]


def test_a_slice_shows_what_its_real_images_reach():
    record = scores({}).as_json()
    record["slices"] = {"3": {"n": 50, "right": {"value": 0.5, "low": 0.4, "high": 0.6}}}
    record["slices"]["3"]["right_real"] = {"value": 0.98, "low": 0.9, "high": 1.0}
    table = slices_of(record)
    assert table.scores == ["right", "right_real"]
    assert table.rows[0][3].startswith("98.0\u00a0%")


@pytest.mark.parametrize(("shared", "split"), [(Overlap(exact=20, near=30, of=300), "test"), (None, "train")])
def test_a_score_that_flatters_is_called_so_before_anything_else(shared, split, tmp_path):
    """In the verdict of the report, and of a comparison, by the notes that an evaluation writes."""
    evaluator = Evaluator(TinySet(100, 2), untrained(), shared=shared)
    for run, seed in (("a", 0), ("b", 0)):
        evaluator(lambda batch, rng: blobs(batch.label, 5), seeds=(seed,), split=split).write(tmp_path / run)
    record = json.loads((tmp_path / "a" / "eval" / split / "metrics.json").read_text())
    first, *_ = sentences({split: record}, [])
    assert first.endswith("scores flatter." if shared else "its scores here flatter.")
    assert first.startswith(
        "30 of 300 held-out images (10.0 %) are in the training set" if shared else "split=train"
    )
    _, words = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "c.html")
    for who in ("the first", "b"):
        assert f"  note: {who}: {first[:-1]}" in words
    assert sentences({split: record | {"notes": []}}, [])[0].startswith("Paired KID is")
