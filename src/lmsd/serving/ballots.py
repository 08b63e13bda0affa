"""Pairs and votes on the disk: a vote that was answered is there once, whatever kills the process.

a pair    its file is written, fsynced and renamed before the pictures are shown
a vote    one line, one write, one fsync, and then the answer; a second vote on a pair adds no line
"""

import fcntl
import json
import os
import time
from pathlib import Path
from threading import Lock
from typing import Literal, TypeAlias

from lmsd.data.votes import JOURNAL, PAIRS, Choice, Pair, unvoted, votes_in
from lmsd.errors import UserError
from lmsd.files import sync, write_text

Outcome: TypeAlias = Literal["new", "same", "other", "unknown"]
"""Of a vote: written; there already; there otherwise; on no pair that is kept."""


class Ballots:
    """The folder `serve.votes`; room: pairs that wait for a vote, of which the oldest are forgotten.

    Raises UserError for a folder that cannot be written, or that another process serves.
    """

    def __init__(self, folder: Path, *, room: int) -> None:
        self.folder, self.room = folder, room
        try:
            (folder / PAIRS).mkdir(parents=True, exist_ok=True)
            self._journal = os.open(folder / JOURNAL, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"serve.votes={folder} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._journal)
            raise UserError(f"serve.votes={folder} is another server's: give each its own folder") from error
        self._mend()
        self.votes = votes_in(folder)
        self._open = dict.fromkeys(key for key in unvoted(folder) if key not in self.votes)
        self._lock = Lock()

    def _mend(self) -> None:
        """Cut off a last line that was never finished, and so never answered."""
        content = (self.folder / JOURNAL).read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._journal, whole)
        os.fsync(self._journal)
        sync(self.folder)

    def keep(self, pair: Pair) -> str:
        """Write a pair down, to be voted on; its key."""
        key = pair.key
        with self._lock:
            write_text(self._path(key), pair.text())
            if key not in self.votes:
                self._open[key] = None
            while len(self._open) > self.room:
                oldest = next(iter(self._open))
                del self._open[oldest]
                self._path(oldest).unlink(missing_ok=True)
        return key

    def vote(self, key: str, choice: Choice) -> Outcome:
        """Write a vote down, once. Raises OSError where the disk refuses it, and then nothing is written."""
        with self._lock:
            if key in self.votes:
                return "same" if self.votes[key] == choice else "other"
            if key not in self._open:
                return "unknown"
            self._append({"pair": key, "choice": choice, "time": round(time.time(), 3)})
            self.votes[key] = choice
            del self._open[key]
        return "new"

    def _append(self, told: dict[str, object]) -> None:
        line = (json.dumps(told) + "\n").encode()
        before = os.fstat(self._journal).st_size
        try:
            if os.write(self._journal, line) < len(line):
                raise OSError("the disk took a part of a vote")
            os.fsync(self._journal)
        except OSError:
            os.ftruncate(self._journal, before)
            raise

    def _path(self, key: str) -> Path:
        return self.folder / PAIRS / f"{key}.json"

    def close(self) -> None:
        """Leave the folder to others."""
        os.close(self._journal)
