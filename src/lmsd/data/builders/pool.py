"""Many processes for a build: tasks in, results out in the order of the tasks, so the same for any number.

At most two tasks a process are under way, so that what waits does not grow with the data. Processes start
afresh (nothing open is inherited), leave Ctrl-C to the one that started them, and end with it, even when it
is killed.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, TypeVar

from lmsd.errors import UserError

T = TypeVar("T")


class Pool:
    """A number of processes, started when they are first needed; with one, all is done here."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._started: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None:
            self._started.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """The results of a module's function for every task, in order.

        Raises what the function raised. UserError when a process was ended from outside.
        """
        if self._workers == 1:
            yield from (function(*task) for task in tasks)
            return
        if self._started is None:
            context = multiprocessing.get_context("spawn")
            self._started = ProcessPoolExecutor(self._workers, context, _begin)
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                waiting.append(self._started.submit(function, *task))
                if len(waiting) > 2 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise Ended(
                "a process of the build was ended from outside, as happens when memory runs out: the same "
                "command goes on where it was; take fewer workers="
            ) from error


class Ended(UserError):
    """A process was ended from outside; what was done so far is kept."""


def _begin() -> None:
    """In a process of a pool, first: ignore Ctrl-C, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
