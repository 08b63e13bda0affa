"""Many ranks: under SLURM itself, as its tasks on two nodes, and as two agents of torchrun, on loopback."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import slurm
from harness import free_port
from tiny_home import TINY, Home, spoken

from lmsd.cli.runs import store
from lmsd.data.shards import resolve

WORDS = [*TINY, "data.shards=data/shapes", "images=96", "evaluate.n=0", "devices=1", "num_nodes=2"]


def both(commands: list[list[str]], variables: list[dict[str, str]]) -> list[subprocess.Popen[str]]:
    """Start the two, wait, and check that both succeed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command, env=os.environ | more, **pipes)
        for command, more in zip(commands, variables, strict=True)
    ]
    said = [process.communicate(timeout=900) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return started


def one_run(folder: Path) -> None:
    """Trained once, by two ranks, to its end."""
    assert store.status(folder)["state"] == "done"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [32, 64, 96]


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())
def test_slurm_queues_a_job_again_that_it_asked_to_stop(home: Home, tmp_path: Path) -> None:
    """The script of docs/reliability.md, two tasks with loaders' workers; `scancel` signals every process.

    Told to stop by USR1 and by TERM, the run is saved and queued again, and goes on; Ctrl-C ends it.
    """
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    (run,) = re.findall(r"^    (srun .*?) lmsd train", text, re.MULTILINE)
    (again,) = re.findall(r"^    (.*scontrol requeue.*)$", text, re.MULTILINE)
    folder, job = Path("outputs/queued"), tmp_path / "job.sh"
    words = [*TINY, "data.shards=data/shapes", "images=200_000", "evaluate.n=0", "data.train.num_workers=1"]
    words += ["devices=2", f"run_dir={folder}", "resume=auto", "log_every=320", "checkpoint_every=100_000"]
    command = shlex.join([sys.executable, "-m", "lmsd.cli", "train", *words])
    job.write_text(f"#!/bin/bash\n{run} {command}\ncode=$?; echo $code >> codes; (exit $code)\n{again}\n")
    with slurm.cluster(tmp_path / "slurm"):
        options = ["--ntasks-per-node=2", "--requeue", "--open-mode=append", f"--output={tmp_path}/log"]
        number = slurm.told("sbatch", "--parsable", *options, str(job)).strip()
        for done, signal in enumerate(("USR1", "TERM", "INT")):
            before = images(folder)
            slurm.until(lambda before=before: images(folder) > before + 640, "progress", 120)
            slurm.told("scancel", f"--signal={signal}", number)
            slurm.until(lambda done=done: len(exits()) > done, "exit code", 60)
    assert exits() == ["143", "143", "130"], (tmp_path / "log").read_text()
    lines = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(320, lines[-1] + 1, 320))


def images(folder: Path) -> int:
    """How far a run's log is."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return int(json.loads(lines[-1])["images"]) if lines else 0


def exits() -> list[str]:
    """The exit codes of a job's starts."""
    return Path("codes").read_text().split() if Path("codes").is_file() else []


@pytest.mark.slow
def test_slurm_tasks_make_one_run(home: Home) -> None:
    """Two tasks on two nodes; the first one names the folder in a file, which the second one awaits."""
    assert resolve("data/shapes")
    before = set(Path("outputs").glob("*-launched-*"))
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2"}
    job |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_STEP_ID": "0"}
    tasks = [job | {"SLURM_PROCID": str(task), "SLURM_NODEID": str(task)} for task in (0, 1)]
    command = [sys.executable, "-m", "lmsd.cli", "train", *WORDS, "name=launched"]
    both([command, command], tasks)
    (folder,) = set(Path("outputs").glob("*-launched-*")) - before
    one_run(folder)


@pytest.mark.slow
def test_two_agents_of_torchrun_make_one_run(home: Home) -> None:
    port, folder = free_port(), Path("outputs/agents")
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    agent += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    rest = ["-m", "lmsd.cli", "train", *WORDS, f"run_dir={folder}"]
    both([[*agent, "--node-rank", str(node), *rest] for node in (0, 1)], [{}, {}])
    one_run(folder)


@pytest.mark.slow
def test_two_ranks_score_in_training_what_one_scores(home: Home) -> None:
    """The untrained weights, which are the same: every score, over two chunks, and the grid."""
    counts = ["image_size=16", "train_count=64", "val_count=300", "test_count=8", "near_duplicates=keep"]
    spoken(["data", "build", "shapes", "out=data/many", *counts])
    words = [*TINY, "data.shards=data/many", "images=32", "evaluate.at_start=true", "evaluate.n=300"]
    found = []
    for devices in (1, 2):
        folder = Path(f"outputs/scored-{devices}")
        command = ["train", *words, f"devices={devices}", f"run_dir={folder}"]
        subprocess.run([sys.executable, "-m", "lmsd.cli", *command], check=True, timeout=900)
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        scores = {name: value for name, value in first.items() if name.startswith("val/")}
        found.append((first["images"], scores, (folder / "samples/step_000000000.png").read_bytes()))
    assert found[0] == found[1]
    assert found[0][0] == 0
    assert any(name.startswith("val/kid[") for name in found[0][1])
