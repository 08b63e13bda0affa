"""A server in this process, on a free port of this machine alone, and a client of the standard library."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_models
from PIL import Image

from lmsd.sampling.model import Model
from lmsd.serving.ballots import Ballots
from lmsd.serving.options import Limits, Serving
from lmsd.serving.program import Server, address, bound, server_of
from lmsd.serving.service import Service
from lmsd.serving.source import Source


@dataclass
class Reply:
    """An answer: status, headers and the body as JSON, or as text."""

    status: int
    headers: Any
    body: Any

    def pixels(self) -> list[np.ndarray]:
        return [decoded(each["b64_json"]) for each in self.body["data"]]


@dataclass
class Running:
    """A server that runs, and how it is asked."""

    url: str
    service: Service
    server: Server
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, **headers: str) -> Reply:
        return self._asked(urllib.request.Request(self.url + path, headers=headers))

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        data = json.dumps(body).encode()
        return self.raw(path, data, **{"Content-Type": "application/json", **headers})

    def raw(self, path: str, data: bytes, **headers: str) -> Reply:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._asked(urllib.request.Request(self.url + path, data=data, headers=headers))

    def draw(self, prompt: str = "a red circle", **fields: Any) -> Reply:
        return self.post("/v1/images/generations", {"prompt": prompt, **fields})

    def edit(self, files: dict[str, bytes], **fields: Any) -> Reply:
        data, kind = multipart({name: str(value) for name, value in fields.items()}, files)
        return self.raw("/v1/images/edits", data, Content_Type=kind)

    def _asked(self, request: urllib.request.Request) -> Reply:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return _reply(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return _reply(error.code, error.headers, error.read())


def _reply(status: int, headers: Any, body: bytes) -> Reply:
    json_ = headers.get("content-type", "").startswith("application/json")
    return Reply(status, headers, json.loads(body) if json_ else body.decode())


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, format="PNG")
    return file.getvalue()


def multipart(fields: dict[str, str], files: dict[str, bytes]) -> tuple[bytes, str]:
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
        for k, v in fields.items()
    ]
    for name, content in files.items():
        head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n'
        parts.append(f"{head}Content-Type: image/png\r\n\r\n".encode() + content + b"\r\n")
    return b"".join([*parts, b"--x--\r\n"]), "multipart/form-data; boundary=x"


def service(
    model: Model | str = "digits",
    *,
    votes: Path | None = None,
    source: Source | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> Service:
    """A service of a model with random weights, by its name, or of one that is given."""
    made = tiny_models.model(model) if isinstance(model, str) else model
    source = source or Source(lambda run, checkpoint: made, "tiny")
    chosen = Serving(port=0, votes=votes, **options)
    limits = limits or Limits()
    ballots = None if votes is None else Ballots(votes, room=limits.pairs)
    opened = source.open() if source.pointer else (made, made.name)
    return Service(opened, source, options=chosen, limits=limits, ballots=ballots)


@contextlib.contextmanager
def running(
    model: Model | str = "digits", *, keys: tuple[str, ...] = (), **options: Any
) -> Iterator[Running]:
    """A server that is ready; it drains with the block."""
    made = service(model, **options)
    server, listening = server_of(made, keys), bound(made.options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
    thread.start()
    found = Running(address(listening), made, server, thread)
    try:
        due = time.monotonic() + 30
        while not made.ready:
            assert time.monotonic() < due, "the server does not become ready"
            time.sleep(0.005)
        yield found
    finally:
        server.end()
        thread.join(30)
        if made.ballots is not None:
            made.ballots.close()
        assert not thread.is_alive()
