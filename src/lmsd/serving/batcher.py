"""The queue before the net: bounded, grouped by what may share a batch, the oldest image first.

    an image waits until    its group fills a batch, or `wait` seconds have passed, or the net is busy anyway
    an image is refused     where the queue would be longer than `room`: the client comes again later

One thread draws; the event loop takes requests meanwhile.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lmsd.data.decode import Pixels
from lmsd.serving.served import Item, Served, Way

Drawn = Callable[[int, float], None]
"""(images, seconds) → None: told of every batch."""


class Full(Exception):
    """There is no room in the queue; seconds: after which there may be."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the queue is full: try again in {seconds} s")
        self.seconds = seconds


@dataclass
class _Waiting:
    item: Item
    answer: "asyncio.Future[Pixels]"
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Draws what is submitted.

    at_once: images in a batch; wait: seconds, at most; room: images that may wait; told: of every batch.
    """

    def __init__(
        self, *, at_once: int, wait: float, room: int, told: Drawn = lambda images, seconds: None
    ) -> None:
        self.at_once, self.wait, self.room, self.told = at_once, wait, room, told
        self.waiting = 0
        self._groups: dict[tuple[Served, Way], deque[_Waiting]] = {}
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "lmsd-draws")
        self._pace = 0.1  # seconds a batch, lately

    def submit(self, served: Served, items: Sequence[Item]) -> "list[asyncio.Future[Pixels]]":
        """Queue images, all or none; one future for each. Raises Full."""
        if self.waiting + len(items) > self.room:
            raise Full(max(1, math.ceil(self.waiting / self.at_once * self._pace)))
        loop = asyncio.get_running_loop()
        entries = [_Waiting(item, loop.create_future()) for item in items]
        for entry in entries:
            self._groups.setdefault((served, entry.item.way), deque()).append(entry)
        self.waiting += len(entries)
        self._arrived.set()
        return [entry.answer for entry in entries]

    async def run(self) -> None:
        """Draw for ever; ended by cancellation."""
        try:
            while True:
                await self._arrived.wait()
                key = min(self._groups, key=lambda key: self._groups[key][0].since)
                await self._filled(key)
                entries = self._taken(key)
                if entries:
                    await self._drawn(key[0], entries)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _filled(self, key: tuple[Served, Way]) -> None:
        """Wait for others to share the batch of a group, as long as the oldest of it may wait."""
        due = self._groups[key][0].since + self.wait
        while len(self._groups[key]) < self.at_once and (left := due - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        self._arrived.set()

    def _taken(self, key: tuple[Served, Way]) -> list[_Waiting]:
        """The next batch of a group, without those whose client is gone."""
        group = self._groups[key]
        entries: list[_Waiting] = []
        while group and len(entries) < self.at_once:
            entry = group.popleft()
            self.waiting -= 1
            if not entry.answer.done():
                entries.append(entry)
        if not group:
            del self._groups[key]
        if not self._groups:
            self._arrived.clear()
        return entries

    async def _drawn(self, served: Served, entries: list[_Waiting]) -> None:
        """Draw a batch; where that fails, each image by itself, so that one takes no other with it."""
        loop, begun = asyncio.get_running_loop(), time.monotonic()
        try:
            found = await loop.run_in_executor(self._worker, served.draw, [entry.item for entry in entries])
        except Exception as error:
            if len(entries) > 1:
                for entry in entries:
                    await self._drawn(served, [entry])
            elif not entries[0].answer.done():
                entries[0].answer.set_exception(error)
            return
        seconds = time.monotonic() - begun
        self._pace = 0.8 * self._pace + 0.2 * seconds
        self.told(len(entries), seconds)
        for entry, pixels in zip(entries, found, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(pixels)
