"""The options `serve.NAME=` and `limit.NAME=` of `lmsd serve`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lmsd.errors import Count, Number


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where and how it serves.

    host, port: the address, by default of this machine alone; port 0 takes a free one. keys: a file with a
    key on each line, one of which every request must bear; votes: a folder for pairs and votes; batch: images
    drawn at once; wait_ms: how long an image waits for others to share its batch; exact: every batch has that
    size, so that images do not depend on what they share it with, bit for bit; queue: images that may wait;
    device: cpu, cuda, cuda:1; look_seconds: between two looks at what is promoted.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Number(0, 65535)] = 8000
    keys: Path | None = None
    votes: Path | None = None
    batch: Annotated[int, Number(1, 1024)] = 16
    wait_ms: Annotated[float, Number(0, 20)] = 5.0
    exact: bool = False
    queue: Count = 256
    device: str = "cpu"
    look_seconds: Annotated[float, Number(0.05, 3600)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for.

    prompt: characters; n: images; steps: of sampling; seconds: until it is answered, reading and waiting
    included; header_seconds: until its head has come; megabytes: of its body; megapixels: of a picture to
    edit; connections: at once; pairs: that wait for a vote, of which the oldest are forgotten.
    """

    prompt: Count = 1_000
    n: Count = 10
    steps: Count = 100
    seconds: Annotated[float, Number(0.1, 3600)] = 60.0
    header_seconds: Annotated[float, Number(0.1, 600)] = 10.0
    megabytes: Annotated[float, Number(0.001, 1024)] = 16.0
    megapixels: Annotated[float, Number(0.001, 64)] = 16.0
    connections: Count = 512
    pairs: Count = 10_000


DOTTED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "serve": (("serve.", f"{__name__}.{Serving.__name__}"), ("limit.", f"{__name__}.{Limits.__name__}"))
}
"""Verbs with options that have a dot: what these begin with, and their record."""
