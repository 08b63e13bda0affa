"""Two machines: as SLURM starts them, and as two agents of torchrun do, here on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import free_port
from tiny_home import TINY, Home

from lmsd.cli import runs
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
    assert runs.status(folder)["state"] == "done"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [32, 64, 96]


@pytest.mark.slow
def test_slurm_tasks_make_one_run(home: Home) -> None:
    """Two tasks on two nodes; the first one names the folder in a file, which the second one awaits."""
    assert resolve("data/shapes")
    before = set(Path("outputs").glob("*-launched-*"))
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2"}
    job |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NTASKS_PER_NODE": "1"}
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
