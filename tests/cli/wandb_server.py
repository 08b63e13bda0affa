"""A stand-in for W&B's server, for `wandb sync` to read its own files to: it keeps the lines of one run."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"
PROJECT = {"id": "p", "name": "lmsd", "entity": {"id": "e", "name": "me"}}


class Handler(BaseHTTPRequestHandler):
    """Knows of a run once it was announced; a line takes the place that the client gives it."""

    lines: list[str]
    known: bool

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "graphql" not in self.path and "file_stream" not in self.path:
            self.reply({})
            return
        found = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        if "graphql" in self.path:
            self.reply(self.answer(found.get("operationName"), found.get("variables") or {}))
            return
        sent = (found.get("files") or {}).get(HISTORY)
        if sent:
            assert sent["offset"] <= len(self.lines), "lines are missing between two parts"
            self.lines[sent["offset"] : sent["offset"] + len(sent["content"])] = sent["content"]
        self.reply({"limits": {}})

    def answer(self, asked: str | None, given: dict[str, Any]) -> dict[str, Any]:
        tail = self.lines[-1:]
        run = {"id": "r", "name": given.get("name"), "displayName": "x", "config": "{}", "tags": []}
        run |= {
            "historyLineCount": len(self.lines),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "project": PROJECT,
        }
        run |= {"historyTail": json.dumps(tail), "eventsTail": "[]", "summaryMetrics": (tail or ["{}"])[0]}
        run |= {"wandbConfig": json.dumps({"t": 1})}
        if asked == "RunResumeStatus":
            return {"data": {"model": {**PROJECT, "bucket": run} if type(self).known else None}}
        if asked == "UpsertBucket":
            type(self).known = True
            return {"data": {"upsertBucket": {"bucket": run, "inserted": True}}}
        if asked == "CreateArtifact":
            latest = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": latest}
            return {"data": {"createArtifact": {"artifact": artifact}}}
        return {"errors": [{"message": "not here"}]}

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing is said."""


@contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """Its address, and the lines that it has been sent so far."""
    lines: list[str] = []
    kind = type("Bound", (Handler,), {"lines": lines, "known": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", lines
        found.shutdown()
