"""`lmsd update`: a run goes on with new shards, and old and new are scored before and after."""

import shutil
from pathlib import Path

import pytest
from tiny_home import spoken

from lmsd.cli.runs import store
from lmsd.cli.verbs.update import composed

COUNTS = ["image_size=16", "train_count=48", "val_count=32", "test_count=16", "near_duplicates=keep"]


@pytest.fixture
def more(home):
    if not Path("data/more").exists():
        spoken(["data", "build", "shapes", "out=data/more", *COUNTS, "seed=7"])
    return home


def test_the_new_run_is_the_old_one_with_another_method_and_data(more):
    words = composed(Path("outputs/first"), ["data.shards=data/more", "images=64"])
    names = [word.partition("=")[0] for word in words]
    assert names.count("data.shards") == names.count("images") == names.count("objective") == 1
    assert "net.width=16" in words  # as the old one was begun
    assert not [name for name in names if name.startswith("discriminator")]
    assert "init_from=outputs/first@ema" in words
    (prompts,) = (word for word in words if word.startswith("objective.prompts="))
    assert prompts.count("'") > 20


def test_gains_and_losses_are_told(more):
    said = spoken(["update", "run=outputs/first", "data.shards=data/more", "images=64", "run_dir=outputs/up",
                   "objective.own=8", "objective.keep=ewc"])  # fmt: skip
    for what in ("old right", "new right"):
        assert f"  {what}: " in said
    text = Path("outputs/up/UPDATE.txt").read_text()
    assert text.strip() in said
    assert store.status(Path("outputs/up"))["state"] == "done"
    shutil.rmtree("outputs/up")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.shards=data/more"], "which run?"),
        (["run=outputs/first"], "what is new?"),
        (["run=outputs/none", "data.shards=data/more"], "outputs/none"),
    ],
    ids=["no run", "no shards", "another run"],
)
def test_what_is_refused(more, refused, words, said):
    assert said in refused("update", *words)
