"""The verbs end to end on a tiny data set: data, train, resume, sample, evaluate, report; and mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_home import ALONE, TINY, Home, spoken

from lmsd import cli
from lmsd.checkpoints import find_run
from lmsd.cli.runs import store
from lmsd.engine.state import RunState
from lmsd.types import Clock

Refused = Callable[..., str]
DATA = "data.shards=data/shapes"


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "lmsd.cli", *arguments]


def stop_at(images: int, patch: pytest.MonkeyPatch) -> None:
    """Have runs end after so many images, as a scheduler's signal would end them."""
    from lmsd.engine.module import Engine

    advance = Engine._advance

    def advanced(self: Engine, played: set[str]) -> None:
        advance(self, played)
        self.run.asked.code = 143 if self.clock.images >= images else 0

    patch.setattr(Engine, "_advance", advanced)


def test_data_are_built_and_indexed(home: Home) -> None:
    assert "64 train, 32 val, 32 test image-text pairs" in home.built
    said = spoken(["data", "index", "data/shapes"])
    assert re.search(r"train: 64 samples in 1 shards, index [0-9a-f]{12}", said)


def test_a_run_leaves_what_it_promises(home: Home) -> None:
    folder = Path("outputs/first")
    assert "Report: outputs/first/report.html" in home.trained
    status = store.status(folder)
    assert (status["state"], status["images"], status["updates"]) == ("done", 192, 6)
    assert [path.name for path in sorted((folder / "checkpoints").glob("*.ckpt"))] == [
        "step_000000096.ckpt",
        "step_000000192.ckpt",
    ]
    lines = lines_of(folder)
    assert [line["images"] for line in lines if "generator/loss" in line] == [32, 64, 96, 128, 160, 192]
    assert [line["images"] for line in lines if "val/right" in line] == [0, 96, 192]
    assert [path.name for path in sorted((folder / "samples").glob("step_*.png"))] == [
        f"step_{images:09d}.png" for images in (0, 96, 192)
    ]
    assert "data.image_size=16" in (folder / "overrides.txt").read_text().splitlines()
    assert store.config_of(folder).batch_size == 32
    kept = (folder / "log.txt").read_text().splitlines()
    assert kept[0].endswith("192 images in batches of 32)")
    assert kept[-1].endswith(f"Report: {folder}/report.html")
    assert any("192/192 images" in line for line in kept)


def test_sampling_twice_gives_the_same_bytes_and_a_record(home: Home) -> None:
    words = ["sample", "run=outputs/first", "prompts=[a red circle, a blue star]", "seeds=[0,3]"]
    first, second = (Path(spoken(words).strip()) for _ in range(2))
    assert first != second
    assert first.read_bytes() == second.read_bytes()
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["prompts"] == ["a red circle", "a blue star"]
    assert (record["seeds"], record["steps"], record["nfe"]) == ([0, 3], 4, 4.0)
    assert (record["checkpoint"], record["ema"], record["sampler"]) == (
        "step_000000192.ckpt",
        "ema",
        "Tau",
    )
    other = Path(spoken([*words, "ema=raw", "sampler=ddim", "steps=2", "out=made/x.png"]).strip())
    assert other == Path("made/x.png")
    assert other.read_bytes() != first.read_bytes()
    assert json.loads(other.with_suffix(".json").read_text())["nfe"] == 2.0


def test_a_grid_is_remade_from_its_json_bit_for_bit(home: Home) -> None:
    words = ["run=outputs/first", "prompts=[a red circle]", "seeds=[5]", "steps=2", "guidance=2", "ema=raw"]
    grid = Path(spoken(["sample", *words, "sampler=ddim"]).strip())
    copy = Path(spoken(["sample", f"again={grid.with_suffix('.json')}", "out=made/copy.png"]).strip())
    assert copy == Path("made/copy.png")
    assert copy.read_bytes() == grid.read_bytes()
    there, here = (json.loads(path.with_suffix(".json").read_text()) for path in (grid, copy))
    assert there["options"] == here["options"]
    assert there["options"]["checkpoint"] == "step_000000192.ckpt"


@pytest.mark.parametrize("sampler", ["few_step", "ddim", "heun", "dpmpp"])
def test_an_edit_leaves_what_is_not_marked_bit_equal(home: Home, sampler: str) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), np.uint8)
    mask[4:10, 3:12] = 255
    Image.fromarray(picture).save("picture.png")
    Image.fromarray(mask).save("mask.png")
    words = ["edit", "run=outputs/first", "image=picture.png", "prompt=a blue star", f"sampler={sampler}"]
    made = np.asarray(Image.open(spoken([*words, "mask=mask.png"]).strip()))
    assert np.array_equal(made[mask == 0], picture[mask == 0])
    assert (made[mask == 255] != picture[mask == 255]).mean() > 0.9
    again = np.asarray(Image.open(spoken([*words, "mask=mask.png"]).strip()))
    assert np.array_equal(again, made)
    whole = spoken([*words, "strength=0.5"]).strip()
    assert Path(whole).name.startswith("edit-")
    assert json.loads(Path(whole).with_suffix(".json").read_text())["strength"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["image=absent.png", "prompt=a"], "absent.png: there is no such image"),
        (
            ["image=data/shapes/manifest.json", "prompt=a"],
            "manifest.json: it is not an image that can be decoded",
        ),
        (["prompt=a"], "lmsd edit needs image="),
        (["image=grey.png", "prompt=a", "strength=0"], "strength=0"),
        (["image=grey.png", "prompt=a", "strength=1.5"], "strength=1.5 is not a number from 0.01 to 1"),
        (["image=grey.png", "prompt=a", "mask=grey.png"], "black all over: paint white"),
    ],
)
def test_mistakes_in_editing(home: Home, refused: Refused, words: list[str], said: str) -> None:
    from PIL import Image

    Image.new("L", (20, 16), 0).save("grey.png")
    assert said in refused("edit", "run=outputs/first", *words)


def test_prompts_come_from_a_file_too(home: Home) -> None:
    Path("prompts.txt").write_text("a red circle\n\na blue star\n")
    out = Path(spoken(["sample", "run=outputs/first", "prompts=prompts.txt"]).strip())
    assert json.loads(out.with_suffix(".json").read_text())["prompts"] == ["a red circle", "a blue star"]


def test_evaluation_writes_a_record_and_the_report(home: Home, scored: str) -> None:
    record = json.loads(Path("scored.json").read_text())
    setup = record["setup"]
    assert (record["n"], record["seeds"], setup["split"], setup["ema"]) == (32, [0, 1], "test", "ema")
    right = record["scores"]["right"]
    assert 0 <= right["low"] <= right["value"] <= right["high"] <= 1
    assert (setup["nfe"], setup["run"], setup["checkpoint"]) == (4.0, "first", "step_000000192.ckpt")
    assert "commit" in setup
    assert setup["data"]
    assert setup["extractor_sha256"]
    assert "Report: outputs/first/report.html" in scored
    report = Path("outputs/first/report.html")
    report.unlink()
    assert spoken(["report", "outputs/first"]).strip() == str(report)
    assert "<html" in report.read_text()


def test_every_combination_is_scored_and_kept(home: Home) -> None:
    words = ["evaluate", "run=outputs/first", "split=val", "n=20", "seeds=[0]", "keep=[images,features]"]
    said = spoken([*words, "steps=[1,2]", "guidance=[1,2]", "ema=raw"])
    assert said.count("n=20, seeds 0") == 4
    folder = Path("outputs/first/eval/val")
    records = [json.loads(path.read_text()) for path in folder.glob("step_000000192-*.json")]
    found = [record for record in records if "checkpoint" in record["setup"]]
    assert len(records) > len(found), "those of training"
    assert all("commit" in record["setup"] for record in records)
    settings = [(r["setup"]["ema"], r["setup"]["steps"], r["setup"]["guidance"]) for r in found]
    assert sorted(settings) == [("raw", 1, 1.0), ("raw", 1, 2.0), ("raw", 2, 1.0), ("raw", 2, 2.0)]
    assert {r["setup"]["nfe"] for r in found} == {1.0, 2.0, 4.0}
    assert len(list(folder.glob("kept/*/seed_0/*.png"))) == 4 * 20
    assert len(list(folder.glob("kept/*.safetensors"))) == 4
    assert len(list(folder.glob("step_000000192-*.png"))) == 4, "the closest pairs of each"
    spoken(["report", "outputs/first"])
    assert "Closest pairs" in Path("outputs/first/report.html").read_text()


def test_other_seeds_and_samplers_keep_features_of_their_own(home: Home) -> None:
    """And the record says what was asked for, so that the report's command asks for it again."""
    shutil.copytree("outputs/first", "outputs/seeded", dirs_exist_ok=True)
    kept = Path("outputs/seeded/eval/test/kept")
    words = ["evaluate", "run=outputs/seeded", "split=test", "n=20", "steps=1", "keep=features"]
    shards = next(iter(Path("data/shapes").glob("test-*.tar")))
    spoken([*words, "seeds=[3]"])
    spoken([*words, "seeds=[4]"])
    spoken([*words, "seeds=[4]", "sampler=ddim", f"shards={shards}", "overlap=label"])
    names = sorted(path.name for path in kept.glob("*.safetensors"))
    assert len(names) == 3
    assert [name.partition("-seeds")[2][:1] for name in names].count("4") == 2
    assert all("lmsd-cnn@" in name for name in names)
    setup = json.loads(Path("outputs/seeded/eval/test/metrics.json").read_text())["setup"]
    assert setup["options"] == f"sampler=ddim shards={shards} overlap=label"
    assert (setup["sampler"], setup["tau"]) == ("Tau", 0.0)
    page = Path("outputs/seeded/report.html").read_text()
    again = f"seeds=[4]&#39; steps=1 guidance=1.0 ema=ema checkpoint=step_000000192.ckpt {setup['options']}<"
    assert again in page


def test_a_checkpoint_stands_for_its_run_in_a_report_and_is_refused_where_it_has_its_own_name(
    home: Home, refused: Refused
) -> None:
    path = "outputs/first/checkpoints/step_000000192.ckpt"
    assert spoken(["report", path]).strip() == "outputs/first/report.html"
    way = f"run={path} is a checkpoint: write run=outputs/first checkpoint=step_000000192.ckpt"
    assert way in refused("evaluate", f"run={path}", "split=test")
    assert way in refused("sample", f"run={path}", "prompts=[a]")


def test_a_folder_compared_with_itself_is_refused_before_anything_is_written(
    home: Home, refused: Refused
) -> None:
    report = Path("outputs/first/report.html")
    report.unlink(missing_ok=True)
    assert "outputs/first is given twice" in refused("report", "outputs/first", "./outputs/first")
    assert not report.exists()
    spoken(["report", "outputs/first"])


def test_a_damaged_record_costs_a_training_its_report_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmsd.cli.verbs.train import report

    (tmp_path / "config.yaml").write_text("name: x\n")
    record = tmp_path / "eval" / "val" / "metrics.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"n": 5')
    report(tmp_path)
    assert f"lmsd: no report: {record} is damaged" in capsys.readouterr().err


def test_a_report_says_what_sets_a_run_apart_from_its_experiment(home: Home, tmp_path: Path) -> None:
    """Its own values beside the experiment's, those of a resume too; nothing where there is no telling."""
    from lmsd.cli.config.compose import load
    from lmsd.cli.verbs.report import departures, write

    folder = tmp_path / "run"
    words = ["experiment=shapes", "seed=3", f"run_dir={folder}"]
    config = load(words)
    assert store.create(config, words) == folder
    apart = {"seed": [0, 3], "run_dir": [None, str(folder)]}
    assert departures(folder) == ("shapes", apart)
    config.keep = 7  # as `lmsd train resume=RUN keep=7` leaves it
    store.save_config(folder, config)
    assert departures(folder) == ("shapes", apart | {"keep": [3, 7]})
    assert '<td class="name">keep</td><td class="name">3</td><td class="name">7</td>' in (
        write(folder).read_text()
    )
    (folder / "overrides.txt").write_text("experiment=gone\n")
    assert departures(folder) == (None, {})
    assert "What differs" not in write(folder).read_text()
    name, found = departures(Path("outputs/first"))
    assert (name, found["batch_size"]) == ("the defaults", [64, 32])


@pytest.mark.slow
def test_two_processes_evaluate_as_one(home: Home) -> None:
    words = ["evaluate", "run=outputs/first", "split=test", "n=32", "seeds=[5]", "steps=2"]
    spoken(words)
    newest = Path("outputs/first/eval/test/metrics.json")
    alone = newest.read_text()
    newest.unlink()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launched = subprocess.run(
        [*launch, "-m", "lmsd.cli", *words], capture_output=True, text=True, check=False
    )
    assert launched.returncode == 0, launched.stderr[-2000:]
    assert newest.read_text() == alone


def test_two_runs_are_compared(home: Home, scored: str) -> None:
    shutil.copytree("outputs/first", "outputs/second", dirs_exist_ok=True)
    spoken(["evaluate", "run=outputs/second", "split=test", "n=32", "seeds=[0,1]", "steps=1"])
    said = spoken(["report", "outputs/first", "outputs/second"])
    assert "first against second: test, n=32, paired over the same prompts, images and noise" in said
    assert said.count("sampler=Tau, tau=1, steps=4") == 2, "not the newer record of one step"
    assert re.search(r"  right +[\d.]+.%? +[\d.]+.% +(different|not told apart) \(p = ", said)
    assert "Comparison: outputs/first/comparison.html" in said
    assert "<html" in Path("outputs/first/comparison.html").read_text()


def test_a_split_that_was_trained_on_is_refused_or_labeled(home: Home, refused: Refused) -> None:
    words = ["evaluate", "run=outputs/first", "split=val", "n=20", "seeds=[0]"]
    shutil.copytree("data/shapes", "data/known", dirs_exist_ok=True)
    shards = next(iter(Path("data/shapes").glob("train-*.tar")))
    seen = Path("data/known/seen-000000.tar")
    shutil.copy(shards, seen)
    said = refused(*words, f"shards={seen}")
    assert "64 of 64 images of split=val lie in the training set or nearly so" in said
    assert "in the training set or nearly so (64 exactly)" in spoken(
        [*words, f"shards={seen}", "overlap=label"]
    )


def test_the_training_split_is_not_held_against_itself(home: Home) -> None:
    """No search for copies where every image is known, and no floor of images against themselves."""
    spoken(["evaluate", "run=outputs/first", "split=train", "n=32", "seeds=[0]"])
    record = json.loads(Path("outputs/first/eval/train/metrics.json").read_text())
    assert not {name for name in record["scores"] if name == "neighbors" or "_train" in name}
    spoken(["evaluate", "run=outputs/first", "split=val", "n=32", "seeds=[0]"])
    assert "neighbors" in json.loads(Path("outputs/first/eval/val/metrics.json").read_text())["scores"]


def test_weights_of_a_run_begin_another(home: Home) -> None:
    said = spoken(
        ["train", *TINY, DATA, "images=32", "evaluate.n=0", "init_from=outputs/first:generator@ema"]
    )
    assert "generator from outputs/first (EMA ema)" in said
    assert "missing there" not in said
    folder = find_run("last")
    assert store.status(folder)["images"] == 32


def test_a_finished_run_goes_on_as_a_new_one(home: Home, refused: Refused) -> None:
    """Its schedules are shares of its images: more of them would play its phases again."""
    said = refused("train", "resume=outputs/first")
    assert "outputs/first is done, after 192 images" in said
    assert "lmsd train init_from=outputs/first ..." in said
    more = refused("train", "resume=outputs/first", "images=384")
    assert "images: 192 -> 384" in more
    assert "lmsd train init_from=outputs/first ..." in more
    words = [*TINY, DATA, "images=32", "evaluate.n=0", "run_dir=outputs/further"]
    assert "generator from outputs/first" in spoken(["train", "init_from=outputs/first", *words])


def test_a_resume_with_another_net_is_refused(home: Home, refused: Refused) -> None:
    said = refused("train", "resume=outputs/first", "net.width=32", "optim.ema=[5]")
    assert "net.width: 16 -> 32" in said
    assert "lmsd train init_from=outputs/first" in said


def test_resume_auto_repeats_the_first_command(
    home: Home, refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a scheduler does: a new run, then the same one; what is harmless is accepted, kept and shown."""
    folder = Path("outputs/again")
    words = [*TINY, DATA, f"run_dir={folder}", "resume=auto", "evaluate.n=0", "net.depth=2", "images=128"]
    with monkeypatch.context() as patch:
        stop_at(64, patch)
        with pytest.raises(SystemExit) as stop:
            cli.run(["train", *words])
        assert stop.value.code == 143
    assert "nothing to resume" in capsys.readouterr().out
    lines = lines_of(folder)
    assert [line["images"] for line in lines] == [32, 64]
    assert "images: 128 -> 256" in refused("train", *words, "images=256")
    assert "net.width: 16 -> 32" in refused("train", *words, "net.width=32")
    assert "data.seed" not in refused("train", *words, "seed=1")
    said = spoken(["train", *words, "keep=2", "data.train.on_change=new_epoch"])
    assert "changed by you: keep 3 -> 2" in said
    assert f"Resuming {folder}" in said
    assert lines_of(folder)[: len(lines)] == lines
    assert [line["images"] for line in lines_of(folder)] == [32, 64, 96, 128]
    kept = store.config_of(folder)
    assert (kept.keep, kept.data.train.on_change) == (2, "error")  # leave to take other data counts once
    (folder / "report.html").unlink()
    said = spoken(["train", *words])  # once more: there is nothing left to do
    assert f"{folder} is done, after 128 images" in said
    assert "Resuming" not in said
    assert (folder / "report.html").is_file()
    assert "Report" not in spoken(["train", *words])


def test_a_resume_goes_on_where_the_run_is(home: Home, refused: Refused) -> None:
    said = refused("train", "resume=outputs/first", "run_dir=outputs/else")
    assert "resume=outputs/first goes on in outputs/first, not in run_dir=outputs/else" in said
    same = refused("train", "resume=outputs/first", "run_dir=outputs/../outputs/first")
    assert "outputs/first is done" in same


def test_a_damaged_configuration_comes_back_from_the_checkpoint(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("outputs/unread")
    shutil.copytree("outputs/first", folder)
    whole = store.config_of(folder)
    (folder / "config.yaml").write_text("")
    store.set_status(folder, state="interrupted")
    spoken(["train", f"resume={folder}"])
    assert f"{folder}/config.yaml cannot be read; taken from {folder}/checkpoints/" in capsys.readouterr().err
    assert store.config_of(folder) == whole
    assert store.status(folder)["state"] == "done"


@pytest.mark.parametrize("end", ["done", "stopped", "mistake", "failure"])
def test_a_full_disk_changes_neither_the_exit_code_nor_the_message(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    from types import SimpleNamespace

    from lmsd.cli.verbs.train import recorded, report
    from lmsd.errors import UserError
    from lmsd.evaluation import report as reports

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    raised = {
        "stopped": SystemExit(143),
        "mistake": UserError("make room"),
        "failure": ZeroDivisionError("by nothing"),
    }.get(end)
    subject = SimpleNamespace(clock=Clock(8, "generator", images=8, played={"generator": 1}), run=RunState())

    def attempt() -> None:
        with recorded(tmp_path, subject, active=True):
            monkeypatch.setattr(os, "fsync", full)
            if raised is not None:
                raise raised
        monkeypatch.setattr(reports, "write_report", full)
        report(tmp_path)

    if raised is None:
        attempt()
    else:
        with pytest.raises(type(raised)) as found:
            attempt()
        assert getattr(found.value, "code", 143) == 143
        assert not getattr(found.value, "__notes__", [])
    err = capsys.readouterr().err
    assert "lmsd: could not write status.json: [Errno 28] No space left on device" in err
    assert f"report (again: lmsd report {tmp_path})" in err or end != "done"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "status.json"]
    assert store.status(tmp_path)["state"] == "running"


def test_the_begin_of_every_session_is_kept(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from lmsd.cli.verbs.train import recorded

    subject, before = (
        SimpleNamespace(clock=Clock(8, "generator", images=8, played={"generator": 1}), run=RunState()),
        time.time(),
    )
    for _ in range(2):
        with recorded(tmp_path, subject, active=True):
            pass
    first, second = store.status(tmp_path)["sessions"]
    assert before - 0.001 <= first <= second <= time.time() + 0.001


def test_lightnings_own_word_for_sigterm_is_143(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from lmsd.cli.verbs.train import recorded

    subject = SimpleNamespace(clock=Clock(8, "generator", images=8, played={"generator": 1}), run=RunState())
    with pytest.raises(SystemExit) as stop, recorded(tmp_path, subject, active=True):
        raise SIGTERMException
    assert stop.value.code == 143


def test_a_signal_while_data_are_indexed_ends_it_with_143(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsd.data.shardset import ShardSet

    monkeypatch.setattr(ShardSet, "index", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(SystemExit) as stop:
        cli.run(["train", *TINY, DATA, "run_dir=outputs/early", "evaluate.n=0"])
    assert stop.value.code == 143
    assert not Path("outputs/early").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_in_the_same_folder(home: Home) -> None:
    folder = Path("outputs/young")
    words = [*TINY, DATA, f"run_dir={folder}", "images=32", "evaluate.n=0"]
    spoken(["train", *words])
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    store.set_status(folder, state="running")
    spoken(["train", *words, "resume=auto"])
    assert [line["images"] for line in lines_of(folder)] == [32]
    assert store.has_checkpoint(folder)


def test_a_run_that_a_callback_ends_is_saved_scored_and_goes_on(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = [
        "callbacks.my._target_=lightning.pytorch.callbacks.Timer",
        "callbacks.my.duration={milliseconds: 1}",
    ]
    spoken(["train", *TINY, "data.shards=data/shapes", "run_dir=outputs/timed", *timer])
    said, folder = capsys.readouterr().err, Path("outputs/timed")
    assert "Stopped by a callback at 32 of 192 images. Resume with: lmsd train resume=outputs/timed" in said
    assert (store.status(folder)["state"], store.status(folder)["images"]) == ("stopped", 32)
    assert [line["images"] for line in store.scored(folder, '"val/right"')] == [0, 32]
    assert (folder / "report.html").is_file()
    spoken(["train", "resume=outputs/timed", "~callbacks.my"])
    assert (store.status(folder)["state"], store.status(folder)["images"]) == ("done", 192)


def test_wandb_goes_on_under_the_runs_own_id(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmsd.cli.config.compose import load
    from lmsd.cli.verbs.train import loggers

    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = Path("outputs/first")
    for _ in range(2):  # the first start, and any other
        (logger,) = loggers(load(["logger=wandb"]), folder)
        own = {name: logger._wandb_init[name] for name in ("id", "resume")}
        assert own == {"id": store.status(folder)["id"], "resume": "allow"}


def test_a_resume_from_one_checkpoint_puts_later_ones_aside(home: Home) -> None:
    folder = Path("outputs/back")
    spoken(["train", *TINY, DATA, f"run_dir={folder}", "images=96", "checkpoint_every=32", "evaluate.n=0"])
    before = lines_of(folder)
    store.set_status(folder, state="interrupted")
    spoken(["train", f"resume={folder}/checkpoints/step_000000032.ckpt"])
    again = lines_of(folder)
    assert [{**line, "time": 0} for line in again] == [{**line, "time": 0} for line in before]
    assert again[1]["time"] > before[1]["time"]
    assert (folder / "checkpoints" / "step_000000064.ckpt.bad").exists()


def test_a_damaged_file_that_is_named_is_refused(home: Home, refused: Refused) -> None:
    """Neither a resume nor weights nor samples come from another checkpoint than the one that is named."""
    folder = Path("outputs/torn")
    spoken(["train", *TINY, DATA, f"run_dir={folder}", "images=96", "checkpoint_every=32", "evaluate.n=0"])
    store.set_status(folder, state="interrupted")
    torn, good = (folder / "checkpoints" / f"step_{n:09d}.ckpt" for n in (96, 64))
    torn.write_bytes(torn.read_bytes()[:-100])
    for words in (
        ["train", f"resume={torn}"],
        ["train", *TINY, DATA, "evaluate.n=0", "run_dir=outputs/none", f"init_from={torn}"],
        ["sample", f"run={folder}", "prompts=[a]", f"checkpoint={torn.name}"],
        ["evaluate", f"run={folder}", "split=val", "n=20", f"checkpoint={torn.name}"],
    ):
        said = refused(*words)
        assert f"{torn} is damaged" in said
        assert f"give {good}, the newest that is whole" in said
    assert store.status(folder)["state"] == "interrupted"
    assert torn.exists()
    assert not Path("outputs/none").exists()
    with pytest.warns(UserWarning, match="is damaged; trying the one before"):  # a folder is its newest
        spoken(["train", f"resume={folder}"])
    assert store.status(folder)["state"] == "done"


def test_guidance_keeps_to_its_interval(home: Home, tmp_path: Path) -> None:
    def record(*words: str) -> dict[str, object]:
        spoken(["sample", *words, f"out={tmp_path / 'grid.png'}"])
        return json.loads((tmp_path / "grid.json").read_text())

    base = ["run=outputs/first", "prompts=[a red circle]", "guidance=4"]
    assert record(*base)["nfe"] == 8
    assert record(*base, "interval=[0,0.5]")["nfe"] == 4  # the chain's steps begin at 4, 3, 2 and 1
    part = record(*base, "interval=[2,3]")
    assert (part["nfe"], part["interval"]) == (6, "2 to 3")
    (tmp_path / "part.json").write_text(json.dumps(part))
    assert record(f"again={tmp_path / 'part.json'}")["interval"] == "2 to 3"


def test_a_guided_run_of_rewards_is_trained_scored_and_reported(home: Home) -> None:
    """It takes guidance from the run it began with; lmsd evaluate scores it, within an interval too."""
    words = [
        *ALONE,
        DATA,
        "objective=grpo",
        "reward@objective.reward=sharpness",
        "objective.group=4",
        "images=64",
    ]
    words += ["init_from=outputs/first@ema", "evaluate.guidance=3", "evaluate.every=32", "evaluate.n=20"]
    folder = Path("outputs/rewarded")
    spoken(["train", *words, f"run_dir={folder}", "checkpoint_every=64"])
    lines = lines_of(folder)
    trained = [line for line in lines if "generator/reward" in line]
    assert [line["images"] for line in trained] == [32, 64]
    assert all(-10 < line["generator/reward"] < 5 and line["generator/ratio"] < 1e-4 for line in trained)
    assert trained[0]["generator/kl"] == 0 < trained[1]["generator/kl"]

    def scored(*more: str) -> dict[str, object]:
        spoken(["evaluate", f"run={folder}", "split=test", "n=20", "seeds=[0]", *more])
        return json.loads((folder / "eval/test/metrics.json").read_text())["setup"]

    assert (scored()["guidance"], scored()["nfe"]) == (3.0, 8.0)
    part = scored("interval=[2,3]")  # the chain's steps begin at 4, 3, 2 and 1
    assert (part["interval"], part["nfe"]) == ("2 to 3", 6.0)
    page = (folder / "report.html").read_text()
    assert "Is the reward hacked?" in page
    assert "interval=[2,3]" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=nowhere", "prompts=a"], "no run 'nowhere' in outputs/"),
        (["run=outputs/first"], "needs prompts="),
        (["run=outputs/first", "prompts=absent.txt"], "there is no such file"),
        (["again=absent.json"], "is not a .json that lmsd sample wrote"),
        (["run=outputs/first", "prompt=a"], "did you mean prompts?"),
        (["run=outputs/first", "prompts=a red circle, a star"], "prompts=[a red circle, a star]"),
        (["run=outputs/first", "prompts=a", "checkpoint=x.ckpt"], "no checkpoint x.ckpt; there are: step_"),
        (["run=outputs/first", "prompts=a", "sampler=hein"], "did you mean heun?"),
        (["run=outputs/first", "prompts=a", "steps=9"], "steps=9 on a chain of 4"),
        (["run=outputs/first", "prompts=a", "ema=77"], "holds no EMA"),
        (["run=outputs/first", "prompts=a", "seeds=a"], "seeds=a is not a whole number from 0 to"),
        (["run=outputs/first", "prompts=a", "interval=[3,1]"], "interval=[3.0, 1.0] is no [low, high]"),
        (["run=outputs/first", "prompts=a", "interval=[3]"], "give two times, the lower one first"),
    ],
)
def test_mistakes_in_sampling(home: Home, refused: Refused, words: list[str], said: str) -> None:
    assert said in refused("sample", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run=outputs/first", "n=33"], "n=33 prompts of a split of 32: give 2 to 32"),
        (["run=outputs/first", "interval=[3,1]"], "interval=[3.0, 1.0] is no [low, high]"),
        (["run=outputs/first", "split=tests"], "did you mean test?"),
        (["run=outputs/first", "seeds=[0,0]"], "each once"),
        (["run=outputs/first", "shards=nowhere"], "the shard nowhere is missing"),
        (["run=outputs/first", "extractor=clip"], "kind=clip needs its weights"),
        (["run=outputs/first", "extractor=inception", "weights=no.pth"], "no Inception weights at no.pth"),
        (["run=outputs/first", "keep=[pictures]"], "keep=pictures is not one of images, features"),
    ],
)
def test_mistakes_in_evaluation(home: Home, refused: Refused, words: list[str], said: str) -> None:
    assert said in refused("evaluate", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which shards? data.shards=FOLDER"),
        (["data.shards=nowhere"], "the shard nowhere is missing"),
        (["data.shards=empty"], "contains no .tar shard"),
        (["data.shards='pipe:cat x'"], "a shard is never a command"),
        (["data.shards=data/shapes/val-*.tar"], "add train-*.tar"),
        (["data.shards=data/shapes/train-*.tar"], "there are no val shards to score on"),
        (["data.shards=damaged"], "damaged/train-000000.tar"),
        ([DATA, "run_dir=outputs/first"], "run_dir=outputs/first exists"),
        ([DATA, "accelerator=cuda"], "accelerator=cpu"),
        ([DATA, "precision=16-mixed"], "use bf16-mixed"),
        ([DATA, "evaluate.extractor.path=nowhere"], "holds no lmsd-cnn"),
        ([DATA, "init_from=nowhere"], "no run 'nowhere'"),
        ([DATA, "init_from=outputs/first:critic"], "has no player 'critic'"),
        ([DATA, "init_from=outputs/first", "net.width=32"], "build the same net"),
        ([DATA, "net._target_=os.system"], "may not be built"),
        ([DATA, "fsdp=true"], "trainer=fsdp shards the generator over ranks and there is one: devices=2"),
        (
            [DATA, "objective=denoising"],
            "discriminator.trunk.width=16: Denoising plays generator alone",
        ),
        ([DATA, "optim.generator.lr=-1"], "Invalid learning rate"),
        ([DATA, "steps=4", "evaluate.steps=9", "evaluate.at_start=true"], "steps=9 on a chain of 4"),
    ],
)
def test_mistakes_in_training(home: Home, refused: Refused, words: list[str], said: str) -> None:
    Path("empty").mkdir(exist_ok=True)
    Path("damaged").mkdir(exist_ok=True)
    Path("damaged/train-000000.tar").write_bytes(
        Path("data/shapes/train-000000.tar").read_bytes()[:5000] + b"\1" * 700
    )
    if words and words[-1] == "accelerator=cuda":
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    before = sorted(Path("outputs").iterdir())
    assert said in refused("train", *TINY, *words)
    assert sorted(Path("outputs").iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["net=dit_label"], "net=dit_label reads class labels only: add conditioner=label generator.z_dim=0"),
        (["net=dit_label", "conditioner=label", "net.classes=7"], "net.classes=7 and conditioner.classes=10"),
    ],
)
def test_labels_are_asked_for_before_a_run_has_a_folder(
    home: Home, refused: Refused, words: list[str], said: str
) -> None:
    before = set(Path("outputs").iterdir())
    assert said in refused("train", DATA, "data.image_size=16", "accelerator=cpu", *words)
    assert set(Path("outputs").iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "unknown verb 'trian'; did you mean train?"),
        (["data", "bild"], "unknown action 'bild'; did you mean build?"),
        (["data", "build", "digit", "out=x"], "no source 'digit'; did you mean digits"),
        (["data", "build", "digits"], "needs out=DIR"),
        (["data", "build", "digits", "out="], "needs out=DIR"),
        (
            ["data", "build", "shapes", "out=x", "image_size=-3"],
            "image_size=-3 is not a whole number of at least 1",
        ),
        (["data", "build", "shapes", "out=x", "path=y"], "it belongs to folder, imagefolder, classes,"),
        (["data", "index", "nowhere"], "the shard nowhere is missing"),
        (["report", "nowhere"], "no run 'nowhere'"),
        (["demo", "--fast"], "has no option --fast"),
    ],
)
def test_mistakes_in_other_verbs(home: Home, refused: Refused, words: list[str], said: str) -> None:
    assert said in refused(*words)


def test_a_failure_of_ours_is_one_line_and_keeps_its_traceback(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmsd.engine.module import Engine

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(Engine, "_advance", broken)
    monkeypatch.delenv("LMSD_TRACE", raising=False)
    assert cli.run(["train", *TINY, DATA, "run_dir=outputs/broken", "evaluate.n=0"]) == 1
    err = capsys.readouterr().err
    assert "lmsd: failed with ZeroDivisionError: by nothing (traceback in outputs/broken/error.txt" in err
    assert "Traceback" not in err
    assert "_advance" in Path("outputs/broken/error.txt").read_text()
    assert store.status(Path("outputs/broken"))["state"] == "failed"


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_to_its_end(home: Home) -> None:
    """Ctrl-C: exit code 130, the command to go on with; going on leaves no image twice in the metrics."""
    folder = Path("outputs/2999-01-01_000000-cut-0000")
    total = 12_800
    words = [*TINY, DATA, f"run_dir={folder}", f"images={total}", "evaluate.n=0", "name=cut"]
    process = subprocess.Popen(command("train", *words), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "step_000000096.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130, err
    assert f"Resume with: lmsd train resume={folder}" in err
    assert "Traceback" not in err
    status = store.status(folder)
    assert status["state"] == "interrupted"
    done = subprocess.run(command("train", "resume=last"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images = [line["images"] for line in lines_of(folder)]
    assert images == list(range(32, total + 1, 32))
    assert store.status(folder)["state"] == "done"


def test_the_same_command_gives_the_same_weights(home: Home) -> None:
    import torch

    words = ["train", *TINY, DATA, "images=64", "evaluate.n=0", "checkpoint_every=64"]
    found = []
    for name in ("outputs/once", "outputs/twice"):
        spoken([*words, f"run_dir={name}"])
        found.append(torch.load(f"{name}/checkpoints/step_000000064.ckpt", weights_only=True)["state_dict"])
    assert list(found[0]) == list(found[1])
    tensors = [name for name, value in found[0].items() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 50
    assert all(torch.equal(found[0][name], found[1][name]) for name in tensors)


def test_every_verb_has_a_script() -> None:
    scripts = Path(cli.__file__).parents[3] / "scripts"
    names = {name.replace("-", "_") for name in cli.VERBS if name != "demo"}
    assert {path.stem for path in scripts.glob("*.py")} == names
    for name in names:
        verb = name.replace("_", "-")
        assert (scripts / f"{name}.py").read_text().endswith(f'from lmsd.cli import main\n\nmain("{verb}")\n')
    done = subprocess.run(
        [sys.executable, scripts / "train.py", "nt=3"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.partition(";")[0]) == (2, "lmsd: unknown option 'nt'")


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) <= 40
    assert max(map(len, said)) <= 110
    for verb in cli.VERBS:
        assert any(line.split()[:1] == [verb] for line in said)


def test_a_dry_run_says_the_sizes_and_leaves_nothing(home: Home) -> None:
    before = set(Path("outputs").iterdir())
    said = spoken(["train", *TINY, DATA, "debug=dry"])
    assert "Dry run custom  (generator 0." in said
    assert "64 train samples; everything is built, every turn is played, on shapes. To train" in said
    assert set(Path("outputs").iterdir()) == before


def test_a_recipe_is_built_with_another_net(home: Home) -> None:
    words = ["train", "experiment=shapes", "net=unet_pooled", "discriminator=mlp", DATA, "debug=dry"]
    assert "64 train samples; everything is built" in spoken(words)


def test_a_profile_is_written(home: Home) -> None:
    small = ["images=64", "batch_size=32", "run_dir=outputs/profiled", "profiler=simple"]
    spoken(["train", *TINY, DATA, "debug=profile", *small])
    (table,) = Path("outputs/profiled").glob("*profile*")
    assert "run_training_epoch" in table.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_ranks_make_one_run(home: Home, launcher: str) -> None:
    folder = Path(f"outputs/two-{launcher}")
    words = ["train", *TINY, DATA, "images=96", "devices=2", f"run_dir={folder}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch = command(*words) if launcher == "lightning" else [*torchrun, "-m", "lmsd.cli", *words]
    before = set(Path("outputs").iterdir())
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(Path("outputs").iterdir()) - before == {folder}
    assert store.status(folder)["state"] == "done"
    assert done.stdout.count("Report: ") == done.stdout.count(f"Run {folder}") == 1
    assert [line["images"] for line in lines_of(folder) if "val/right" in line] == [0, 96]
    assert sum(line.startswith("96 images") for line in done.stdout.splitlines()) == 1
