"""Signals that ask a process to end, handled from the moment a command starts.

    SIGTERM, SIGUSR1   exit code 143: a scheduler's notice, after which it may queue the job again
    SIGINT (Ctrl-C)    exit code 130

While a run is being prepared, a single process ends at once. One of many ranks only notes the signal: before
the first batch all agree (`engine.signals`), and none is left waiting for another.

SLURM signals every process of a job, the loaders' workers included. The current batch still needs these, so a
worker stays for `GRACE` seconds after SIGTERM; once it is no longer needed, it ends by itself.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""The exit codes that shells use."""

GRACE = 60
"""Seconds that a worker outlives SIGTERM."""

noted = 0
"""The exit code that this process was asked to end with; 0 to continue."""


class BrokenOff(Exception):
    """An evaluation was interrupted because this process or another rank was asked to end."""


@contextmanager
def listening(heard: Callable[[int], None]) -> Iterator[None]:
    """Call `heard` with the code of each signal to this process; restores the previous handlers."""
    own = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            heard(CODES[signal.Signals(number)])
        elif number == signal.SIGTERM:
            _later(number, frame)

    if threading.current_thread() is not threading.main_thread():  # handlers can only be set there
        yield
        return
    before = {number: signal.signal(number, handler) for number in CODES}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def outlive(worker: int) -> None:
    """Run first in a loader's worker: ignore all signals but SIGTERM, which acts `GRACE` seconds later."""
    for number in CODES:
        signal.signal(number, _later if number == signal.SIGTERM else signal.SIG_IGN)


def _later(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(signal.alarm(0) or GRACE)


@contextmanager
def preparing() -> Iterator[None]:
    """Handle requests to end before training has begun.

    Once the process is ending, SIGTERM is ignored: srun sends it to all tasks once the first is gone.
    """
    global noted
    noted = 0
    alone = max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_NTASKS")) < 2

    def heard(code: int) -> None:
        global noted
        again, noted = noted == code, max(noted, code)
        if alone or (again and code == CODES[signal.SIGINT]):
            raise SystemExit(code)  # not KeyboardInterrupt: raised in an import, Python ends with no code

    try:
        with listening(heard):
            yield
    except SystemExit as stop:
        if stop.code in CODES.values() and not alone:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        noted = 0
