"""Thirty hostile requests: none ends the server, reads a file, or goes beyond its limit."""

import base64
import contextlib
import io
import json
import resource
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_server import Running, multipart, png, running

from lmsd.serving.options import Limits

LIMITS = Limits(seconds=2.0, header_seconds=0.4, megabytes=0.2, megapixels=0.1, connections=40)
SECRET = "the secret of the file"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.json").write_text(json.dumps({"prompt": SECRET}))
    with running("digits", votes=folder / "votes", limits=LIMITS, queue=32) as found:
        yield found


def sent(server: Running, data: bytes, *, seconds: float = 6.0) -> bytes:
    """What comes back for raw bytes, until the server closes or waits for more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line:
        found = b""
        try:
            line.sendall(data)
            while some := line.recv(65536):
                found += some
        except (ConnectionError, TimeoutError):
            pass
        return found


def http(
    head: str, body: bytes = b"", *, path: str = "/v1/images/generations", method: str = "POST"
) -> bytes:
    close = "" if "Upgrade" in head else "Connection: close\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{close}{head}\r\n".encode() + body


def posted(body: bytes, kind: str = "application/json", **other: str) -> bytes:
    return http(f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n", body, **other)


def form(fields: dict[str, str], files: dict[str, bytes]) -> bytes:
    body, kind = multipart(fields, files)
    return posted(body, kind, path="/v1/images/edits")


def bomb() -> bytes:
    """A small PNG that says that it has 900 million pixels."""
    chunk = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", chunk), (b"IDAT", zlib.compress(b"\0" * 100_000)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def large() -> bytes:
    """An honest picture of more pixels than are taken, in few bytes."""
    return png(np.zeros((1000, 1000), np.uint8))


def many_parts() -> bytes:
    return form({f"field{number}": "x" for number in range(1000)}, {"image": png(np.zeros((8, 8), np.uint8))})


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


SMALL = png(np.zeros((8, 8), np.uint8))
SENT: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "a negative n": (posted(b'{"prompt":"x","n":-5}'), (400,)),
    "a huge n": (posted(b'{"prompt":"x","n":1000000000}'), (400,)),
    "a huge number of steps": (posted(b'{"prompt":"x","steps":2000000000}'), (400,)),
    "a huge size": (posted(b'{"prompt":"x","size":"99999x99999"}'), (400,)),
    "a size with a path": (posted(b'{"prompt":"x","size":"../../etc/passwd"}'), (400,)),
    "NaN": (posted(b'{"prompt":"x","guidance":NaN}'), (400,)),
    "infinity": (posted(b'{"prompt":"x","guidance":1e999}'), (400,)),
    "an integer of a thousand digits": (posted(b'{"prompt":"x","seed":' + b"9" * 5000 + b"}"), (400,)),
    "a prompt of 20,000 characters": (posted(b'{"prompt":"' + b"a" * 20_000 + b'"}'), (400,)),
    "a prompt of 150,000 characters": (posted(b'{"prompt":"' + b"a" * 150_000 + b'"}'), (413,)),
    "ten thousand fields": (posted(json.dumps(dict.fromkeys(map(str, range(10_000)))).encode()), (413,)),
    "a prompt of controls and surrogates": (posted(b'{"prompt":"\\u0000\\ud800\\n\\u202e"}'), (200, 400)),
    "a prompt of a tokenizer's own words": (posted(b'{"prompt":"<|startoftext|><|endoftext|>"}'), (200,)),
    "a prompt that is a file": (posted(b'{"prompt":"@/etc/passwd"}'), (200,)),
    "a model that is a path": (posted(b'{"prompt":"x","model":"../../secret"}'), (404,)),
    "nested arrays": (posted(b"[" * 20_000), (400,)),
    "no JSON": (posted(b"\xff\xfe\x00"), (400,)),
    "a form for JSON": (posted(b"prompt=x", "application/x-www-form-urlencoded"), (400,)),
    "a body over the limit": (posted(b" " * 250_000), (413,)),
    "a body that says less than it is": (
        http("Content-Length: 999999999999\r\nContent-Type: application/json\r\n", b"{}"),
        (413,),
    ),
    "chunks over the limit": (
        http("Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n")
        + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 20
        + b"0\r\n\r\n",
        (413,),
    ),
    "a length and chunks": (
        http("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (400, 422),
    ),
    "a negative length": (http("Content-Length: -1\r\n", b""), (400,)),
    "headers over the limit": (http("X: " + "a" * 200_000 + "\r\n"), (400, 431)),
    "a header that splits": (http("X-A: a\nSet-Cookie: b\r\n", b""), (400, 411)),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, (400,)),
    "a path above the root": (http("", method="GET", path="/../../../etc/passwd"), (404,)),
    "a path above the root, encoded": (
        http("", method="GET", path="/v1/models/..%2f..%2f..%2fetc%2fpasswd"),
        (404,),
    ),
    "a pair that is a path": (
        posted(b'{"pair":"../../secret","choice":"a"}', path="/votes"),
        (400,),
    ),
    "a thousand parts": (many_parts(), (400,)),
    "files by the dozen": (form({}, {f"image{n}": SMALL for n in range(12)}), (400,)),
    "a picture that says 900 million pixels": (form({"prompt": "x"}, {"image": bomb()}), (400, 413)),
    "a picture over the limit": (form({"prompt": "x"}, {"image": large()}), (413,)),
    "a picture that names a file": (form({"prompt": "x"}, {"image": svg()}), (400,)),
    "a form without its end": (form({"prompt": "x"}, {"image": SMALL})[:-9], (503,)),
    "a form without a boundary": (
        posted(b"--x\r\n", "multipart/form-data", path="/v1/images/edits"),
        (400,),
    ),
    "a part of 100,000 headers": (
        posted(b"--x\r\n" + b"A: b\r\n" * 25_000, "multipart/form-data; boundary=x", path="/v1/images/edits"),
        (400,),
    ),
    "another verb": (http("", method="DELETE"), (405,)),
    "an upgrade": (
        http("Connection: Upgrade, close\r\nUpgrade: websocket\r\n", method="GET", path="/health"),
        (200,),
    ),
}


@pytest.mark.parametrize("name", SENT)
def test_it_is_answered_with_an_error_and_goes_on(server: Running, name: str) -> None:
    data, wanted = SENT[name]
    found = sent(server, data)
    assert status(found) in wanted, found[:300]
    assert b"root:" not in found
    assert SECRET.encode() not in found
    assert b"Traceback" not in found
    healthy(server)


def status(found: bytes) -> int:
    return int(found.split(b" ", 2)[1]) if found.startswith(b"HTTP/1.1 ") else 0


def healthy(server: Running) -> None:
    assert server.get("/health").status == 200
    assert server.draw(n=1, seed=1).status == 200


def test_there_are_thirty_of_them() -> None:
    assert len(SENT) >= 30


def test_clients_that_send_slowly_are_cut_off(server: Running) -> None:
    head = http("Content-Type: application/json\r\nContent-Length: 100\r\n", b"{")
    begun = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as half,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow,
    ):
        half.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nX: ")
        slow.sendall(head)
        assert silent.recv(100) == b""
        while time.monotonic() - begun < 3:  # a letter now and then does not help
            try:
                half.sendall(b"a")
            except ConnectionError:
                break
            time.sleep(0.05)
        assert time.monotonic() - begun < 2
        assert status(slow.recv(1000)) == 503
        assert 1.5 < time.monotonic() - begun < 4
    healthy(server)


def test_a_client_that_does_not_read_holds_no_place(server: Running) -> None:
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        line.connect(("127.0.0.1", server.port))
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(1000):  # pages of some kilobytes each, none of them read, beyond what sockets hold
            line.sendall(request)
        time.sleep(LIMITS.seconds + 0.5)
        healthy(server)
        due = time.monotonic() + 2
        while server.server.server_state.connections and time.monotonic() < due:
            time.sleep(0.01)
        assert not server.server.server_state.connections


def test_a_client_that_reads_no_more_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes are left over, of a connection that is closed meanwhile: idle ones are, after a while."""
    with running("digits", limits=Limits(seconds=0.5, header_seconds=0.3)) as server, socket.socket() as line:
        held = server.server.server_state.connections
        monkeypatch.setattr(server.server.config, "timeout_keep_alive", 0.1)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", server.port))
        for _ in range(2000):
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.001)
            if any(each.transport.get_write_buffer_size() for each in list(held)):  # type: ignore[union-attr]
                break
        else:
            pytest.fail("the sockets took all of it")
        due = time.monotonic() + 3
        while held and time.monotonic() < due:
            time.sleep(0.01)
        assert not held


def test_more_connections_than_allowed_are_turned_away(server: Running) -> None:
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(60)]
    try:
        assert server.get("/health").status == 503
    finally:
        for line in lines:
            line.close()
    time.sleep(0.2)
    healthy(server)


def test_bodies_are_not_kept_beyond_their_limit(server: Running) -> None:
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
            line.sendall(http("Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n"))
            with contextlib.suppress(ConnectionError):  # it hangs up on such
                for _ in range(30):
                    line.sendall(piece)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 30 << 10  # kilobytes: far less than the 300 MB that were sent
    healthy(server)


def test_pictures_that_are_drawn_hold_nothing_of_the_machine(server: Running) -> None:
    found = server.draw(seed=1).body
    picture = Image.open(io.BytesIO(base64.b64decode(found["data"][0]["b64_json"])))
    assert not picture.info
    assert str(Path.home()) not in json.dumps({**found, "data": []})
