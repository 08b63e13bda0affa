"""Signals that ask a process to end, heard from the command's first moment on.

    SIGTERM, SIGUSR1   exit code 143: a scheduler's notice, after which it may queue the job again
    SIGINT (Ctrl-C)    exit code 130

While a run is prepared, a process that is alone ends at once. One of many ranks only notes it: before the
first batch all agree (`engine.signals`), and none is left waiting for another.

SLURM signals every process of a job, loaders' workers among them. The batch at hand needs theirs, so a worker
that is told to end by SIGTERM stays for `GRACE` seconds; one that is no longer needed ends by itself before.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
"""The exit codes, as shells have them."""

GRACE = 60
"""Seconds that a worker outlives SIGTERM."""

noted = 0
"""What this process was asked to end with, or 0 to go on."""


class BrokenOff(Exception):
    """An evaluation was broken off, since this process or another rank was asked to end."""


@contextmanager
def listening(heard: Callable[[int], None]) -> Iterator[None]:
    """Call `heard` with the code of each signal to this process; the handlers of before come back."""
    own = os.getpid()

    def handler(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            heard(CODES[signal.Signals(number)])
        elif number == signal.SIGTERM:
            _later(number, frame)

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return
    before = {number: signal.signal(number, handler) for number in CODES}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def outlive(worker: int) -> None:
    """What a loader's worker begins with: it hears no signal, but for SIGTERM, `GRACE` seconds later."""
    for number in CODES:
        signal.signal(number, _later if number == signal.SIGTERM else signal.SIG_IGN)


def _later(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(signal.alarm(0) or GRACE)


@contextmanager
def preparing() -> Iterator[None]:
    """Hear what asks the process to end before its training has begun.

    Where it ends as asked, SIGTERM changes nothing more: srun sends it to all tasks once the first is gone.
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
