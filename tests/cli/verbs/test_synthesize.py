"""`lmsd data synthesize`: shards of a run's own images, and what they may be used for."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_home import TINY, spoken

from lmsd.data.shardset import ShardSet
from lmsd.evaluation.synthesis import Drawn, true_of


@pytest.fixture
def made(home):
    shutil.rmtree("data/made", ignore_errors=True)
    words = ["n=24", "confidence=0", "near=0", "seed=4"]
    return spoken(["data", "synthesize", "run=outputs/first", "out=data/made", *words])


def test_shards_name_the_run_and_are_trained_on_beside_real_ones(made, home):
    assert "24 images of first, of" in made
    manifest = json.loads(Path("data/made/manifest.json").read_text())
    assert manifest["source"] | {"name": "synthetic", "run": "first"} == manifest["source"]
    assert manifest["verdicts"]["kept"] == 24
    data = ShardSet("data/made", image_size=16)
    real = ShardSet("data/shapes", image_size=16)
    held = data.split_set("train")
    assert len(held) == 24
    assert set(held.captions(range(24))) <= set(real.split_set("train").captions(range(64)))
    words = ["data.shards=[data/shapes,data/made]", "data.weights=[3,1]", "run_dir=outputs/both", "name=both"]
    spoken(["train", *TINY, *words, "images=64"])
    records = [
        json.loads(Path(f"outputs/{run}/eval/val/metrics.json").read_text()) for run in ("first", "both")
    ]
    assert records[0]["extractor"] == records[1]["extractor"]  # which saw the real images alone
    assert records[0]["setup"]["data"] == records[1]["setup"]["data"]
    shutil.rmtree("outputs/both")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "data.shards=data/shapes", "data.val=data/made"],
            "generated images, which are no val set",
        ),
        (["train", "data.shards=data/made", "data.val=data/shapes"], "scores need real ones"),
        (["data", "synthesize", "run=outputs/first", "out=data/made", "n=4"], "already there"),
        (["data", "synthesize", "run=outputs/first", "out=data/new"], "needs n="),
        (["data", "synthesize", "run=outputs/first", "out=data/new", "n=4", "near=2"], "near"),
    ],
    ids=["val", "reference", "there", "n", "near"],
)
def test_what_is_refused(made, refused, words, said):
    more = [*TINY, "run_dir=outputs/none"] if words[0] == "train" else []
    assert said in refused(*words, *more)
    assert not Path("outputs/none").exists()
    assert not Path("data/new").exists()


@pytest.mark.parametrize(
    ("reads", "judged", "kept"),
    [
        ("text", None, (True, True)),
        ("label", None, (False, True)),
        ("label", "words", (True, True)),
        ("nothing", None, (False, False)),
        ("nothing", "label", (False, True)),
    ],
)
def test_nothing_is_told_of_an_image_that_it_was_not_made_of(reads, judged, kept):
    """Captions of the training law are no captions of images that were drawn of classes."""
    drawn = Drawn(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ["a red circle"], [3], 1)
    found = true_of(drawn, reads=reads, judged=judged)
    assert (found.text is not None, found.labels is not None) == kept
