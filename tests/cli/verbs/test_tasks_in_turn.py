"""`lmsd train continual=[A, B]`: tasks in turn, what keeps the old, and what is said of it."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_home import ALONE, spoken

from lmsd.cli.config.compose import load
from lmsd.cli.runs import store

COUNTS = ["image_size=16", "train_count=64", "val_count=96", "test_count=16", "near_duplicates=keep"]
WORDS = [
    *(word for word in ALONE if not word.startswith("evaluate.n=")),
    "objective=denoising",
    "experiment=shapes",
    "seed=1",
    "run_dir=outputs/tasks",
    "evaluate.n=96",
]


@pytest.fixture
def tasks(home):
    for number in (1, 2):
        if not Path(f"data/task{number}").exists():
            spoken(["data", "build", "shapes", f"out=data/task{number}", *COUNTS, f"seed={number + 20}"])
    return home


@pytest.mark.slow
def test_every_arm_is_trained_scored_and_said_and_not_trained_again(tasks):
    asked = ["continual=[data/task1,data/task2]", "continual.keep=ewc", "continual.beside=[plain,joint]"]
    said = spoken(["train", *WORDS, "images=64", *asked])
    for words in ("ewc: average ", "plain: average ", "joint: average ", "forgetting ", "after task 2"):
        assert words in said
    found = json.loads(Path("outputs/tasks/CONTINUAL.json").read_text())
    assert list(found["right"]) == list(found["kid_paired"]) == ["ewc", "plain", "joint"]
    kid = found["kid_paired"]
    assert all([len(row) for row in rows] == [2, 2, 2] for rows in kid.values())
    assert kid["ewc"][0] != kid["ewc"][1] == kid["plain"][1], "one first task"
    assert kid["ewc"][2] != kid["plain"][2]
    assert kid["joint"][1] == kid["joint"][2] != kid["plain"][2]
    kept = (Path("outputs/tasks/ewc/task-2") / "config.yaml").read_text()
    assert "keep: ewc" in kept
    assert "init_from: outputs/tasks/task-1@ema" in kept
    times = {path: path.stat().st_mtime for path in Path("outputs/tasks").rglob("*.ckpt")}
    assert len(times) >= 4
    assert spoken(["train", *WORDS, "images=64", *asked]).splitlines()[-1] == said.splitlines()[-1]
    assert times == {path: path.stat().st_mtime for path in Path("outputs/tasks").rglob("*.ckpt")}


FIRST = ["train", "experiment=shapes", *ALONE, "objective=denoising", "seed=1", "continual=[data/a,data/b]"]


@pytest.fixture
def begun(home):
    """A folder of tasks whose first run is there, done, of data/a."""
    for name in ("a", "b", "c"):
        if not Path(f"data/{name}").exists():
            shutil.copytree("data/shapes", f"data/{name}")
    folder = Path("outputs/of, others")
    shutil.rmtree(folder, ignore_errors=True)
    words = [word for word in FIRST[1:] if not word.startswith("continual")]
    config = load([*words, "data.shards=data/a", "run_dir='outputs/of, others/task-1'"], run=True)
    store.set_status(store.create(config, []), state="done", images=config.images)
    return ["run_dir='outputs/of, others'"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["continual=[data/c,data/b]"], "task-1 learned data/a, and this command gives it data/c"),
        (["seed=2"], "seed: 1 -> 2"),
    ],
    ids=["tasks", "words"],
)
def test_other_tasks_or_words_do_not_take_the_runs_of_before(begun, refused, words, said):
    names = {word.partition("=")[0] for word in words}
    kept = [word for word in FIRST[1:] if word.partition("=")[0] not in names]
    assert said in refused("train", *kept, *begun, *words)
    assert [path.name for path in Path("outputs/of, others").iterdir()] == ["task-1"]


def test_what_the_scores_would_refuse_is_refused_first(begun, refused):
    words = [word for word in FIRST[1:] if not word.startswith("continual")]
    said = refused("train", *words, "continual=[data/a,data/a]", "run_dir=outputs/tasks_twice")
    assert "twice: name each shard once" in said
    assert not Path("outputs/tasks_twice").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["continual=[data/task1]"], "continual= needs two tasks or more"),
        (
            ["continual=[data/task1,data/task2]", "data.shards=data/shapes"],
            "data.shards=data/shapes: continual=",
        ),
        (["continual=[data/task1,data/task2]", "resume=last"], "resume=last: continual="),
        (["continual=[data/task1,data/task2]", "devices=2"], "continual= trains on one device"),
        (["continual=[data/task1,data/task2]", "continual.keep=all"], "continual.keep=all"),
        (["continual=[data/task1,data/task2]", "continual.kept=ewc"], "unknown option"),
        (["continual=[data/task1,data/task2]", "debug=dry"], "debug=dry builds one run"),
        (["continual.keep=ewc"], "name their shards, continual=[A, B, C]"),
        (
            ["continual=[data/task1,data/task2]", "objective=continual", "objective.prompts=[a]"],
            "brings objective",
        ),
    ],
    ids=["one", "shards", "resume", "devices", "keep", "typo", "dry", "no tasks", "objective"],
)
def test_what_is_refused(home, refused, words, said):
    assert said in refused("train", "experiment=shapes", *words)
