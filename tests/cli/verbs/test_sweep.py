"""Sweeps: what is tried, that nothing is lost or repeated when it is killed, how it is ranked.

Jobs are started through `sweep.prefix`, as a cluster's launcher is: here a small script in the place of the
training, which the slow tests run for real.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from lmsd import cli
from lmsd.cli.sweeps import monitors, ranking
from lmsd.cli.sweeps.checks import checked
from lmsd.cli.sweeps.proposals import hopeless, propose
from lmsd.cli.sweeps.space import Axis, Space, read
from lmsd.cli.sweeps.trials import Ledger, Result, Trial
from lmsd.cli.verbs.sweep import Sweep, SweepOptions, folder_of

JOB = """
import json, os, pathlib, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv if "=" in word)
folder = pathlib.Path(words["run_dir"])
folder.mkdir(parents=True)
with open(folder.parent / "starts.txt", "a") as file:
    file.write(words["seed"] + " " + words["optim.generator.lr"] + "\\n")
with open(folder.parent / "devices.txt", "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\\n")
if words["seed"] == "13" and not os.path.exists("mended"):
    sys.exit("lmsd: seed 13 fails")
value = abs(float(words["optim.generator.lr"]) - 3e-4) * 1e4
for images in (100, 200, 300):
    time.sleep(float(words["threads"]) / 100)
    line = {"images": images, "val/fd[x]": None if words["seed"] == "14" else value + 3 - images / 100}
    line |= {"val/fd[x]/low": value - 0.5, "val/fd[x]/high": value + 0.5}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")
(folder / "status.json").write_text(json.dumps({"state": "done", "seconds": 75}))
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmsd.cli.verbs.sweep.POLL", 0.02)
    Path("job.py").write_text(JOB)
    return [f"sweep.prefix=[{sys.executable},job.py]", "sweep.name=it", "threads=1"]


def starts() -> list[str]:
    return Path("outputs/sweeps/it/starts.txt").read_text().splitlines()


def test_a_grid_is_ranked_and_ends_in_a_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["seed=1,2,13", "optim.generator.lr=1e-4,3e-4"]
    assert cli.run(["sweep", "experiment=digits", *axes, *words, "sweep.jobs=3"]) == 0
    said = capsys.readouterr().out
    table = [line.split("  ") for line in said.splitlines() if line.startswith("#  ")]
    assert len(table) == 1
    folder = Path("outputs/sweeps/it")
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["state"] for row in rows] == ["done"] * 4 + ["failed"] * 2
    assert [row["optim.generator.lr"] for row in rows[:4]] == ["0.0003", "0.0003", "0.0001", "0.0001"]
    assert float(rows[0]["fd"]) == pytest.approx(0)
    assert {row["note"] for row in rows[4:]} == {"seed 13 fails"}
    results = json.loads((folder / "results.json").read_text())
    best = "lmsd train experiment=digits threads=1 seed=1 optim.generator.lr=0.0003"
    assert results["best"] == best
    assert f"Best again: {best}" in said
    told = " ".join(said.split())
    assert "1 0.0003 0 [-0.5, 0.5] 1m15 best" in told
    assert "1 0.0001 2 [1.5, 2.5] 1m15 ok (apart from the best)" in told
    assert "2 0.0003 0 [-0.5, 0.5] 1m15 ok (intervals overlap the best's)" in told
    assert "13 0.0001 - 0s failed: seed 13 fails" in told
    picture = (folder / "parallel.svg").read_text()
    assert "<svg" in picture
    assert cli.run(["sweep", "experiment=digits", *axes, *words]) == 0  # again: nothing is left to do
    assert len(starts()) == 6


def test_what_is_not_finite_costs_one_trial_and_jobs_take_turns_on_gpus(words: list[str]) -> None:
    axes = ["seed=14,1,2", "optim.generator.lr=3e-4"]
    assert cli.run(["sweep", *axes, *words, "sweep.gpus=[4,7]"]) == 0
    trials = {trial.values["seed"]: trial for trial in Ledger(Path("outputs/sweeps/it")).trials}
    assert {seed: trial.state for seed, trial in trials.items()} == {"14": "failed", "1": "done", "2": "done"}
    assert trials["14"].note == "no finite fd on val"
    assert set(Path("outputs/sweeps/it/devices.txt").read_text().split()) == {"4", "7"}


def test_a_sweep_that_is_killed_twice_ends_with_every_trial_once(words: list[str]) -> None:
    sweep = ["experiment=digits", "seed=1,2", "optim.generator.lr=1e-4,2e-4,3e-4", *words[:2], "threads=10"]
    command = [sys.executable, "-m", "lmsd.cli", "sweep", *sweep]
    for trials, number in ((1, signal.SIGKILL), (3, signal.SIGTERM)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while not (Path("outputs/sweeps/it/starts.txt").exists() and len(starts()) > trials):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(60) == (143 if number == signal.SIGTERM else -number)
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    trials = Ledger(Path("outputs/sweeps/it")).trials
    assert [trial.state for trial in trials] == ["done"] * 6
    assert len({tuple(trial.values.values()) for trial in trials}) == 6
    assert len(starts()) <= 7  # the interrupted one began again, no finished one did


def test_optuna_proposes_and_a_killed_sweep_knows_what_was_tried(words: list[str]) -> None:
    axis = "optim.generator.lr=tag(log,interval(1e-5,1e-2))"
    assert cli.run(["sweep", "experiment=digits", axis, "seed=1", *words, "sweep.trials=4"]) == 0
    before = [trial.values for trial in Ledger(Path("outputs/sweeps/it")).trials]
    assert cli.run(["sweep", "experiment=digits", axis, "seed=1", *words, "sweep.trials=7"]) == 0
    after = [trial.values for trial in Ledger(Path("outputs/sweeps/it")).trials]
    assert after[:4] == before
    rates = [values["optim.generator.lr"] for values in after]
    assert len(set(rates)) == 7
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert len(starts()) == 7


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_no_combination_is_proposed_twice_and_an_exhausted_space_ends(method) -> None:
    space = Space((), (Axis("kind", choices=("a", "b")), Axis("depth", low=1, high=9)))
    trials: list[Trial] = []
    for number in range(18):
        values = propose(space, trials, method=method, direction="min", seed=0)
        assert values is not None
        trials.append(Trial(number, values, state="done", result=Result(float(values["depth"]))))
    assert len({tuple(trial.values.values()) for trial in trials}) == 18
    assert propose(space, trials, method=method, direction="min", seed=0) is None


def test_a_space_that_ends_before_its_trials_says_so(words: list[str], capsys) -> None:
    sweep = ["sweep", "seed=1,2", "optim.generator.lr=1e-4,3e-4,1e-4", *words, "sweep.method=random"]
    assert cli.run([*sweep, "sweep.trials=9", "sweep.jobs=2"]) == 0
    assert "4 trials by random, every combination there is" in capsys.readouterr().out
    assert sorted(starts()) == ["1 0.0001", "1 0.0003", "2 0.0001", "2 0.0003"]


def test_every_seed_has_trials_of_its_own() -> None:
    space, proposed = Space((), (Axis("x", low=0.0, high=1.0),)), []
    for seed in range(3):
        trials: list[Trial] = []
        for number in range(4):
            values = propose(space, trials, method="random", direction="min", seed=seed)
            assert values is not None
            trials.append(Trial(number, values, state="failed"))
            proposed.append(values["x"])
    assert len(set(proposed)) == 12


def test_tpe_goes_where_it_is_good() -> None:
    space = Space((), (Axis("x", low=0.0, high=1.0), Axis("kind", choices=("a", "b"))))
    trials: list[Trial] = []
    for _ in range(30):
        values = propose(space, trials, method="tpe", direction="min", seed=0)
        assert values is not None
        value = (values["x"] - 0.3) ** 2 + (values["kind"] == "b")
        trials.append(Trial(len(trials), values, state="done", result=Result(value)))
    late = trials[15:]
    assert sum(abs(t.values["x"] - 0.3) < 0.15 for t in late) >= 8  # 4.5 by chance
    assert sum(t.values["kind"] == "a" for t in late) > 10  # 7.5 by chance


def test_only_what_is_worse_than_the_median_is_stopped() -> None:
    others = [
        Trial(k, {}, state="done", result=Result(points={100: 10.0 + k, 200: 5.0 + k})) for k in range(3)
    ]
    for points, stopped in (
        ({100: 11.5}, True),
        ({100: 10.5}, False),
        ({100: 11.5, 200: 5.5}, False),
        ({}, False),
    ):
        assert hopeless(Trial(9, {}, result=Result(points=points)), others, direction="min") is stopped
    assert not hopeless(Trial(9, {}, result=Result(points={100: 99.0})), others[:2], direction="min")
    assert not hopeless(Trial(9, {}, result=Result(points={0: 99.0})), others, direction="min")
    assert hopeless(Trial(9, {}, result=Result(points={100: 10.5})), others, direction="max")


def test_the_hopeless_is_pruned(words: list[str]) -> None:
    rates = "optim.generator.lr=3e-4,3.1e-4,2.9e-4,9e-4"
    assert (
        cli.run(["sweep", "experiment=digits", rates, "seed=1", *words, "threads=30", "sweep.prune=true"])
        == 0
    )
    states = [trial.state for trial in Ledger(Path("outputs/sweeps/it")).trials]
    assert states == ["done", "done", "done", "pruned"]


def test_ranks_put_the_failed_last_and_know_both_directions() -> None:
    trials = [
        Trial(0, {}, state="failed"),
        Trial(1, {}, state="done", result=Result(2.0)),
        Trial(2, {}, state="done", result=Result(1.0)),
    ]
    assert [t.number for t in ranking.ranked(trials, "min")] == [2, 1, 0]
    assert [t.number for t in ranking.ranked(trials, "max")] == [1, 2, 0]
    assert ranking.winner(trials[:1], Space((), ()), "min") is None


def test_the_folder_is_that_of_the_command() -> None:
    one, other = read(["seed=1,2"]), read(["seed=1,3"])
    assert folder_of(one, SweepOptions()) == folder_of(one, SweepOptions(jobs=2, trials=1, retry=True))
    assert folder_of(one, SweepOptions()) == folder_of(one, SweepOptions(direction="min"))
    assert folder_of(one, SweepOptions()) != folder_of(other, SweepOptions())
    assert folder_of(one, SweepOptions(name="x")) == Path("outputs/sweeps/x")


def test_a_failed_trial_is_tried_again_if_that_is_asked_for(words: list[str]) -> None:
    sweep = ["sweep", "seed=1,13", "optim.generator.lr=3e-4", *words]
    assert cli.run(sweep) == 0
    Path("mended").touch()
    for more, states in (([], ["done", "failed"]), (["sweep.retry=true"], ["done", "done"])):
        assert cli.run([*sweep, *more]) == 0
        assert [trial.state for trial in Ledger(Path("outputs/sweeps/it")).trials] == states
    assert starts() == ["1 3e-4", "13 3e-4", "13 3e-4"]


def test_which_way_is_better_is_the_scores_own() -> None:
    falling = {
        "fd",
        "fd_infinity",
        "fd_matched",
        "fd_ratio",
        "kid",
        "kid_paired",
        "cmmd",
        "cmmd_paired",
        "copies",
        "sw_ratio",
        "sw_families",
    }
    rising = {"right", "precision", "recall", "density", "coverage", "class_score", "is", "clip_score"}
    rising |= {"r_precision", "neighbor_ratio"}
    assert set(monitors.KNOWN) == falling | rising
    assert {name for name in monitors.KNOWN if monitors.better(name) == "min"} == falling
    space = read(["seed=1,2"])
    for chosen, direction in (
        (SweepOptions(), "min"),
        (SweepOptions(monitor="kid[x]"), "min"),
        (SweepOptions(monitor="right"), "max"),
        (SweepOptions(monitor="right", direction="min"), "min"),
    ):
        assert Sweep(space, chosen, Path("none")).direction == direction


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate.families=[ssl]", "sweep.monitor=fd[lmsd-ssl]"], ""),
        (["evaluate.families=[ssl,random]", "sweep.monitor=coverage[random-conv]"], ""),
        (["evaluate.extractor.kind=lmsd-ssl", "sweep.monitor=kid[lmsd-ssl]"], ""),
        (["sweep.monitor=fd[lmsd-ssl]"], "evaluate.extractor.kind=lmsd-ssl or evaluate.families=[ssl]; with"),
        (["sweep.monitor=fd[random-conv]"], "with lmsd-cnn; it comes with evaluate.families=[random]; with"),
        (["evaluate.families=[ssl]", "sweep.monitor=kid[lmsd-ssl]"], "kind=lmsd-ssl; with these settings"),
        (["evaluate.families=[ssl]", "evaluate.n=100", "sweep.monitor=fd[lmsd-ssl]"], "it needs 128 images"),
    ],
)
def test_scores_of_further_families_rank_too(words: list[str], said: str, capsys) -> None:
    assert cli.run(["sweep", "seed=1,2", *words, "--dry-run"]) == (2 if said else 0)
    assert said in capsys.readouterr().err


def test_a_dry_sweep_lists_its_trials(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sweep", "seed=1,2", "net=mlp,unet_text", *words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "outputs/sweeps/it: 4 trials by grid, 0 of them finished"
    assert lines[1] == "ranked by fd on val, the lowest first"
    assert lines[2:4] == [
        "  lmsd train threads=1 seed=1 net=mlp",
        "  lmsd train threads=1 seed=1 net=unet_text",
    ]
    assert not Path("outputs").exists()


def test_a_dry_search_says_what_of_each_trial_is_proposed(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    axes = ["net.width=interval(8,64)", "optim.generator.lr=tag(log,interval(1e-5,1e-3))", "seed=1,2"]
    more = [*words, "sweep.monitor=right", "sweep.trials=7", "--dry-run"]
    assert cli.run(["sweep", "experiment=digits", *axes, *more]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "outputs/sweeps/it: 7 trials by tpe, 0 of them finished",
        "ranked by right on val, the highest first",
        "each: lmsd train experiment=digits threads=1, and of",
        "  net.width: 8 to 64, whole numbers",
        "  optim.generator.lr: 1e-05 to 0.001, by its logarithm",
        "  seed: 1, 2",
    ]


def test_an_interval_of_whole_numbers_proposes_them() -> None:
    space = checked(read(["net.width=interval(8,64)"]))
    assert space.size() == 57
    values = propose(space, [], method="tpe", direction="min", seed=0)
    assert values is not None
    assert type(values["net.width"]) is int


def test_every_combination_is_built_before_the_first_and_val_is_looked_at(home, refused) -> None:
    """Nothing is written: the folder of the sweep is made by the first trial."""
    from tiny_home import TINY

    tiny = [
        "sweep",
        *[word for word in TINY if not word.startswith("evaluate.n=")],
        "data.shards=data/shapes",
    ]
    said = refused(*tiny, "seed=1,2", "sweep.name=few")
    assert "sweep.monitor=fd: it needs 128 images, and val has 32; with these settings trials have" in said
    said = refused(*tiny, "seed=1,2", "steps=4,4000", "sweep.name=few", "sweep.monitor=right")
    assert "1 of 2 combinations cannot be trained, the first of them seed=1 steps=4000: " in said
    assert "no data at nowhere" in refused(*tiny[:-1], "data.shards=nowhere", "source=make", "seed=1,2")
    assert not Path("outputs/sweeps/few").exists()


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (["seed=1"], "nothing varies: give an option several values"),
        (["sed=1,2"], "unknown option 'sed'; did you mean seed?"),
        (["seed=1,a"], "seed=a is not a whole number"),
        (["net=mlp,unett"], "net 'unett' not found"),
        (["seed=1,2", "split=test"], "a sweep chooses on val, and test stays unseen"),
        (["seed=1,2", "evaluate.split=test"], "lmsd evaluate run=WINNER split=test"),
        (["seed=1,2", "run_dir=x"], "a sweep names the folders of its runs itself"),
        (["seed=1,2", "evaluate.n=0"], "ranks its trials by their scores on val"),
        (["seed=1,2", "sweep.job=2"], "did you mean sweep.jobs?"),
        (["seed=1,2", "sweep.method=bayes"], "is not one of grid, tpe, random"),
        (["optim.generator.lr=interval(1e-5,1e-3)", "sweep.method=grid"], "has no grid"),
        (["optim.generator.lr=tag(log,interval(0,1e-3))"], "low above 0 where it is log"),
        (["seed=1,2", "sweep.jobs=0"], "sweep.jobs=0 is not a whole number of at least 1"),
        (["seed=1,2", "sweep.trials=0"], "sweep.trials=0 is not a whole number of at least 1"),
        (["seed=1,2", "sweep.trials=abc"], "sweep.trials=abc is not a whole number of at least 1"),
        (["seed=1,2", "sweep.monitor=rihgt"], "is no score on val; did you mean right?"),
        (["seed=1,2", "sweep.monitor=fd_floor"], "sweep.monitor=fd_floor is no score on val"),
        (["seed=1,2", "sweep.gpus=[0,1]", "sweep.jobs=2", "devices=2"], "name 4 (a GPU named twice"),
        (["seed=1,2", "sweep.gpus=[0]", "devices=2"], "serves two jobs), or give fewer devices="),
        (["seed=1,2", "sweep.prefix='srun"], "cannot read sweep.prefix='srun: no closing quotation"),
        (["seed=1,2", "sweep.prefix=srunn -n1"], "there is no program srunn here; name one by its path"),
        (["seed=glob(*)"], "give values, range"),
        (["seed=1,2", "evaluate.n=63"], "fd: it needs 128 images, and evaluate.n=63: give evaluate.n=128"),
        (["seed=1,2", "evaluate.n=63"], "with these settings trials have class_score, right, neighbor_ratio"),
        (["seed=1,2", "evaluate.n=79", "sweep.monitor=kid"], "kid: it needs 80 images, and evaluate.n=79"),
        (
            ["evaluate.n=300,400", "sweep.monitor=recall"],
            "1 of 2 combinations cannot be trained, the first of",
        ),
        (["seed=1,2", "sweep.monitor=is"], "it comes with evaluate.extractor.kind=inception, and runs are"),
        (
            ["seed=1,2", "sweep.monitor=cmmd"],
            "it comes with evaluate.extractor.kind=clip, and runs are scored",
        ),
        (["seed=1,2", "sweep.monitor=sw_ratio"], "sw_ratio: it comes with evaluate.families=[random]"),
        (
            ["seed=1,2", "sweep.monitor=sw_families", "evaluate.families=[none]"],
            "it comes with evaluate.fami",
        ),
        (
            ["seed=1,2", "sweep.monitor=sw_ratio[lmsd-ssl]", "evaluate.families=[random]"],
            "runs are scored with",
        ),
        (["seed=1,2", "evaluate.families=[nowhere]"], "evaluate.families: there is no family nowhere; take"),
        (
            ["seed=1,2", "sweep.monitor=fd[clip]"],
            "runs are scored with lmsd-cnn; it comes with evaluate.extractor.kind=clip",
        ),
        (["seed=1,2", "evaluate.extractor.kind=clip", "sweep.monitor=right"], "extractor.kind=lmsd-cnn, and"),
        (
            ["seed=1,2", "evaluate.neighbors=false", "sweep.monitor=copies"],
            "comes with evaluate.neighbors=true",
        ),
        (
            ["seed=1,2", "evaluate.extractor.kind=inception", "evaluate.n=4000"],
            "fd: it needs 4096 images, and evaluate.n=4000",
        ),
        (
            ["net.width=interval(8,64.5)"],
            "net.width takes whole numbers: write net.width=int(interval(8,64))",
        ),
        (["net.width=interval(8.5,64)"], "net.width=8.5 is not a whole number of at least 1"),
        (["name=interval(0,1)", "images=interval(0,10)"], "images=0.0 is not a whole number of at least 1"),
        (
            ["batch_size=64,65", "devices=1,2"],
            "1 of 4 combinations cannot be trained, the first of them batch_s",
        ),
        (
            ["net=mlp,unet_text", "net.width=8,16"],
            "2 of 4 combinations cannot be trained, the first of them net",
        ),
        (["seed=range(0,3)", "precision=interval(0,1)"], "precision=0.0 is not one of 32-true, bf16-mixed"),
    ],
)
def test_mistakes_in_a_sweep(sweep: list[str], said: str, refused, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused("sweep", *sweep)
    assert not Path("outputs").exists()


GRID = ["optim.generator.lr=1e-4,3e-4", "seed=1,13"]
SEARCH = ["optim.generator.lr=tag(log,interval(1e-5,1e-2))", "seed=1", "sweep.trials=8"]
OPTIONS = {
    "method": (SEARCH, "sweep.method=random", "other"),
    "trials": (SEARCH, "sweep.trials=3", "other"),
    "monitor": (GRID, "sweep.monitor=kid", "other"),
    "direction": (GRID, "sweep.direction=max", "other"),
    "prune": (GRID, "sweep.prune=true threads=20", "same"),  # never before three are done, as here
    "jobs": (GRID, "sweep.jobs=2", "same"),
    "gpus": (GRID, "sweep.gpus=[4]", "elsewhere"),
    "prefix": (GRID, "sweep.prefix=nothing-of-this-name", "refused"),
    "retry": (GRID, "sweep.retry=true", "other"),
    "seed": (SEARCH, "sweep.seed=1", "other"),
    "name": (GRID, "sweep.name=its", "same"),
}
"""What is varied, what is changed alone, and whether trials, states, scores or order are others."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_a_sweep_matters(name: str, words: list[str]) -> None:
    assert set(OPTIONS) == {field.name for field in fields(SweepOptions)}
    axes, changed, what = OPTIONS[name]
    base, found = [*axes, *words], []
    for typed in (base, list({w.partition("=")[0]: w for w in [*base, *changed.split()]}.values())):
        if what == "refused" and typed is not base:
            assert cli.run(["sweep", *typed]) == 2
            return
        assert cli.run(["sweep", *typed]) in (0, 1)
        folder = Path("outputs/sweeps") / ("its" if changed in typed and name == "name" else "it")
        rows = [row[:-1] for row in csv.reader((folder / "results.csv").open())]
        devices = (folder / "devices.txt").read_text() if name == "gpus" else ""
        found.append((rows, devices, name == "retry" and starts()))
        if name == "retry":
            Path("mended").touch()
        else:
            shutil.rmtree(folder)
    (one, there, begun), (other, elsewhere, again) = found
    assert (one == other) is (what in ("same", "elsewhere"))
    assert (there != elsewhere) is (what == "elsewhere")
    assert name != "retry" or again == [*begun, "13 0.0001", "13 0.0003"]


@pytest.mark.slow
def test_two_jobs_of_two_ranks_make_two_runs(home) -> None:
    from tiny_home import TINY

    from lmsd.data.builders import BuildOptions, Drawing, Preparation
    from lmsd.data.builders import build as build_data

    counts = BuildOptions(
        pictures=Preparation(image_size=16), drawing=Drawing(train_count=64, val_count=120, test_count=8)
    )  # intervals want 40 pairs
    build_data("shapes", Path("data/more"), options=counts)
    words = [*TINY, "data.shards=data/more", "images=96", "devices=2", "seed=1,2", "sweep.jobs=2"]
    words += ["evaluate.n=120", "sweep.monitor=kid"]
    done = subprocess.run(
        [sys.executable, "-m", "lmsd.cli", "sweep", *words, "sweep.name=ranks"],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path("outputs/sweeps/ranks")
    assert sorted(path.parent.name for path in folder.glob("*/config.yaml")) == ["0", "1"]
    results = json.loads((folder / "results.json").read_text())
    assert [trial["state"] for trial in results["trials"]] == ["done", "done"]
    assert results["trials"][0]["value"] <= results["trials"][1]["value"]
