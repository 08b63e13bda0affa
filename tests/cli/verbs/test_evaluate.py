"""An evaluation's process group, which ends with it before the interpreter does, and its records."""

import os
import shlex
import socket
import subprocess
import sys

from lmsd.cli.config import options
from lmsd.cli.config.settings import Combinations
from lmsd.cli.verbs.evaluate import EvaluateOptions, asked

SCRIPT = """
import os
from lmsd.cli.verbs.evaluate import ranks
from lmsd.ranks import union

def threads():
    return [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]

with ranks():
    assert union({int(os.environ["RANK"])}) == {0, 1}
    assert any("gloo" in name for name in threads())
    import torch.distributed._shard.sharded_tensor  # what takes the group as a default argument
assert not any("gloo" in name for name in threads()), threads()
"""


def test_no_thread_of_the_process_group_outlives_an_evaluation() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env={**shared, "RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said


def test_a_record_says_which_adapters_it_was_made_with() -> None:
    adapters = ("b.safetensors", "c*0.5")
    words = asked(EvaluateOptions(sampling=Combinations(run="a", adapters=adapters)))
    assert words is not None
    again = options.read(EvaluateOptions, ["run=a", *shlex.split(words)], verb="evaluate")
    assert again.sampling.adapters == adapters
    assert asked(EvaluateOptions(sampling=Combinations(run="a"))) is None
