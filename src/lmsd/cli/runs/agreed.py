"""What rank 0 decides before there is a process group, told to the other ranks."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.files import write_text
from lmsd.ranks import launched_rank

START = timedelta(minutes=30)
"""How long a rank waits for rank 0, which may index shards and train an extractor first."""


def agreed(what: str, decide: Callable[[], str]) -> str:
    """What rank 0 decides, and tells the others, who may come much earlier or later.

    By the environment (processes that Lightning starts), torchrun's store, or a file (SLURM's tasks).
    """
    variable = f"LMSD_{what.upper()}"
    agent, note = _agent_store(), _slurm_note(what)
    if launched_rank() == 0:
        word = os.environ[variable] = decide()
        if agent is not None:
            agent.set(f"lmsd_{what}", word)
        elif note is not None:
            write_text(note, word)
        return word
    if agent is not None:
        return str(agent.get(f"lmsd_{what}").decode())
    if note is not None:
        return _awaited(note)
    if variable not in os.environ:
        raise UserError(
            f"rank {launched_rank()} is not told what rank 0 does: start ranks by Lightning, torchrun or "
            f"srun, or give run_dir= and {variable}"
        )
    return os.environ[variable]


def _agent_store() -> Any:
    """The key-value store of torchrun's agent, or None when torchrun did not start this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=START)


def _slurm_note(what: str) -> Path | None:
    """The file in which the first of SLURM's tasks tells the others, or None outside of SLURM."""
    if int(os.environ.get("SLURM_NTASKS", "1")) < 2 or f"LMSD_{what.upper()}" in os.environ:
        return None
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    store.OUTPUTS.mkdir(exist_ok=True)
    return store.OUTPUTS / f".slurm-{'-'.join(os.environ.get(name, '0') for name in names)}-{what}"


def _awaited(note: Path) -> str:
    deadline = time.monotonic() + START.total_seconds()
    while not note.is_file():
        if time.monotonic() > deadline:
            raise UserError(f"the first task has not named the run's folder in {note} within {START}")
        time.sleep(0.1)
    return note.read_text()
