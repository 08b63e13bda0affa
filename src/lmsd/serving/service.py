"""What the routes share: the model of now, the queue, figures, ballots; and how another model takes over."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence

from lmsd.data.decode import Pixels
from lmsd.errors import UserError
from lmsd.serving.asked import Refused
from lmsd.serving.ballots import Ballots
from lmsd.serving.batcher import Batcher, Full
from lmsd.serving.figures import Figures
from lmsd.serving.options import Limits, Serving
from lmsd.serving.served import Item, Served, Way
from lmsd.serving.source import Opened, Source

log = logging.getLogger("lmsd.serving")
PAUSE = 300.0
"""Seconds between two attempts to open what is promoted and cannot be opened, at most."""


class Service:
    """One process's state.

    opened: the model that it begins with; source: where another may come from; ballots: None: no votes.
    """

    def __init__(
        self,
        opened: Opened,
        source: Source,
        *,
        options: Serving,
        limits: Limits,
        ballots: Ballots | None = None,
    ) -> None:
        self.options, self.limits, self.source, self.ballots = options, limits, source, ballots
        self.served = self.prepared(opened)
        self.figures = Figures()
        self.batcher = Batcher(
            at_once=options.batch, wait=options.wait_ms / 1000, room=options.queue, told=self.figures.drawn
        )
        self.ready = self.draining = False
        self.failed: Callable[[], None] = lambda: None

    def prepared(self, opened: Opened) -> Served:
        """A model, ready to draw on the device."""
        own = self.options
        return Served(*opened, at_once=own.batch, exact=own.exact, device=own.device)

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[None]:
        """Draw, warm up and look for other models while the block lasts."""
        tasks = [asyncio.create_task(work()) for work in (self.batcher.run, self._warm, self._watch)]
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """A part that dies takes the process with it, so that whoever watches it starts another."""
        if not task.cancelled() and task.exception() is not None:
            log.error("a part of the server failed", exc_info=task.exception())
            self.failed()

    async def _warm(self) -> None:
        await asyncio.to_thread(self.served.warm)
        self.ready = True
        log.info("ready: %s, %s, batches of %d", self.served.name, self.served.size, self.options.batch)

    async def _watch(self) -> None:
        """Change over to what is promoted; the images that are queued are drawn by the model they came to.

        What cannot be opened is tried again, after pauses that double.
        """
        pause, due = self.options.look_seconds, math.inf
        while self.source.pointer is not None:
            await asyncio.sleep(self.options.look_seconds)
            if await asyncio.to_thread(self.source.changed):
                pause = self.options.look_seconds
            elif time.monotonic() < due:
                continue
            try:
                served = await asyncio.to_thread(self._opened)
            except Exception as error:
                self.figures.events["model_change_failures"] += 1
                told = error if type(error) is UserError else f"{type(error).__name__}: {error}"
                log.error("what is promoted cannot be opened, %s goes on: %s", self.served.name, told)
                due, pause = time.monotonic() + pause, min(2 * pause, max(PAUSE, pause))
                continue
            due = math.inf
            if served.name != self.served.name:
                log.info("%s takes over from %s", served.name, self.served.name)
                self.figures.events["model_changes"] += 1
            self.served = served

    def _opened(self) -> Served:
        served = self.prepared(self.source.open())
        served.warm()
        return served

    async def drawn(self, served: Served, way: Way, asked: "Sequence[Item]") -> list[Pixels]:
        """The pictures of some items, all or none. Raises Refused where the queue is full."""
        if not self.ready:
            raise Refused("the model is being warmed up: try again", status=503, code="not_ready")
        try:
            answers = self.batcher.submit(served, asked)
        except Full:
            self.figures.events["refused_full"] += 1
            raise
        try:
            return list(await asyncio.gather(*answers))
        finally:
            for answer in answers:
                answer.cancel()

    def now(self) -> dict[str, float]:
        """Gauges."""
        return {
            "ready": float(self.ready and not self.draining),
            "images_waiting": self.batcher.waiting,
            "queue_room": self.options.queue,
            "start_time_seconds": self.figures.begun,
        }
