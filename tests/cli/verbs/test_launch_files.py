"""`lmsd launch`: what the files say, that SLURM runs one to its end through a stop, and mistakes."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import slurm
import yaml
from test_launch import images
from tiny_home import TINY, Home, spoken

from lmsd.cli.runs import store

WORDS = ["experiment=digits", "data.shards=my shards", "devices=2"]


def test_a_batch_script_asks_for_what_the_run_needs(tmp_path: Path) -> None:
    text = spoken(["launch", "slurm", *WORDS, "num_nodes=4", "launch.time=1-00:00:00", "launch.name=mine"])
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if "#SB" in line
    )
    assert asked["nodes"] == "4"
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "2"
    assert (asked["time"], asked["signal"], asked["job-name"]) == ("1-00:00:00", "USR1@120", "mine")
    assert "requeue" in asked
    (command,) = [line for line in text.splitlines() if line.startswith("srun")]
    words = shlex.split(command)
    assert words[2:] == ["lmsd", "train", *WORDS, "num_nodes=4", "run_dir=outputs/mine", "resume=auto"]
    assert "gpus" not in spoken(["launch", "slurm", *WORDS, "accelerator=cpu"])


@pytest.mark.parametrize(("code", "again"), [(0, 0), (1, 0), (2, 0), (75, 1), (130, 0), (143, 1)])
@pytest.mark.parametrize("before", [0, 2])
def test_the_script_queues_itself_again_by_the_exit_code(
    tmp_path: Path, code: int, again: int, before: int
) -> None:
    """Twice at most; srun and scontrol are programs that note how they are called."""
    script = tmp_path / "job.sh"
    script.write_text(spoken(["launch", "slurm", *WORDS, "launch.restarts=2"]))
    for name, does in (("srun", f"exit {code}"), ("scontrol", f'echo "$@" >> {tmp_path}/queued')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(before),
    }
    assert subprocess.run(["bash", script], env=job, check=False).returncode == code
    queued = (tmp_path / "queued").read_text() if (tmp_path / "queued").exists() else ""
    assert queued == "requeue 7\n" * (again if before < 2 else 0)


def test_a_kubernetes_job_and_a_skypilot_job() -> None:
    job = yaml.safe_load(spoken(["launch", "k8s", *WORDS, "launch.restarts=5"]))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["kind"], job["spec"]["backoffLimit"], pod["restartPolicy"]) == ("Job", 5, "Never")
    assert container["command"] == ["lmsd", "train", *WORDS, "run_dir=outputs/lmsd", "resume=auto"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    codes = [
        rule["onExitCodes"]["values"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert codes == [[1, 2, 130]]
    task = yaml.safe_load(spoken(["launch", "sky", *WORDS, "run_dir=outputs/a", "launch.gpu=H100"]))
    assert task["resources"]["accelerators"] == "H100:2"
    assert task["resources"]["job_recovery"] == {"recover_on_exit_codes": [75, 143]}
    words = shlex.split(task["run"])
    assert words[:3] == ["cd", "/work", "&&"]
    assert words[3:] == ["exec", "lmsd", "train", *WORDS, "run_dir=outputs/a", "resume=auto"]


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())
def test_slurm_runs_the_script_stopped_queued_again_and_done(home: Home, tmp_path: Path) -> None:
    """Two tasks; a first TERM comes in the middle, then the run goes on to its end in the same folder."""
    program = tmp_path / "lmsd"
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m lmsd.cli "$@"\n')
    program.chmod(0o755)
    words = [*TINY, "data.shards=data/shapes", "images=12_800", "evaluate.n=0", "devices=2", "log_every=320"]
    script = tmp_path / "job.sh"
    script.write_text(
        spoken(["launch", "slurm", *words, "checkpoint_every=100_000", "launch.name=queued-again"])
    )
    folder = Path("outputs/queued-again")
    shutil.rmtree(folder, ignore_errors=True)
    paths = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with slurm.cluster(tmp_path / "slurm"):
        done = subprocess.run(
            ["sbatch", "--parsable", f"--output={tmp_path}/log", str(script)],
            env={**paths, "SLURM_CONF": os.environ["SLURM_CONF"]}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        slurm.until(lambda: images(folder) > 640, "progress", 240)
        slurm.told("scancel", "--signal=TERM", done.stdout.strip())
        slurm.until(lambda: store.status(folder).get("state") == "interrupted", "a stop", 60)
        assert images(folder) < 12_800
        slurm.until(lambda: store.status(folder).get("state") == "done", "an end", 240)
    assert len(store.status(folder)["sessions"]) == 2
    assert images(folder) == 12_800


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pbs"], "lmsd launch pbs: give one of slurm, k8s, sky first"),
        (["slrum"], "did you mean slurm?"),
        (["slurm", "lr=1"], "unknown option 'lr'"),
        (
            ["slurm", "launch.tim=1"],
            "of lmsd launch slurm; did you mean launch.time?",
        ),
        (["k8s", "launch.time=1"], "unknown option 'launch.time' of lmsd launch k8s"),
        (["slurm", "launch.time=soon"], "launch.time=soon"),
        (["slurm", "launch.name=A B"], "launch.name"),
        (["slurm", "resume=last"], "resume=last: a launched run goes on by itself"),
        (["slurm", "devices=auto"], "a job asks for a number of devices"),
        (["sky", "num_nodes=2"], "num_nodes=2: lmsd launch sky is for one machine; take slurm for several"),
        (["--slurm"], "lmsd launch has no option --slurm"),
    ],
    ids=" ".join,
)
def test_mistakes(words: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused("launch", *words)
