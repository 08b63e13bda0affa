"""Checkpoints: whole or absent, and a run that goes on from one is the run that never stopped."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from tiny_run import engine, players, run

from lmsd import checkpoints
from lmsd.checkpoints import WeightsRef, load_weights
from lmsd.engine import checkpoint as disk
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.logging import JSONLLogger, read_metrics
from lmsd.engine.plugin import Snapshot
from lmsd.errors import UserError


def content(images: int, size: int = 1_000) -> dict[str, object]:
    """A checkpoint's content as the engine writes it, filled with its own number."""
    return {
        "state_dict": {"w": torch.full((size,), images)},
        checkpoints.KEY: {"version": checkpoints.VERSION, "clock": {"images": images, "updates": 1}},
    }


def store(folder: Path, *images: int) -> list[Path]:
    paths = [folder / checkpoints.checkpoint_name(n) for n in images]
    for path, n in zip(paths, images, strict=True):
        disk.save(content(n), path)
    return paths


def holds(path: Path) -> int:
    return int(checkpoints.read(path)["state_dict"]["w"][0])


def test_manifest_names_content_and_count(tmp_path: Path) -> None:
    (path,) = store(tmp_path, 600)
    manifest = json.loads((tmp_path / "step_000000600.json").read_text())
    assert manifest["bytes"] == path.stat().st_size
    assert (manifest["images"], manifest["updates"], manifest["file"]) == (600, 1, path.name)
    assert checkpoints.intact(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000600.ckpt", "step_000000600.json"]


def test_every_damage_is_seen_and_the_one_before_is_read(tmp_path: Path) -> None:
    older, newer = store(tmp_path, 100, 200)
    whole = newer.read_bytes()
    draw = random.Random(0)
    for _ in range(50):
        at = draw.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << draw.randrange(8)
        for damaged in (bytes(flipped), whole[:at]):
            newer.write_bytes(damaged)
            assert not checkpoints.intact(newer)
            with pytest.warns(UserWarning, match="damaged"):
                assert holds(tmp_path) == 100
    newer.write_bytes(whole)
    assert holds(tmp_path) == 200
    checkpoints.manifest_of(newer).unlink()  # killed between the file and its commit
    assert holds(tmp_path) == 100
    older.write_bytes(b"")
    with pytest.warns(UserWarning, match="has no good manifest"):  # nothing committed is left
        assert holds(tmp_path) == 200
    newer.write_bytes(whole[:-1])
    with (
        pytest.raises(UserError, match=r"no checkpoint in .* is intact"),
        pytest.warns(UserWarning, match="damaged"),
    ):
        checkpoints.find(tmp_path)


def test_every_damage_to_a_manifest_is_seen_and_the_one_before_is_read(tmp_path: Path) -> None:
    older, newer = store(tmp_path, 100, 200)
    manifest = checkpoints.manifest_of(newer)
    text = manifest.read_bytes()
    draw = random.Random(0)
    flips = []
    for at in (at for at in range(len(text)) if not text[at : at + 1].isspace()):
        flipped = bytearray(text)
        flipped[at] ^= 1 << draw.randrange(7)
        flips.append(bytes(flipped))
    for damaged in (*flips, b"", b"{}", b"null", b"[]", text[:-9]):
        manifest.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"manifest of checkpoint .*{newer.name} is damaged"):
            assert holds(tmp_path) == 100
        assert list(checkpoints.manifests(tmp_path)) == [older]
    assert holds(newer) == 200  # named: by its own checksums
    manifest.write_bytes(text)
    assert holds(tmp_path) == 200


def test_a_file_that_is_named_is_never_another(tmp_path: Path) -> None:
    older, newer, newest = store(tmp_path, 100, 200, 300)
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=f"{newest.name} is damaged .*: give {newer}, the newest that is whole"
    ):
        checkpoints.find(newest)
    with pytest.raises(UserError, match=f"no checkpoint .*: give {newer}, the newest"):
        checkpoints.find(tmp_path / checkpoints.checkpoint_name(250))
    for path in (older, newer):
        disk.remove(path)
    with pytest.raises(UserError, match="is damaged or was never completed: give a run folder, or a file"):
        checkpoints.find(newest)


def test_a_damaged_checkpoint_is_kept_aside_by_whoever_goes_on(tmp_path: Path) -> None:
    older, newer = store(tmp_path, 100, 200)
    newer.write_bytes(newer.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.find(tmp_path) == older
    assert newer.exists()  # looking changes nothing
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoints.find(tmp_path, aside=True) == older
    names = {path.name for path in tmp_path.iterdir() if "200" in path.name}
    assert names == {"step_000000200.ckpt.bad", "step_000000200.json.bad"}
    for path in (older, checkpoints.manifest_of(older)):
        path.unlink()
    with pytest.raises(UserError, match="is intact"):  # not None: the run had checkpoints
        checkpoints.newest(tmp_path)


def test_what_is_kept(tmp_path: Path) -> None:
    store(tmp_path, *range(10, 101, 10))
    best = tmp_path / checkpoints.checkpoint_name(20)
    disk.prune(tmp_path, keep_last=2, keep_every=35, best=best)
    assert [m["images"] for m in checkpoints.manifests(tmp_path).values()] == [20, 40, 70, 90, 100]
    store(tmp_path, 110)
    disk.prune(tmp_path, keep_last=1, keep_every=35)  # the firsts past 35, 70 and 105 stay for good
    assert [m["images"] for m in checkpoints.manifests(tmp_path).values()] == [40, 70, 110]


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    for path in (tmp_path, tmp_path / "absent.ckpt", tmp_path / "no" / "folder"):
        with pytest.raises(UserError, match="no checkpoint"):
            checkpoints.find(path)


def test_a_full_disk_leaves_the_checkpoint_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path, 100)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store(tmp_path, 200)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000000100.ckpt", "step_000000100.json"]
    assert holds(tmp_path) == 100


class Crash(BaseException):
    """The end of the process, at a call that was chosen."""


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_crash_at_any_step_of_saving_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Over a checkpoint of the same name: what has a manifest is intact, old or new, and one always has."""
    store(tmp_path, 100, 200)
    real, calls = getattr(os, call), iter(range(1, 100))

    def crashing(*arguments: object, **options: object) -> object:
        if next(calls) >= number:
            raise Crash
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crashing)
        with contextlib.suppress(Crash):
            disk.save({**content(200), "again": True}, tmp_path / checkpoints.checkpoint_name(200))
    committed = checkpoints.manifests(tmp_path)
    assert 100 in [manifest["images"] for manifest in committed.values()]
    assert all(checkpoints.intact(path) for path in committed)


def test_killed_at_any_moment_of_saving(tmp_path: Path) -> None:
    """A child saves without end and is killed: what is committed is intact."""
    store(tmp_path, 1)
    draw = random.Random(1)
    for _ in range(12):
        child = os.fork()
        if child == 0:  # pragma: no cover
            n = 2
            while True:
                disk.save(content(n, 100_000), tmp_path / checkpoints.checkpoint_name(n % 5 + 1))
                n += 1
        time.sleep(draw.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        committed = checkpoints.manifests(tmp_path)
        assert committed
        assert all(checkpoints.intact(path) for path in committed)
        assert all(holds(path) == manifest["images"] for path, manifest in committed.items())


def test_nothing_in_a_checkpoint_can_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / checkpoints.checkpoint_name(1)
    disk.save({"state_dict": Payload(), checkpoints.KEY: {"clock": {"images": 1, "updates": 1}}}, path)
    with pytest.raises(UserError, match="weights and plain data only"):
        checkpoints.read(path)
    assert not (tmp_path / "ran").exists()


# -- runs ---------------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, object]:
    """All tensors of a run's last checkpoint by name, and its counts."""
    saved = checkpoints.read(folder)
    flat: dict[str, object] = dict(saved["state_dict"])
    for role, optimizer in saved["optimizers"].items():
        for key, state in optimizer["state"].items():
            flat.update({f"optimizers.{role}.{key}.{name}": value for name, value in state.items()})
        flat[f"optimizers.{role}.lr"] = [group["lr"] for group in optimizer["param_groups"]]
    flat["clock"], flat["data"] = saved[checkpoints.KEY]["clock"], saved["Stream"]
    flat["objective"] = saved[checkpoints.KEY]["objective"]  # of rewards: statistics, temperature, counts
    return flat


def assert_same_run(ours: Path, theirs: Path) -> None:
    a, b = everything(ours), everything(theirs)
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, f"{name} differs"
    lines = [[{**line, "time": 0} for line in read_metrics(run / "metrics.jsonl")] for run in (ours, theirs)]
    assert lines[0] == lines[1]


OPTIONS = {
    "ema": (20, 60),
    "warmup_images": 16,
    "lr_decay": "cosine",
    "log_every": 24,
    "clip": {"generator": 1.0},
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run(
        engine(record={"config": "seed: 3\n"}, **OPTIONS),
        folder,
        callbacks=[Checkpoint(every_images=8, keep_last=9)],
    )
    return folder


@pytest.mark.parametrize("images", [8, 24, 40])
def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path, unbroken: Path, images: int) -> None:
    """Weights, averages, optimizers, counts, place in the data and lines of metrics, to the last bit."""
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    for path in checkpoints.manifests(folder / "checkpoints"):
        if path > folder / "checkpoints" / checkpoints.checkpoint_name(images):
            disk.remove(path)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"images": 4')  # killed while writing
    subject = engine(**OPTIONS)
    run(subject, folder, resume_from=folder)
    assert subject.trainer.global_step == subject.clock.updates == 6
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("name", ["grpo", "nft", "ddpo", "dpo", "draft", "dmd2", "f_distill", "adv_dmd"])
def test_a_resumed_run_of_rewards_is_the_unbroken_run(tmp_path: Path, name: str) -> None:
    """Rollouts, old policy, reference, the judge's temperature, the prompts' statistics, to the bit."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run(engine(name, batches=4), whole, callbacks=[Checkpoint(every_images=8, keep_last=9)])
    shutil.copytree(whole, folder)
    for path in checkpoints.manifests(folder / "checkpoints"):
        if path > folder / "checkpoints" / checkpoints.checkpoint_name(16):
            disk.remove(path)
    run(engine(name, batches=4), folder, resume_from=folder)
    assert_same_run(folder, whole)


def test_a_finished_run_that_is_resumed_changes_nothing(tmp_path: Path, unbroken: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    subject = engine(**OPTIONS)
    run(subject, folder, resume_from=folder)
    assert subject.clock.images == 48
    assert_same_run(folder, unbroken)


def test_another_objective_is_refused(tmp_path: Path, unbroken: Path) -> None:
    with pytest.raises(UserError, match="init_from="):
        run(engine("denoising", players=players(), **OPTIONS), tmp_path, resume_from=unbroken)


def test_a_checkpoint_holds_the_config_and_plain_data(unbroken: Path) -> None:
    saved = torch.load(checkpoints.find(unbroken), weights_only=True)
    assert saved[checkpoints.KEY]["config"] == "seed: 3\n"
    assert saved[checkpoints.KEY]["clock"].items() >= {"images": 48, "updates": 6}.items()
    assert {key.split(".")[0] for key in saved["state_dict"]} == {"players", "ema"}


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = iter([9.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0])
    seen = []

    def evaluate(subject: object) -> dict[str, float]:
        seen.append(subject.clock.images)
        return {"val/fd": next(scores)}

    saving = Checkpoint(every_images=8, keep_last=2, monitor="val/fd")
    run(engine(), tmp_path, callbacks=[saving, Evaluate(evaluate, every_images=8)])
    folder = tmp_path / "checkpoints"
    assert seen == [0, 8, 16, 24, 32, 40, 48]
    assert [int(m["images"]) for m in checkpoints.manifests(folder).values()] == [16, 40, 48]
    assert saving.best(folder) == folder / checkpoints.checkpoint_name(16)
    assert saving.last == folder / checkpoints.checkpoint_name(48)
    found = [line["val/fd"] for line in read_metrics(tmp_path / "metrics.jsonl") if "val/fd" in line]
    assert found == [9.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0]


def test_a_score_goes_with_the_weights_it_was_taken_on(tmp_path: Path) -> None:
    saving = Checkpoint(every_images=8, keep_last=9, monitor="val/fd")
    run(engine(), tmp_path, callbacks=[saving, Evaluate(lambda _: {"val/fd": 1.0}, every_images=16)])
    scores = {m["images"]: m["metrics"] for m in checkpoints.manifests(tmp_path / "checkpoints").values()}
    assert scores == {n: {"val/fd": 1.0} if n % 16 == 0 else {} for n in range(8, 49, 8)}


def test_written_behind_the_training_it_is_the_same_run(tmp_path: Path, unbroken: Path) -> None:
    """From one buffer, no larger than a checkpoint, that is allocated once."""
    saving, subject = Checkpoint(every_images=8, keep_last=9), engine(**OPTIONS)
    trainer = run(subject, tmp_path, callbacks=[saving], asynchronous=True)
    assert_same_run(tmp_path, unbroken)
    io = trainer.strategy.checkpoint_io
    assert len(checkpoints.manifests(tmp_path / "checkpoints")) == 6
    before = {name: held.data_ptr() for name, held in io._snapshot._held.items()}
    trainer.save_checkpoint(tmp_path / "checkpoints" / "step_000000049.ckpt")
    io.wait()
    assert {name: held.data_ptr() for name, held in io._snapshot._held.items()} == before
    assert 0.5 * saving.last.stat().st_size < io._snapshot.bytes <= saving.last.stat().st_size


def test_a_snapshot_keeps_what_is_shared_shared_and_sees_no_later_change() -> None:
    weight, snapshot = torch.arange(6.0), Snapshot()
    taken = snapshot({"a": weight, "b": [weight, {"c": weight[2:]}], "n": (1, "x")})
    weight.zero_()
    assert taken["a"] is taken["b"][0]
    assert taken["a"].tolist() == [0, 1, 2, 3, 4, 5]
    assert (taken["b"][1]["c"].tolist(), taken["n"]) == ([2, 3, 4, 5], (1, "x"))
    assert snapshot.bytes == (6 + 4) * 4


class Full:
    """A system that refuses the saves whose numbers are named."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> None:
        self.count, self.real, self.numbers = 0, os.fsync, numbers
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if ".ckpt.tmp" in os.readlink(f"/proc/self/fd/{descriptor}"):
            self.count += 1
            if self.count in self.numbers:
                raise OSError(28, "No space left on device")
        self.real(descriptor)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_outlives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Path, asynchronous: bool
) -> None:
    """Two refused saves are told at the next step and made up for; three in a row stop the run, told too."""
    with monkeypatch.context() as patch:
        Full(patch, {2, 3, 5})
        saving = Checkpoint(every_images=8, keep_last=9)
        with pytest.warns(UserWarning, match="not written .*No space left"):
            run(engine(**OPTIONS), tmp_path, callbacks=[saving], asynchronous=asynchronous)
    known = checkpoints.manifests(tmp_path / "checkpoints")
    assert [m["images"] for m in known.values()] == [8, 32, 48]
    assert all(checkpoints.intact(path) for path in known)
    assert not list((tmp_path / "checkpoints").glob("*.tmp.*"))
    assert_same_run(tmp_path, unbroken)


def test_what_cannot_be_deleted_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(f"{path} may not be deleted")

    monkeypatch.setattr("lmsd.engine.checkpoint.remove", refuse)
    subject, saving = engine(**OPTIONS, batches=10), Checkpoint(every_images=8, keep_last=1)
    with pytest.warns(UserWarning, match="old checkpoints are not deleted"):
        run(subject, tmp_path, callbacks=[saving])
    assert subject.clock.done
    assert len(checkpoints.manifests(tmp_path / "checkpoints")) == 10


def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Full(patch, set(range(2, 99)))
        with (
            pytest.warns(UserWarning, match="No space left"),
            pytest.raises(UserError, match=r"checkpoints could not be written .*make room"),
        ):
            run(engine(**OPTIONS, batches=60), tmp_path, callbacks=[Checkpoint(every_images=8)])
    assert [m["images"] for m in checkpoints.manifests(tmp_path / "checkpoints").values()] == [8]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["images"] < 100


def test_an_error_of_the_writer_surfaces_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in the writer")

    monkeypatch.setattr("lmsd.engine.plugin.save", broken)
    subject = engine(**OPTIONS, batches=60)
    with pytest.raises(ZeroDivisionError, match="in the writer"):
        run(subject, tmp_path, callbacks=[Checkpoint(every_images=16)], asynchronous=True)
    assert subject.clock.images <= 40


def test_metrics_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = JSONLLogger(tmp_path / "metrics.jsonl")
    logger.log_metrics({"a": 1.0}, step=1)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lmsd.engine.logging.append", full)
        with pytest.warns(UserWarning, match="tried again"):
            logger.log_metrics({"a": 2.0}, step=2)
    logger.log_metrics({"a": 3.0}, step=3)
    assert [line["a"] for line in read_metrics(logger.path)] == [1.0, 2.0, 3.0]


class Spoiling(Callback):
    """Writes an infinity into a weight of the discriminator after 24 images."""

    def on_train_batch_start(self, trainer: object, pl_module: object, batch: object, batch_idx: int) -> None:
        if pl_module.clock.images == 24:
            with torch.no_grad():
                next(pl_module.players["discriminator"].parameters()).view(-1)[0] = torch.inf


def test_a_state_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"at 32 images: players\.discriminator\.\S+ is not finite"):
        run(engine(), tmp_path, callbacks=[Spoiling(), Checkpoint(every_images=8, keep_last=9)])
    known = checkpoints.manifests(tmp_path / "checkpoints")
    assert [m["images"] for m in known.values()] == [8, 16, 24]
    assert all(disk.first_not_finite(checkpoints.read(path)["state_dict"]) is None for path in known)


# -- weights ------------------------------------------------------------------------------------------------


def test_weights_are_taken_raw_or_averaged_as_asked(unbroken: Path) -> None:
    saved = checkpoints.read(unbroken)["state_dict"]
    for ema, prefix in (
        (None, "players.generator."),
        ("ema", "ema.generator.20."),
        ("60", "ema.generator.60."),
    ):
        fresh = players()["generator"]
        result = load_weights(fresh, unbroken, ema=ema)
        assert (result.missing, result.extra) == ((), ())
        assert all(torch.equal(value, saved[prefix + name]) for name, value in fresh.state_dict().items())


def test_keys_that_do_not_match_are_named(unbroken: Path) -> None:
    fresh = players()["generator"]
    fresh.extra = torch.nn.Linear(2, 2, bias=False)
    del fresh.conditioner.table
    result = load_weights(fresh, unbroken)
    assert result.missing == ("extra.weight",)
    assert result.extra == ("conditioner.table.weight",)


def test_weights_that_cannot_be_taken_are_refused(unbroken: Path) -> None:
    fresh = players()
    with pytest.raises(UserError, match=r"init_from=.*holds no EMA '7' of 'generator'; there are 20, 60"):
        load_weights(fresh["generator"], unbroken, ema="7")
    with pytest.raises(UserError, match="holds no EMA 'ema' of 'discriminator'; there are none"):
        load_weights(fresh["discriminator"], unbroken, player="discriminator", ema="ema")
    with pytest.raises(UserError, match="holds no player 'critic'"):
        load_weights(fresh["discriminator"], unbroken, player="critic")
    with pytest.raises(UserError, match="shares no key"):
        load_weights(torch.nn.Linear(1, 1), unbroken)
    fresh["generator"].conditioner.table = torch.nn.Embedding(9, 8)
    with pytest.raises(UserError, match=r"conditioner.table.weight is \[9, 8\] here and \[4, 8\]"):
        load_weights(fresh["generator"], unbroken)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("outputs/a-run", WeightsRef(Path("outputs/a-run"))),
        ("outputs/a-run@ema", WeightsRef(Path("outputs/a-run"), ema="ema")),
        ("a@b/x.ckpt:discriminator", WeightsRef(Path("a@b/x.ckpt"), player="discriminator")),
        ("x.ckpt:generator@50000", WeightsRef(Path("x.ckpt"), ema="50000")),
    ],
)
def test_sources_are_read_as_written(text: str, source: WeightsRef) -> None:
    assert WeightsRef.parse(text) == source


# -- metrics ------------------------------------------------------------------------------------------------


def test_metrics_are_lines_of_json_that_can_be_cut(tmp_path: Path) -> None:
    logger = JSONLLogger(tmp_path / "metrics.jsonl")
    for images in (10, 20, 30):
        logger.log_metrics({"a": images / 3, "b": float("nan")}, step=images)
    lines = read_metrics(logger.path)
    assert [(line["images"], line["a"], line["b"]) for line in lines] == [
        (n, n / 3, None) for n in (10, 20, 30)
    ]
    with open(logger.path, "a") as file:
        file.write('{"images": 15, "a"')
    logger.truncate(20)
    assert read_metrics(logger.path) == lines[:2]
