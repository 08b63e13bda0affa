"""The processes of a sweep: how they are told to stop, what becomes of them, who else may have begun them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from lmsd import cli
from lmsd.cli.runs import store
from lmsd.cli.sweeps.checks import checked
from lmsd.cli.sweeps.jobs import Job, Placement
from lmsd.cli.sweeps.space import Axis, Space, read
from lmsd.cli.sweeps.trials import Ledger
from lmsd.cli.verbs.sweep import Sweep, SweepOptions, chosen_by, refused_score

JOB = """
import json, os, pathlib, signal, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv if "=" in word)
folder = pathlib.Path(words.get("run_dir") or words["resume"])
status, heard = folder / "status.json", []
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
if "resume" in words or words["seed"] != "0":
    (folder / "metrics.jsonl").write_text(json.dumps({"images": 100, "val/fd[x]": 1.0}) + "\\n")
    status.write_text(json.dumps({"state": "done"}))
    sys.exit()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: heard.append(number))
status.write_text(json.dumps({"state": "running", "pid": os.getpid()}))
deadline = time.monotonic() + 30
while not heard and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.3)
(folder / "checkpoints" / "step_000000001.ckpt").touch()
(folder.parent / "heard.txt").write_text(str([int(number) for number in heard]))
status.write_text(json.dumps({"state": "interrupted"}))
sys.exit(143)
"""
BETWEEN = {
    "shell": '"$@"\nexit $?\n',  # passes nothing on
    "passes": """
setsid "$@" &
trap 'kill -TERM $!' TERM
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code
""",
    "srun": """
setsid "$@" &
trap 'kill -USR1 $!' USR1
trap 'kill -KILL $!; exit 1' TERM INT
while kill -0 $! 2>/dev/null; do wait $!; code=$?; done
exit $code
""",
}
"""What stands between a sweep and its jobs, as shell scripts."""
FOLDER = Path("outputs/sweeps/it")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmsd.cli.verbs.sweep.POLL", 0.02)
    Path("job.py").write_text(JOB)
    return [f"sweep.prefix=[{sys.executable},job.py]", "sweep.name=it"]


def states() -> list[str]:
    return [trial.state for trial in Ledger(FOLDER).trials]


@pytest.mark.parametrize(
    ("prefix", "number"),
    [
        ("", signal.SIGTERM),
        ("env,FOO=1,", signal.SIGTERM),
        ("sh,shell,", signal.SIGTERM),
        ("sh,passes,", signal.SIGTERM),
        ("sh,srun,", signal.SIGUSR1),
    ],
)
def test_a_signal_reaches_the_training_once_behind_any_prefix(
    prefix: str, number: signal.Signals, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, script in BETWEEN.items():
        Path(name).write_text(script)

    def stop() -> None:
        deadline = time.monotonic() + 30
        while not (FOLDER / "0" / "status.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    sweep = ["sweep", "seed=choice(0)", f"sweep.prefix=[{prefix}{sys.executable},job.py]", *words[1:]]
    Thread(target=stop).start()
    assert cli.run(sweep) == 143
    assert "the same command continues" in capsys.readouterr().err
    assert (FOLDER / "heard.txt").read_text() == f"[{int(number)}]"
    assert states() == ["interrupted"]
    assert cli.run(sweep) == 0  # from its checkpoint
    assert states() == ["done"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[env, --ntasks=1, --gres=gpu:1]", ("env", "--ntasks=1", "--gres=gpu:1")),
        ("[env,'A=1, 2']", ("env", "A=1, 2")),
        ("env --nodelist=a,b '--comment=my sweep'", ("env", "--nodelist=a,b", "--comment=my sweep")),
        ("nice", ("nice",)),
    ],
)
def test_a_prefix_is_a_list_or_a_command(text: str, words: tuple[str, ...]) -> None:
    assert chosen_by([f"sweep.prefix={text}", "sweep.jobs=2"]) == SweepOptions(prefix=words, jobs=2)


class Ended:
    """A process that has."""

    def __init__(self, code: int) -> None:
        self.pid, self.returncode = 0, code

    def poll(self) -> int:
        return self.returncode


@pytest.mark.parametrize(
    ("code", "state", "scores", "pruned", "found"),
    [
        (0, "done", [3.0, 2.0], False, ("done", "")),
        (0, "done", [3.0, 2.0], True, ("done", "")),  # told too late
        (0, "done", [3.0, None], False, ("failed", "no finite fd on val")),
        (0, "done", [3.0, float("nan")], False, ("failed", "no finite fd on val")),
        (143, "interrupted", [3.0], True, ("pruned", "")),
        (143, "interrupted", [3.0], False, ("interrupted", "the same command trains it on")),
        (-signal.SIGKILL, "running", [3.0], False, ("interrupted", "the same command trains it on")),
        (128 + signal.SIGKILL, "running", [], False, ("interrupted", "the same command trains it on")),
        (1, "failed", [3.0], False, ("failed", "it diverged")),
        (2, "interrupted", [3.0], False, ("failed", "it diverged")),  # of the launch before
    ],
)
def test_what_becomes_of_a_trial(
    code: int, state: str, scores: list[float | None], pruned: bool, found: tuple[str, str], tmp_path: Path
) -> None:
    sweep = Sweep(Space((), (Axis("seed", choices=("1",)),)), SweepOptions(), tmp_path)
    trial = sweep.ledger.add({"seed": "1"})
    folder = sweep.ledger.run_dir(trial)
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"state": state}))
    (tmp_path / "0.log").write_text("lmsd: of the launch before\nlmsd: it diverged\n")
    lines = [json.dumps({"images": k, "val/fd[x]": score}) for k, score in enumerate(scores)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    sweep.jobs = [Job(trial, folder, handle=Ended(code), said=26, pruned=pruned)]  # type: ignore[arg-type]
    sweep._collect()
    assert (trial.state, trial.note) == found
    last = scores[-1] if scores else None
    assert trial.result.value == (last if last == last else None)  # the last one or none
    assert not sweep.jobs


def test_a_missing_score_is_told_with_the_reason_of_the_evaluation(tmp_path: Path) -> None:
    notes = ["no fd: n=64 is below 128; take a larger n", "no precision and recall: n=64 is below 400"]
    (tmp_path / "eval" / "val").mkdir(parents=True)
    (tmp_path / "eval" / "val" / "metrics.json").write_text(json.dumps({"notes": notes}))
    assert refused_score(tmp_path, "fd_ratio") == f" ({notes[0]})"
    assert refused_score(tmp_path, "recall[x]") == f" ({notes[1]})"
    assert refused_score(tmp_path, "right") == refused_score(tmp_path / "none", "fd") == ""


def forked(hold: Callable[[], Any]) -> int:
    """A process that holds something until it is killed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        kept = hold()
        os.write(write_end, b"x")
        time.sleep(60)
        os._exit(int(kept is None))
    os.read(read_end, 1)
    return child


def test_one_process_at_a_time_sweeps_a_folder(words: list[str], refused) -> None:
    held = ExitStack()
    child = forked(lambda: held.enter_context(Ledger(FOLDER).alone()) or held)
    try:
        said = refused("sweep", "seed=1,2", *words)
        assert f"outputs/sweeps/it is being swept by another process (pid {child}): wait for it" in said
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert cli.run(["sweep", "seed=1,2", *words]) == 0


def test_a_run_that_somebody_trains_is_not_begun_again(words: list[str]) -> None:
    sweep = Sweep(Space((), (Axis("seed", choices=("1", "2")),)), SweepOptions(), FOLDER)
    for seed in "12":
        sweep.ledger.run_dir(sweep.ledger.add({"seed": seed})).mkdir()
    child = forked(lambda: store.lock(FOLDER / "1"))
    try:
        sweep._take_up()
        assert ([job.trial.number for job in sweep.jobs], [t.number for t in sweep.waiting]) == ([1], [0])
        assert sweep.jobs[0].running()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not sweep.jobs[0].running()


def test_a_number_that_another_process_has_now_is_not_believed(words: list[str]) -> None:
    with subprocess.Popen(["sleep", "20"]) as other:
        ledger = Ledger(FOLDER)
        ledger.add({"seed": "1"}).pid = other.pid
        ledger.save()
        assert cli.run(["sweep", "seed=1,2", *words]) == 0
        assert other.poll() is None
        other.kill()
    assert states() == ["done", "done"]


@pytest.mark.parametrize(
    ("gpus", "jobs", "devices", "found"),
    [
        ((), None, 2, [""]),
        ((), 3, 1, ["", "", ""]),
        ((4, 7), None, 1, ["4", "7"]),
        ((0, 1, 2, 3), None, 2, ["0,1", "2,3"]),
        ((0, 1, 2), 1, 2, ["0,1"]),
        ((0, 0), None, 1, ["0", "0"]),
        ((0, 1, 2, 3), 2, None, ["0,1", "2,3"]),
        ((0, 1), None, None, ["0", "1"]),
    ],
)
def test_each_job_has_gpus_of_its_own(gpus, jobs, devices, found) -> None:
    assert Placement(jobs, gpus).places(devices) == found


def test_a_job_has_as_many_gpus_as_its_devices() -> None:
    gpus = SweepOptions(gpus=(0, 1, 2, 3))
    for axes, found in (
        (["seed=1,2", "devices=2"], ["0,1", "2,3"]),
        (["devices=1,4"], ["0,1,2,3"]),
        (["seed=1,2", "trainer=ddp"], ["0", "1", "2", "3"]),
    ):
        assert Sweep(checked(read(axes)), gpus, Path("none")).places == found
