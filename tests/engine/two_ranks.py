"""Two processes of gloo on this machine, for what two ranks must do together."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

Rank = Callable[[int, int, Path], None]
"""(rank, port, folder) → None; a module's function, since processes start afresh."""


def as_torchrun(rank: int, port: int) -> None:
    """What torchrun tells a process, in its environment, and one thread for it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"})
    torch.set_num_threads(1)


def spawned(rank: Rank, folder: Path, *, seconds: int) -> None:
    """Run both ranks to their end; a failure of one, and one that hangs, fails here and leaves no process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = mp.spawn(rank, (port, folder), nprocs=2, join=False)
    deadline = time.monotonic() + seconds
    try:
        while not processes.join(timeout=1.0):
            assert time.monotonic() < deadline, "the two ranks did not finish"
    finally:
        for process in processes.processes:
            process.kill()
