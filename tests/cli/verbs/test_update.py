"""`lmsd update`: a run goes on with new shards, and old and new are scored before and after."""

import shutil
from pathlib import Path

import pytest
from tiny_home import spoken

from lmsd.cli.build.experiment import shard_set
from lmsd.cli.build.prompts import quoted
from lmsd.cli.config.compose import load
from lmsd.cli.runs import store
from lmsd.cli.verbs.update import composed, configured, joined, main
from lmsd.errors import UserError

COUNTS = ["image_size=16", "train_count=48", "val_count=32", "test_count=16", "near_duplicates=keep"]


@pytest.fixture
def more(home):
    if not Path("data/more").exists():
        spoken(["data", "build", "shapes", "out=data/more", *COUNTS, "seed=7"])
        Path("data/unheld").mkdir()
        for shard in Path("data/more").glob("train-*.tar"):
            shutil.copy(shard, "data/unheld")
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


@pytest.mark.parametrize(
    "line", ["extend=outputs/first", "compress run=outputs/first prune=0.3"], ids=["longer", "another verb's"]
)
def test_options_are_those_of_the_run_whatever_began_it(more, line):
    """What a run of `extend=` or of another verb was begun with is in its configuration alone."""
    shutil.copytree("outputs/first", "outputs/other", dirs_exist_ok=True)
    Path("outputs/other/overrides.txt").write_text(f"{line}\n")
    given = ["data.shards=data/more", "images=64", "optim.generator.lr=0.5"]
    made = configured(Path("outputs/other"), composed(Path("outputs/other"), given), given)
    old = store.config_of(Path("outputs/first"))
    assert (made.net, made.conditioner, made.batch_size) == (old.net, old.conditioner, old.batch_size)
    assert made.data.image_size == old.data.image_size
    assert (made.data.shards, made.images, made.optim.generator.lr) == ("data/more", 64, 0.5)
    assert made.optim.ema == old.optim.ema
    assert made.objective._target_.endswith("Continual")
    shutil.rmtree("outputs/other")


@pytest.mark.parametrize("text", ["it's", "a\\b", "end\\", "q\\'x", "a, b: [c] = d"])
def test_captions_are_quoted_as_they_are(text):
    read = load(["objective=continual", f"objective.prompts=[{quoted(text)}]"])
    assert list(read.objective.prompts) == [text]


def test_other_ranks_take_the_run_that_rank_0_found(more, monkeypatch):
    """By the time they come, `last` is the new run."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LMSD_UPDATE", "outputs/of_rank_0")
    with pytest.raises(UserError, match="of_rank_0"):
        main(["run=last", "data.shards=data/more"])


def test_old_shards_among_the_new_are_compared_once(more):
    old, given = store.config_of(Path("outputs/first")), ["data.shards=[data/more,data/shapes]", "images=64"]
    new = configured(Path("outputs/first"), composed(Path("outputs/first"), given), given)
    data = shard_set(joined(old, new))
    counts = {split: len(shard_set(old).index(split)) for split in ("train", "val")}
    assert (len(data.index("train")), len(data.index("val"))) == (48 + counts["train"], 32 + counts["val"])


@pytest.mark.slow
def test_a_dry_run_is_one(more):
    said = spoken(["update", "run=outputs/first", "data.shards=data/more", "debug=dry"])
    assert said.splitlines()[-1].endswith("To train, leave out debug=dry")


def test_gains_and_losses_are_told(more):
    said = spoken(["update", "run=outputs/first", "data.shards=data/more", "images=64", "run_dir=outputs/up",
                   "objective.own=8", "objective.keep=ewc"])  # fmt: skip
    for what in ("old right", "new right"):
        assert f"  {what}: " in said
    text = Path("outputs/up/UPDATE.txt").read_text()
    assert text.strip() in said
    assert store.status(Path("outputs/up"))["state"] == "done"
    Path("outputs/up/UPDATE.txt").unlink()  # as where it was killed before
    assert text.strip() in spoken(["update", "run=outputs/first", "resume=outputs/up"])
    assert Path("outputs/up/UPDATE.txt").read_text() == text
    shutil.rmtree("outputs/up")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.shards=data/more"], "which run?"),
        (["run=outputs/first"], "what is new?"),
        (["run=outputs/none", "data.shards=data/more"], "outputs/none"),
        (["run=outputs/first", "data.shards=data/more", "extend=outputs/first"], "leave extend= out"),
        (
            ["run=outputs/first", "data.shards=data/unheld", "evaluate.n=0"],
            "the new shards have no val split",
        ),
    ],
    ids=["no run", "no shards", "another run", "extended", "no val"],
)
def test_what_is_refused(more, refused, words, said):
    before = sorted(Path("outputs").iterdir())
    assert said in refused("update", *words)
    assert sorted(Path("outputs").iterdir()) == before
