"""The process: it listens, says where, drains when asked to end, and ends.

SIGTERM, SIGINT    no new connections; what was accepted is answered; exit code 0. Again: at once
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmsd.errors import UserError
from lmsd.serving.api import Api
from lmsd.serving.door import LOCAL, Door
from lmsd.serving.options import Limits, Serving
from lmsd.serving.service import Service

LINGER = 0.5
"""Seconds that an idle connection stays open while the server drains: a request may be on its way."""
log = logging.getLogger("lmsd.serving")


def serve(service: Service) -> int:
    """Serve until a signal; the exit code. Raises UserError for an address that cannot be had."""
    keys = keys_in(service.options.keys)
    listening = bound(service.options)
    server = server_of(service, keys)
    print(f"{service.served.name}: {address(listening)}", flush=True)
    if not keys and not _loopback(service.options.host):
        print("note: whoever reaches this address may draw: serve.keys=FILE asks for a key", file=sys.stderr)
    asyncio.run(server.serve([listening]))
    return server.code


def server_of(service: Service, keys: Sequence[str] = ()) -> "Server":
    """What serves, given sockets that listen."""
    limits = service.limits
    own = service.options.host
    hosts = (*LOCAL, own.lower()) if _loopback(own) else None
    config = uvicorn.Config(
        Door(Api(service).app(), service, keys=keys, hosts=hosts),
        http=patient(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=int(limits.seconds) + 5,
    )
    server = Server(config, service)
    service.failed = server.fail
    return server


def address(listening: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def bound(own: Serving) -> socket.socket:
    """A socket at the address. Raises UserError where it cannot be had."""
    family = socket.AF_INET6 if ":" in own.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((own.host, own.port))
        found.listen(2048)
    except (OSError, UnicodeError) as error:
        found.close()
        way = "another serve.port=, or 0 for a free one" if own.port else "another serve.host="
        raise UserError(f"serve.host={own.host} serve.port={own.port}: {error}; take {way}") from error
    return found


def keys_in(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line. Raises UserError for a file without any, and for short ones."""
    if path is None:
        return ()
    try:
        found = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"serve.keys={path} cannot be read: give a text file, a key a line") from error
    if not found or min(map(len, found)) < 16 or not all(key.isascii() for key in found):
        raise UserError(f"serve.keys={path}: give a key of at least 16 letters and digits on each line")
    return found


class Server(uvicorn.Server):
    """uvicorn's, which drains by itself, with our signals and exit code."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service, self.code = service, 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End by SIGTERM and SIGINT, with exit code 0, at the second one at once."""
        loop, main = asyncio.get_running_loop(), threading.current_thread() is threading.main_thread()
        heard = (signal.SIGTERM, signal.SIGINT) if main else ()
        for number in heard:
            loop.add_signal_handler(number, self.end)
        yield
        for number in heard:
            loop.remove_signal_handler(number)

    def end(self) -> None:
        """Drain; the second time leave at once."""
        if self.should_exit:
            self.force_exit = True
            return
        log.info("ending: what was accepted is answered first")
        self.service.draining = self.should_exit = True

    def fail(self) -> None:
        """Drain, since a part of the service is gone."""
        self.code = 1
        self.service.draining = self.should_exit = True


class Patient(H11Protocol):
    """uvicorn's protocol, with an end to heads that never come and to answers that nobody reads.

    When the server drains, an idle connection is closed a moment later: a request may be on its way to it.
    """

    head_seconds, read_seconds = 10.0, 60.0
    _due: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head; from here on any byte that is not read is waited for."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # or a few would hold a closed connection for ever
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a head, or no longer."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
        else:
            self._stop()

    def _wait(self) -> None:
        if self._due is None:
            self._due = self.loop.call_later(self.head_seconds, self._late)

    def _stop(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        """Close, a moment later where it is idle."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LINGER, self._leave)

    def _leave(self) -> None:
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()


def patient(limits: Limits) -> type[H11Protocol]:
    """The protocol with these limits."""

    class Own(Patient):
        head_seconds, read_seconds = limits.header_seconds, limits.seconds

    return Own
