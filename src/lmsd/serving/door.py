"""What every request passes before a route sees it: its host, its key, its size, its time.

A body is counted as it comes, so that none is ever held beyond the limit, whatever its head says; one clock
covers reading, waiting and writing, so that neither slow senders nor slow readers hold a place for long. What
a client asked to be drawn is given up once it is gone.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException

from lmsd.serving.service import Service

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/health")
"""What is answered without a key."""
ROUTES = (
    "/",
    "/health",
    "/metrics",
    "/pairs",
    "/votes",
    "/v1/models",
    "/v1/images/generations",
    "/v1/images/edits",
)
EDITS = "/v1/images/edits"
DRAWN = (EDITS, "/v1/images/generations", "/pairs")
"""What is given up when nobody waits for it any more; a vote is written down all the same."""
SMALL, LETTER = 16 << 10, 12
"""Bytes of a body without pictures, and those that each letter of a prompt adds: its longest form in JSON."""
GONE = 499
"""The status by which /metrics counts a request whose client left."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class Door:
    """An application in front of another.

    keys: those of which every request bears one, none: nobody needs any; hosts: names that it answers to,
    None: any. On an address of this machine alone other names are refused: a page elsewhere could have
    pointed its own name here.
    """

    def __init__(
        self,
        inner: App,
        service: Service,
        *,
        keys: Collection[str] = (),
        hosts: Collection[str] | None = None,
    ) -> None:
        self.inner, self.service = inner, service
        self.keys = [_digest(key) for key in keys]
        self.hosts = hosts
        self.most = int(service.limits.megabytes * 1e6)
        self.small = min(self.most, SMALL + LETTER * service.limits.prompt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        begun, path = time.monotonic(), str(scope["path"])
        most = self._most(path)
        status, left, whole = 0, most, asyncio.Event()

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, _large(most))
            if not message.get("more_body", False):
                whole.set()
            if message["type"] == "http.disconnect" and path in DRAWN:
                await asyncio.Event().wait()  # nobody is there to be told: `_unless` ends it
            return message

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining or left < 0:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        refused = self._refused(scope, path)
        try:
            async with asyncio.timeout(self.service.limits.seconds):
                if refused is not None:
                    await _answer(watched, *refused)
                elif path not in DRAWN:
                    await self.inner(scope, counted, watched)
                elif not await _unless(
                    _gone(whole, receive), self.inner(scope, counted, watched), lambda: not status
                ):
                    status = GONE
        except TimeoutError:
            if not status:
                await _answer(watched, 503, f"not done within {self.service.limits.seconds:g} s")
        finally:
            self.service.figures.answered(_route(path), status, time.monotonic() - begun)

    def _refused(self, scope: Scope, path: str) -> tuple[int, str] | None:
        """Status and sentence of what is not let in."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name not in self.hosts:
            return 421, "this server answers to localhost alone: serve.host= opens it to others"
        if scope["method"] == "POST" and headers.get(b"sec-fetch-site") == b"cross-site":
            return 403, "pages from elsewhere may not use this server"
        if self.keys and path not in OPEN and not self._known(headers.get(b"authorization", b"")):
            return 401, "give a key of this server: Authorization: Bearer KEY"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most(path):
            return 413, _large(self._most(path))
        return None

    def _most(self, path: str) -> int:
        """Bytes of a body: pictures alone need many, and what is read as JSON holds the loop meanwhile."""
        return self.most if path == EDITS else self.small

    def _known(self, given: bytes) -> bool:
        kind, _, key = given.decode("latin-1").partition(" ")
        found = _digest(key.strip())
        return kind.lower() == "bearer" and any(hmac.compare_digest(found, known) for known in self.keys)


def _route(path: str) -> str:
    return path if path in ROUTES else "other"


def _large(most: int) -> str:
    return f"the body is larger than {most:,} bytes"


async def _gone(whole: asyncio.Event, receive: Receive) -> None:
    """Wait until a client hangs up, once the whole of its body has come, or no more of it will."""
    await whole.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(gone: Awaitable[None], work: Awaitable[None], may_end: Callable[[], bool]) -> bool:
    """Do the work; False where it was ended, because somebody was gone while it might be."""
    left, done = asyncio.ensure_future(gone), asyncio.ensure_future(work)
    try:
        await asyncio.wait((left, done), return_when=asyncio.FIRST_COMPLETED)
        if not done.done() and may_end():
            return False
        await done
        return True
    finally:
        for task in (left, done):
            task.cancel()
        await asyncio.gather(left, done, return_exceptions=True)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()


async def _answer(send: Send, status: int, message: str) -> None:
    """An error of the door, in OpenAI's form; the connection ends, since the body may not have been read."""
    kind = {401: "authentication_error", 503: "server_error"}.get(status, "invalid_request_error")
    content = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
