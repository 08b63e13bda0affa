"""W&B's offline files of a run that goes on: every line once, over all of its sessions.

Each session writes a part, RUN/wandb/offline-run-TIME-ID/run-ID.wandb. What a killed session logged after its
last checkpoint is logged again by the next, and is cut off here. What W&B still held in memory is not in its
file, and is logged again from metrics.jsonl. A truncated record, on which `wandb sync` stops, is removed. A
part is a LevelDB log: 7 bytes of header, then blocks of 32 KiB with

    record = fragments of (checksum [4], length [2], kind [1], data); kind: 1 whole, 2 first, 3 middle, 4 last
"""

import os
import re
import struct
from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path
from typing import Any

from lmsd.cli.runs import store

BLOCK, HEAD = 32768, 7
WHOLE, LAST = 1, 4
_BEGIN = b":W&B"
_IMAGES = re.compile(rb"trainer/global_step\x82\x01.(\d+)", re.S)
"""An item of a line: the axis' name, then the tag and the length of its value, then the value as JSON."""


def mend(folder: Path, images: int, loggers: Sequence[Any]) -> None:
    """Have W&B's parts of a run end where its checkpoint of so many images does, without a hole.

    images: -1 where there is no checkpoint. loggers: Lightning's, W&B's among them. Parts that were synced
    already stay, and where a session was online nobody here knows what arrived.
    """
    parts = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    ours = [logger for logger in loggers if type(logger).__name__ == "WandbLogger"]
    if not ours or not parts or any((folder / "wandb").glob("run-*")):
        return
    kept: dict[int, bytes] = {}
    for path in parts:
        data = path.read_bytes()
        if not data.startswith(_BEGIN):  # empty, or of a kind that we cannot read: not ours to cut
            continue
        found = list(records(data, images))
        for _, at, record in found:
            kept[at] = kept.get(at, b"") + record
        if not path.with_name(f"{path.name}.synced").exists():
            os.truncate(path, found[-1][0] if found else HEAD)
    for line in store.scored(folder, '"images"'):
        at, names = line["images"], line.keys() - {"images", "time"}
        if at <= images and not all(name.encode() in kept.get(at, b"") for name in names):
            for logger in ours:
                logger.log_metrics({n: nan if line[n] is None else line[n] for n in sorted(names)}, step=at)


def records(data: bytes, images: int) -> Iterator[tuple[int, int, bytes]]:
    """The whole records of a part, up to the first line after so many images: (its end, images, content).

    Images of what is no line of metrics: -1.
    """
    place, record = HEAD, b""
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:  # the end of a block is filled up
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (WHOLE, LAST) and place <= len(data):
            found = _IMAGES.search(record)
            at = -1 if found is None else int(found[1])
            if at > images:
                return
            yield place, at, record
            record = b""
