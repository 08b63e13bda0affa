"""`lmsd watch`: a page on this machine that lives while runs do; read-only, on the loopback address alone."""

import json
import re
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit

from lmsd.cli.config import options
from lmsd.cli.runs import store, watched
from lmsd.errors import Number, UserError

ADDRESS = "127.0.0.1"
HELP = """lmsd watch [RUN] [port=8780]

A page in the browser, on this machine alone: all runs and sweeps in outputs/, and of one run its progress and
the time left, curves, samples over time (the same prompts and seeds), scores with their intervals, and the
log. It renews itself while a run trains, and reads only what the run writes anyway. port=0: any that is free.
From elsewhere: ssh -L 8780:localhost:8780 MACHINE. Ctrl-C ends it.
"""
GUARDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_SAMPLE = re.compile(r"step_\d+")


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """Options of `lmsd watch`; see HELP."""

    run: str | None = None
    port: Annotated[int, Number(0, 65535)] = 8780


def main(arguments: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    chosen = read(arguments)
    folder = None if chosen.run is None else store.find_folder(chosen.run)
    server = opened(chosen.port, [] if folder is None else [folder])
    place = f"http://{ADDRESS}:{server.server_address[1]}/"
    print(place if folder is None else f"{place}#{quote(name_of(folder))}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("lmsd: no longer watched", file=sys.stderr)
    finally:
        server.server_close()
    return 0


def read(words: list[str]) -> WatchOptions:
    """The options; the run may stand alone."""
    named = [word if "=" in word else f"run={word}" for word in words[:1]]
    return options.read(WatchOptions, [*named, *words[1:]], verb="watch")


def name_of(folder: Path) -> str:
    """What the page calls a run."""
    return next(
        name for name, each in watched.folders([folder]).items() if each.resolve() == folder.resolve()
    )


def opened(port: int, beside: list[Path]) -> "Server":
    """A server that listens. Raises UserError for a port that is taken."""
    try:
        return Server(port, beside)
    except OSError as error:
        raise UserError(
            f"port={port} cannot be listened on: {error.strerror}; take another, or port=0"
        ) from error


class Server(ThreadingHTTPServer):
    """Answers with pages of the runs; beside: runs that lie outside of outputs/."""

    daemon_threads = True

    def __init__(self, port: int, beside: list[Path]) -> None:
        from lmsd.evaluation.report import render

        super().__init__((ADDRESS, port), Answer)
        self.beside, self.page = beside, render("watch.html").encode()
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, bytes]] = {}

    def told(self, path: str, asked: dict[str, str]) -> tuple[int, str, bytes]:
        """Status, kind and content of an answer."""
        if path == "/":
            return 200, "text/html; charset=utf-8", self.page
        if path == "/runs":
            return 200, "application/json", json.dumps(watched.listed(self.beside)).encode()
        folder = watched.folders(self.beside).get(asked.get("name", ""))
        if folder is not None and path == "/run":
            return self._run(asked, folder)
        picture = asked.get("sample", "")
        if folder is not None and path == "/sample" and _SAMPLE.fullmatch(picture):
            file = folder / "samples" / f"{picture}.png"
            if file.is_file():
                return 200, "image/png", file.read_bytes()
        return 404, "text/plain; charset=utf-8", b"there is no such run or page\n"

    def _run(self, asked: dict[str, str], folder: Path) -> tuple[int, str, bytes]:
        """All of a run, made once for every state of its files; nothing where the page knows that state."""
        name, now = asked["name"], watched.stamp(folder)
        if asked.get("stamp") == now:
            return 204, "application/json", b""
        with self._lock:
            if self._kept.get(name, ("", b""))[0] != now:
                try:
                    found: dict[str, Any] = watched.whole(name, folder)
                except UserError as error:
                    found = {"name": name, "failed": str(error), "stamp": now}
                self._kept = {name: (now, json.dumps(found).encode())}
            return 200, "application/json", self._kept[name][1]


class Answer(BaseHTTPRequestHandler):
    """One request: GET alone, from this machine's own pages alone."""

    server: Server
    timeout = 10

    def do_GET(self) -> None:
        """Answer, unless the name that was asked for is not this machine's (a page elsewhere, rebound)."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (ADDRESS, "localhost"):
            self._send(403, "text/plain; charset=utf-8", b"ask for 127.0.0.1 or localhost\n")
            return
        parts = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._send(*self.server.told(parts.path, asked))

    def _send(self, code: int, kind: str, content: bytes) -> None:
        try:
            self.send_response(code)
            for name, value in {**GUARDS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page was closed meanwhile

    def version_string(self) -> str:
        """Nothing about this machine."""
        return "lmsd"

    def log_message(self, format: str, *arguments: Any) -> None:
        """No line for each request."""
