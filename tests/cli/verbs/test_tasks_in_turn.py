"""`lmsd train continual=[A, B]`: tasks in turn, what keeps the old, and what is said of it."""

import json
from pathlib import Path

import pytest
from tiny_home import ALONE, spoken

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
        (["continual.keep=ewc"], "name their shards, continual=[A, B, C]"),
        (
            ["continual=[data/task1,data/task2]", "objective=continual", "objective.prompts=[a]"],
            "brings objective",
        ),
    ],
    ids=["one", "shards", "resume", "devices", "keep", "typo", "no tasks", "objective"],
)
def test_what_is_refused(home, refused, words, said):
    assert said in refused("train", "experiment=shapes", *words)
