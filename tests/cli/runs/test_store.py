"""Run folders: made once, found by path, id and last; what they say of the machine."""

import errno
import getpass
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from lmsd.checkpoints import find_run
from lmsd.cli.config.schema import root
from lmsd.cli.runs import store
from lmsd.cli.runs.resuming import accept
from lmsd.errors import UserError

CONFIG = OmegaConf.create({"name": "small", "run_dir": None})


def whole(config: DictConfig) -> Any:
    """A configuration as it is read again: with the defaults of what it does not say."""
    return root(OmegaConf.to_container(config)).complete()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(
        UserError, match=r"^file/x cannot be made: .*; name another place with run_dir=FOLDER$"
    ):
        store.create(OmegaConf.create({"name": "small", "run_dir": "file/x"}), [])


def test_two_runs_of_one_second_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    # the second run draws the first one's name
    ids = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(ids))

    class Stopped(store.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(store, "datetime", Stopped)
    first, second = store.create(CONFIG, ["seed=1"]), store.create(CONFIG, [])
    assert first.name == "2030-01-02_030405-small-aaaa"
    assert second.name == "2030-01-02_030405-small-bbbb"
    assert (first / "overrides.txt").read_text() == "seed=1\n"
    assert store.config_of(first) == whole(CONFIG)
    assert store.status(first)["state"] == "created"
    assert store.status(first)["id"] != ""
    assert Path("outputs/latest").resolve() == second.resolve()


def test_a_named_folder_is_never_used_twice() -> None:
    config = OmegaConf.create({"name": "small", "run_dir": "here/it"})
    assert store.create(config, []) == Path("here/it")
    with pytest.raises(UserError, match="run_dir=here/it exists; continue it with resume=here/it"):
        store.create(config, [])


def test_runs_are_found_by_path_name_id_and_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no run 'last' in outputs/; the newest: none yet"):
        find_run("last")
    first = store.create(CONFIG, [])
    last = store.create(
        OmegaConf.create({"name": "zzz", "run_dir": "outputs/2999-01-01_000000-zzz-00ff"}), []
    )
    assert find_run(str(first)) == find_run(first.name) == find_run(first.name[-4:]) == first
    assert find_run("last") == find_run("latest") == find_run("00ff") == last
    assert find_run(str(first).replace("/", "\\")) == first  # as Windows writes it
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert find_run(f"~/{first}") == Path.cwd() / first
    named = store.create(OmegaConf.create({"name": "own", "run_dir": "outputs/1-own"}), [])
    assert find_run("last") == named  # the newest by when it began, whatever its name
    with pytest.raises(
        UserError, match=rf"no run 'abc' in outputs/; the newest: {first.name}, {last.name}, 1-own"
    ):
        find_run("abc")
    store.create(OmegaConf.create({"name": "yyy", "run_dir": "outputs/2999-01-01_000001-yyy-00ff"}), [])
    with pytest.raises(UserError, match="run '00ff' names 2 folders"):
        find_run("00ff")


def test_unfinished_is_the_newest_that_is_not_done_and_has_a_checkpoint() -> None:
    assert store.unfinished("small") is None
    names = [f"outputs/2999-01-01_00000{k}-small-000{k}" for k in range(3)]
    made = [store.create(OmegaConf.create({"name": "small", "run_dir": name}), []) for name in names]
    for folder in made[:2]:
        (folder / "checkpoints" / "step_000000001.ckpt").touch()
    assert store.unfinished("small") == made[1]
    store.set_status(made[1], state="done")
    assert store.unfinished("small") == made[0]
    assert store.unfinished("other") is None


def test_a_run_is_trained_by_one_process_at_a_time() -> None:
    folder = store.create(CONFIG, [])
    child = os.fork()
    if child == 0:
        held = store.lock(folder)
        (folder / "held").touch()
        signal.pause()
        held.close()
    while not (folder / "held").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="is being trained by another process"):
        store.lock(folder)
    os.kill(child, signal.SIGKILL)  # a process that is gone holds nothing
    os.waitpid(child, 0)
    store.lock(folder).close()


def test_a_file_system_without_locks_is_told_and_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    folder = store.create(CONFIG, [])
    monkeypatch.setattr(store.fcntl, "lockf", refuse)
    store.lock(folder).close()
    assert f"lmsd: {folder} cannot be locked (No locks available)" in capsys.readouterr().err
    assert not store.held(folder)


def test_auto_takes_runs_of_that_very_name_that_are_free_and_damaged_ones_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(name: str, number: int) -> Path:
        where = f"outputs/2999-01-01_00000{number}-{name}-000{number}"
        folder = store.create(OmegaConf.create({"name": name, "run_dir": where}), [])
        (folder / "checkpoints" / "step_000000001.ckpt.bad").touch()
        return folder

    digits, big, newer = made("digits", 1), made("digits-big", 2), made("digits", 3)
    assert store.unfinished("digits") == newer
    assert store.unfinished("digits-big") == store.unfinished("digits-big") == big
    (newer / "config.yaml").write_text("")  # the folder still says its name
    assert store.unfinished("digits") == newer
    monkeypatch.setattr(store, "held", lambda folder: folder == newer)
    assert store.unfinished("digits") == digits
    store.set_status(digits, state="done")
    assert store.unfinished("digits") is None


def test_what_rank_0_decides_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment of processes that Lightning starts, and by a file of SLURM's tasks."""
    from lmsd.cli.runs.agreed import agreed

    def never() -> str:
        pytest.fail("asked of another rank")

    for name in ("LMSD_RESUME", "TORCHELASTIC_USE_AGENT_STORE", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "1")  # put back as it was in the end
        monkeypatch.delenv(name)
    for tasks in ("1", "2"):
        monkeypatch.setenv("SLURM_NTASKS", tasks)
        monkeypatch.setenv("RANK", "0")
        assert agreed("resume", lambda: "outputs/a") == "outputs/a"
        if tasks == "2":  # the others have another environment
            monkeypatch.delenv("LMSD_RESUME")
        monkeypatch.setenv("RANK", "1")
        assert agreed("resume", never) == "outputs/a"
        monkeypatch.delenv("LMSD_RESUME", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(UserError, match="rank 1 is not told what rank 0 does"):
        agreed("resume", never)


def test_a_run_in_another_process_is_held() -> None:
    folder = store.create(CONFIG, [])
    assert not store.held(folder)
    file = store.lock(folder)
    child = os.fork()
    if child == 0:
        os._exit(int(store.held(folder)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    file.close()


def test_a_run_is_as_old_as_its_beginning_whatever_is_written_later() -> None:
    first, second = (
        store.create(OmegaConf.create({"name": "a", "run_dir": f"outputs/{n}"}), []) for n in "ba"
    )
    for folder in (second, first):  # a resume writes it again
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(CONFIG))
    assert store.by_age("*") == [first, second]
    assert find_run("last") == second
    for folder in (first, second):  # of an older version, which did not say
        (folder / "env.json").unlink()
    assert store.by_age("*") == [first, second]


@pytest.mark.parametrize("text", ["", '{"state": "ru', "[1]", "\x00\x00"])
def test_a_damaged_status_stands_in_nothings_way(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from lmsd import cli

    folder = store.create(OmegaConf.create({"name": "small", "run_dir": None, "images": 8}), [])
    (folder / "checkpoints" / "step_000000001.ckpt").touch()
    (folder / "status.json").write_text(text)
    assert store.status(folder) == {}
    assert cli.run(["runs"]) == 0
    assert "unknown" in capsys.readouterr().out
    assert store.unfinished("small") == folder
    store.set_status(folder, state="running")
    assert store.status(folder) == {"state": "running"}


@pytest.mark.parametrize("text", ["", "name: [", "a: !!python/object/apply:os.getcwd []", "\x00"])
def test_a_damaged_configuration_is_told_and_listed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from lmsd import cli

    folder = store.create(CONFIG, [])
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=f"cannot be read: lmsd train resume={folder} writes it again"):
        store.config_of(folder)
    with pytest.raises(UserError, match="cannot be read, and no checkpoint holds a copy"):
        store.config_again(folder)
    assert cli.run(["runs"]) == 0
    assert "0 of ?" in capsys.readouterr().out


def test_a_run_of_one_folder_is_found_before_its_first_checkpoint() -> None:
    assert store.unfinished("small", "outputs/mine") is None
    folder = store.create(OmegaConf.create({"name": "small", "run_dir": "outputs/mine"}), [])
    assert store.unfinished("small", "outputs/mine") == folder
    assert not store.has_checkpoint(folder)
    path = folder / "checkpoints" / "step_000000064.ckpt"
    path.with_name(path.name + ".tmp.77").touch()
    assert not store.has_checkpoint(folder)
    path.with_name(path.name + ".bad").touch()
    assert store.has_checkpoint(folder)  # damaged, but there: never begin anew
    assert find_run(str(path)) == path
    assert store.folder_of(path) == store.folder_of(folder) == folder


def test_a_folder_without_a_configuration_is_made_again() -> None:
    """What a process leaves that is killed while it makes one; anything else is left alone."""
    config = OmegaConf.create({"name": "small", "run_dir": "outputs/mine"})
    folder = store.create(config, [])
    for name in ("config.yaml.tmp.7", "status.tmp.7"):
        (folder / name).touch()
    (folder / "config.yaml").unlink()
    assert store.unfinished("small", "outputs/mine") is None
    assert store.create(config, ["seed=1"]) == folder
    assert store.config_of(folder) == whole(config)
    assert (folder / "overrides.txt").read_text() == "seed=1\n"
    Path("letters").mkdir()
    Path("letters/to_a_friend").touch()
    with pytest.raises(UserError, match="run_dir=letters exists"):
        store.create(OmegaConf.create({"name": "small", "run_dir": "letters"}), [])


def test_a_resume_writes_the_configuration_whole_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_NAME", "canary-5f3a")
    values = {"name": "small", "run_dir": "it", "keep": 3, "data": {"train": {"on_change": "error"}}}
    logger = {"group": "${oc.env:CANARY_NAME}", "token": "canary-5f3a"}
    folder = store.create(OmegaConf.create({**values, "logger": {"own": logger}}), [])
    config = store.config_of(folder)
    given = {"keep": 2, "data.train.on_change": "new_epoch", "logger.own.token": "canary-5f3a"}
    accept(config, given, folder)
    assert config.logger.own.token == config.logger.own.group == "canary-5f3a"  # as this process needs them
    store.save_config(folder, config)
    text = (folder / "config.yaml").read_text()
    assert "canary" not in text
    kept = OmegaConf.to_container(store.config_of(folder))
    assert kept == root({**values, "keep": 2, "logger": {"own": {**logger, "token": "***"}}}).complete()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            store.save_config(folder, OmegaConf.merge(config, {"keep": 1}))
    assert (folder / "config.yaml").read_text() == text


def test_the_environment_names_versions_and_neither_machine_nor_user() -> None:
    text = json.dumps(store.environment())
    assert set(json.loads(text)) == {"lmsd", "commit", "python", "platform", "cpus", "libraries"}
    for secret in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        assert secret not in text
    assert getpass.getuser() not in json.loads(text).values()


def test_status_is_merged_and_never_half_written() -> None:
    folder = store.create(CONFIG, [])
    store.set_status(folder, state="running", pid=1)
    store.set_status(folder, state="done")
    assert {"state": "done", "pid": 1}.items() <= store.status(folder).items()
    assert [path.name for path in folder.glob("status*")] == ["status.json"]


def test_a_damaged_line_of_metrics_costs_that_line_alone(tmp_path: Path) -> None:
    lines = [b'{"images": 1}', b'\0\0\xff{"images": 2}', b'{"images": 3}', b'{"images"']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert store.scored(tmp_path, '"images"') == [{"images": 1}, {"images": 3}]


def test_runs_are_listed_with_their_state_and_their_best(capsys: pytest.CaptureFixture[str]) -> None:
    from lmsd import cli

    assert cli.run(["runs"]) == 2
    assert "no runs in outputs/ yet" in capsys.readouterr().err
    whole = OmegaConf.create({"name": "small", "run_dir": "outputs/1-small", "images": 2000})
    first = store.create(whole, [])
    lines = [{"images": 500, "val/fd[x]": 9.0}, {"images": 1000, "val/fd[x]": 4.25}, {"images": 1500, "a": 1}]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (first / "metrics.jsonl").write_text(text + '{"images": 20')  # a line that is being written
    store.set_status(first, state="running", pid=2**22 + 1)  # no such process
    store.set_status(
        store.create(OmegaConf.create({**whole, "run_dir": "outputs/2-own"}), []), state="done", images=7
    )
    stopped = store.create(OmegaConf.create({**whole, "run_dir": "outputs/3-stopped"}), [])
    (stopped / "metrics.jsonl").write_text('{"images": 500}\n')  # and a checkpoint after it
    store.set_status(stopped, state="interrupted", images=707)
    assert cli.run(["runs"]) == 0
    said = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in said] == [
        ["run", "state", "images", "best on val"],
        ["1-small", "killed", "1,500 of 2,000", "fd[x] 4.25 at 1,000"],
        ["2-own", "done", "7 of 2,000", "-"],
        ["3-stopped", "interrupted", "707 of 2,000", "-"],
    ]
    assert cli.run(["runs", "own"]) == 0
    assert "1-small" not in capsys.readouterr().out
