"""OpenAI's routes and ours, over a real socket: what they answer, and what they refuse."""

import asyncio
import contextlib
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import tiny_models
from PIL import Image
from tiny_server import Running, png, running

from lmsd.data.transforms import scale
from lmsd.rng import Rng
from lmsd.serving.options import Limits
from lmsd.serving.served import Served
from lmsd.serving.source import Source
from lmsd.types import levels

KEY = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running("digits", wait_ms=1.0) as found:
        yield found


def test_images_of_a_request_are_those_of_sampling(server: Running) -> None:
    found = server.draw(n=3, seed=5)
    assert found.status == 200
    wanted = tiny_models.model("digits").sample(["a red circle"] * 3, seed=5)[..., 0]
    assert np.abs(np.stack(found.pixels()).astype(int) - wanted).max() <= 1
    assert found.headers["X-LMSD-Model"] == found.body["model"] == "digits"
    assert found.body["seed"] == 5
    assert abs(found.body["created"] - time.time()) < 60
    other = server.draw(n=1, steps=2, guidance=2.0, seed=5)
    wanted = tiny_models.model("digits").sample(["a red circle"], seed=5, steps=2, guidance=2.0)[..., 0]
    assert np.abs(np.stack(other.pixels()).astype(int) - wanted).max() <= 1


def test_a_name_in_any_alphabet_is_told(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    name = "запуск 1/läuft%.ckpt@ema\n"
    monkeypatch.setattr(server.service.served, "name", name)
    found = server.draw(seed=1)
    assert found.status == 200
    assert found.body["model"] == name == unquote(found.headers["X-LMSD-Model"])


def test_without_a_seed_each_request_has_its_own_and_tells_it(server: Running) -> None:
    first, second = server.draw(), server.draw()
    assert first.body["seed"] != second.body["seed"]
    again = server.draw(seed=first.body["seed"])
    assert np.array_equal(again.pixels()[0], first.pixels()[0])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_format_that_is_asked_for(server: Running, kind: str) -> None:
    import base64

    found = server.draw(seed=1, output_format=kind).body["data"][0]["b64_json"]
    assert Image.open(io.BytesIO(base64.b64decode(found))).format == kind.upper()


def test_a_prompt_that_is_cut_says_what_was_read(server: Running) -> None:
    found = server.draw("a red circle " * 20, seed=1)
    assert found.body["data"][0]["revised_prompt"] == "a red circle a red circle"


REFUSED = [
    ({"prompt": "x", "size": "1024x1024"}, "size", "this model draws 8x8"),
    ({"prompt": "x", "n": 11}, "n", "more than the 10"),
    ({"prompt": "x", "n": 0}, "n", "greater than or equal to 1"),
    ({"prompt": "x", "n": 1.5}, "n", "valid integer"),
    ({"prompt": "x", "steps": 101}, "steps", "more than 100"),
    ({"prompt": "x", "steps": -1}, "steps", "greater than"),
    ({"prompt": "x", "guidance": 1e9}, "guidance", "less than or equal to 1000"),
    ({"prompt": "x", "seed": -1}, "seed", "greater than"),
    ({"prompt": "x", "seed": 2**63}, "seed", "less than"),
    ({"prompt": "x" * 1001}, "prompt", "1,001 characters"),
    ({"prompt": 3}, "prompt", "valid string"),
    ({"prompt": "x", "response_format": "url"}, "response_format", "b64_json"),
    ({"prompt": "x", "quality": "hd"}, "quality", "'auto' or 'standard'"),
    ({"prompt": "x", "stream": True}, "stream", "False"),
    ({"prompt": "x", "cfg_scale": 3}, "cfg_scale", "no such field"),
    ({"prompt": "x", "model": "dall-e-3"}, "model", "there is no model 'dall-e-3': it is digits"),
]


@pytest.mark.parametrize(("body", "field", "said"), REFUSED, ids=[str(row[1:]) for row in REFUSED])
def test_what_is_wrong_is_named(server: Running, body: dict, field: str, said: str) -> None:
    found = server.post("/v1/images/generations", body)
    assert found.status == (404 if field == "model" else 400)
    assert found.body["error"]["param"] == field
    assert said in found.body["error"]["message"]
    assert found.body["error"]["type"] == "invalid_request_error"


def test_health_models_and_metrics(server: Running) -> None:
    assert server.get("/health").body == {"status": "ready", "model": "digits"}
    model = server.get("/v1/models").body["data"][0]
    assert (model["id"], model["size"], model["reads"]) == ("digits", "8x8", "text")
    assert server.get("/v1/models/digits").body == model
    assert server.get("/v1/models/other").status == 404
    before = figures(server)
    server.draw(n=3)
    server.draw(n=99)
    after = figures(server)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown['lmsd_requests_total{route="/v1/images/generations",status="200"}'] == 1
    assert grown['lmsd_requests_total{route="/v1/images/generations",status="400"}'] == 1
    assert grown["lmsd_batch_images_sum"] == 3
    assert after['lmsd_model_info{model="digits"}'] == 1


def test_times_are_told_exactly(server: Running) -> None:
    assert figures(server)["lmsd_start_time_seconds"] == server.service.figures.begun


def figures(server: Running) -> dict[str, float]:
    rows = [line.rpartition(" ") for line in server.get("/metrics").body.splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[a-z_]+(\{[^{}]*\})?", name) for name, _, _ in rows)
    return {name: float(value) for name, _, value in rows}


# -- edits --------------------------------------------------------------------------------------------------


def picture(size: int = 8) -> np.ndarray:
    return (np.arange(size * size).reshape(size, size) * 255 // (size * size - 1)).astype(np.uint8)


def test_an_edit_is_that_of_the_model_itself(server: Running) -> None:
    found = server.edit({"image": png(picture())}, prompt="a red circle", seed=3, strength=0.5, n=2)
    assert found.status == 200, found.body
    model = tiny_models.model("digits")
    batch = model.batch(["a red circle"] * 2, scale(np.stack([picture()[:, :, None]] * 2)))
    made = model.generation().edit(batch, Rng(3, batch.position), strength=0.5)
    assert np.abs(np.stack(found.pixels()).astype(int) - levels(made)[:, 0].numpy()).max() <= 1


@pytest.mark.parametrize("way", ["white", "alpha"])
def test_a_mask_says_what_may_change_by_white_or_by_no_alpha(server: Running, way: str) -> None:
    marked = np.zeros((8, 8), np.uint8)
    marked[2:5, 3:7] = 255
    mask = png(marked) if way == "white" else png(np.dstack([marked * 0] * 3 + [255 - marked]))
    found = server.edit({"image": png(picture()), "mask": mask}, prompt="a red circle", seed=3)
    assert found.status == 200, found.body
    kept = found.pixels()[0] == picture()
    assert kept[marked == 0].all()
    assert not kept[marked > 0].all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_turned_as_its_picture_is(server: Running, kind: str) -> None:
    marked = np.zeros((8, 8), np.uint8)
    marked[:2, 1:4] = 255
    mask = Image.fromarray(np.dstack([marked * 0] * 3 + [255 - marked]))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned back, clockwise
    mask.transpose(Image.Transpose.ROTATE_90).save(file, kind, exif=exif, lossless=True)
    found = server.edit({"image": png(picture()), "mask": file.getvalue()}, prompt="a red circle", seed=3)
    assert found.status == 200, found.body
    assert (found.pixels()[0] == picture())[marked == 0].all()
    assert not (found.pixels()[0] == picture())[marked > 0].all()


def test_a_mask_that_is_opaque_all_over_says_it_by_white(server: Running) -> None:
    marked, opaque = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    marked[2:5, 3:7] = 255
    masks = [png(marked), png(np.dstack([marked, marked, marked, opaque])), png(np.dstack([marked, opaque]))]
    found = [server.edit({"image": png(picture()), "mask": mask}, prompt="x", seed=3) for mask in masks]
    assert [each.status for each in found] == [200] * 3
    assert found[0].body["data"] == found[1].body["data"] == found[2].body["data"]


EDITS = [
    ({}, {}, "send one picture"),
    ({"image": b"no picture"}, {}, "not an image"),
    ({"image": b""}, {}, "not an image"),
    ({"image": png(picture()), "other": png(picture())}, {}, "by another name"),
    ({"image": png(picture()), "mask": png(picture(8)[:4])}, {}, "of the same shape"),
    ({"image": png(picture()), "mask": png(picture() * 0)}, {}, "none may change"),
    ({"image": png(picture())}, {"strength": 2}, "strength"),
    ({"image": png(picture())}, {"size": "9x9"}, "draws 8x8"),
]


@pytest.mark.parametrize(("files", "fields", "said"), EDITS, ids=[row[2] for row in EDITS])
def test_what_is_wrong_with_an_edit(server: Running, files: dict, fields: dict, said: str) -> None:
    found = server.edit(files, prompt="a red circle", **fields)
    assert found.status == 400
    assert said in found.body["error"]["message"]


def test_the_public_client_draws_and_edits_both_ways(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="pip install openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    made = client.images.generate(model="digits", prompt="a red circle", n=2, extra_body={"seed": 4})
    assert len(made.data) == 2
    assert made.data[0].b64_json == server.draw(n=2, seed=4).body["data"][0]["b64_json"]
    marked = np.zeros((8, 8), np.uint8)
    marked[:4] = 255
    masks = [png(marked), png(np.dstack([marked, marked, marked, 255 - marked]))]
    edited = [
        client.images.edit(
            model="digits", image=("a.png", png(picture())), mask=("m.png", mask), prompt="a red circle",
            extra_body={"seed": 4},
        ).data[0].b64_json
        for mask in masks
    ]  # fmt: skip
    assert edited[0] == edited[1]
    assert [model.id for model in client.models.list()] == ["digits"]
    with pytest.raises(openai.BadRequestError, match="this model draws 8x8"):
        client.images.generate(prompt="a red circle", size="1024x1024")


# -- the door -----------------------------------------------------------------------------------------------


def test_keys() -> None:
    with running("digits", keys=(KEY, KEY[::-1])) as server:
        assert server.draw().status == 401
        assert server.get("/metrics").status == server.get("/v1/models").status == 401
        wrong = server.post("/v1/images/generations", {"prompt": "x"}, Authorization=f"Bearer {KEY}x")
        assert wrong.status == 401
        assert wrong.body["error"]["type"] == "authentication_error"
        for key in (KEY, KEY[::-1]):
            right = server.post("/v1/images/generations", {"prompt": "x"}, Authorization=f"Bearer {key}")
            assert right.status == 200
        assert server.get("/health").status == server.get("/").status == 200


def test_other_hosts_and_pages_from_elsewhere(server: Running) -> None:
    assert server.get("/health", Host="evil.example").status == 421
    assert server.get("/health", Host="localhost:99").status == 200
    body = {"prompt": "x"}
    assert server.post("/v1/images/generations", body, Sec_Fetch_Site="cross-site").status == 403
    assert server.post("/v1/images/generations", body, Sec_Fetch_Site="same-origin").status == 200


def test_it_answers_to_the_address_that_it_prints() -> None:
    with running("digits", host="127.0.0.2") as server:
        assert server.url.startswith("http://127.0.0.2:")
        assert server.get("/health").status == 200
        assert server.get("/health", Host="127.0.0.3").status == 421


def test_a_body_without_pictures_is_small_whatever_prompts_may_be() -> None:
    with running("digits", limits=Limits(prompt=2000)) as server:
        assert server.draw("\U0001f534" * 2000).status == 200  # each of them 12 letters of JSON
        many = json.dumps(dict.fromkeys(map(str, range(5000)))).encode()
        found = server.raw("/v1/images/generations", many, Content_Type="application/json")
        assert found.status == 413
        assert "larger than 40,384 bytes" in found.body["error"]["message"]


# -- the queue ----------------------------------------------------------------------------------------------


class Slow:
    """A model that takes its time, without changing what it draws."""

    def __init__(self, served: Served) -> None:
        self.draw_, self.go, self.batches = served.draw, threading.Event(), list[int]()
        served.draw = self.draw  # type: ignore[method-assign]

    def draw(self, items):
        assert self.go.wait(30)
        self.batches.append(len(items))
        return self.draw_(items)


def test_a_full_queue_is_429_with_a_time_and_what_was_accepted_is_answered() -> None:
    with running("digits", queue=8, batch=4) as server, ThreadPoolExecutor(8) as clients:
        slow = Slow(server.service.served)
        first = clients.submit(server.draw, n=4, seed=1)
        until(lambda: server.service.batcher.waiting == 0 and figures(server)["lmsd_batch_images_sum"] >= 0)
        time.sleep(0.05)
        others = [clients.submit(server.draw, n=4, seed=seed) for seed in (2, 3)]
        until(lambda: server.service.batcher.waiting == 8)
        full = server.draw(n=1)
        assert full.status == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert full.body["error"]["type"] == "rate_limit_error"
        slow.go.set()
        assert [each.result().status for each in (first, *others)] == [200] * 3
        assert server.draw(n=1).status == 200


def test_requests_share_batches_by_their_way_and_each_gets_its_own_pictures() -> None:
    with running("digits", batch=8, wait_ms=20.0) as server, ThreadPoolExecutor(24) as clients:
        slow = Slow(server.service.served)
        wishes = [{"seed": seed, "steps": 2 + seed % 2} for seed in range(20)]
        found = [clients.submit(server.draw, n=1, **wish) for wish in wishes]
        until(lambda: server.service.batcher.waiting >= 12)
        slow.go.set()
        drawn = [each.result() for each in found]
        assert max(slow.batches) > 1
        assert sum(slow.batches) == 20
        slow.batches.clear()
        for wish, each in zip(wishes, drawn, strict=True):
            single = server.draw(n=1, **wish).pixels()[0].astype(int)
            assert np.abs(each.pixels()[0] - single).max() <= 1
        assert set(slow.batches) == {1}


def test_a_client_that_leaves_takes_its_images_with_it() -> None:
    with running("digits", batch=2, limits=Limits(seconds=0.3)) as server, ThreadPoolExecutor(4) as clients:
        slow = Slow(server.service.served)
        first = clients.submit(server.draw, n=2)
        time.sleep(0.1)
        late = clients.submit(server.draw, n=2)
        assert late.result().status == first.result().status == 503
        slow.go.set()
        until(lambda: server.service.batcher.waiting == 0)
        assert server.draw(n=2).status == 200
        assert slow.batches == [2, 2]  # the one that was being drawn, and the last


@contextlib.contextmanager
def begun(server: Running, path: str, **fields: object) -> Iterator[None]:
    """A client that hangs up with the block."""
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        yield


def test_a_client_that_hangs_up_takes_its_images_with_it() -> None:
    with running("digits", batch=1) as server:
        slow = Slow(server.service.served)
        with begun(server, "/v1/images/generations", prompt="x", n=10):
            until(lambda: server.service.batcher.waiting == 9)
        gone = 'lmsd_requests_total{route="/v1/images/generations",status="499"}'
        until(lambda: figures(server).get(gone) == 1)
        slow.go.set()
        assert server.draw(n=1).status == 200
        assert slow.batches == [1, 1]  # the one that was being drawn, and the last


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits", "/pairs"])
def test_a_client_that_hangs_up_before_its_body_has_come_is_no_failure(
    server: Running, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "multipart/form-data; boundary=x" if path.endswith("edits") else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 500\r\n\r\n"
    name = f'lmsd_requests_total{{route="{path}",status="499"}}'
    before = figures(server).get(name, 0)
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head.encode() + b"--x\r\n")
        time.sleep(0.02)
    until(lambda: figures(server).get(name, 0) == before + 1)
    assert "Traceback" not in caplog.text


def test_a_vote_counts_though_its_client_hangs_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running("digits", votes=tmp_path) as server:
        pair = server.post("/pairs", {"prompt": "x"}).body["pair"]
        came, go = threading.Event(), threading.Event()
        ballots = server.service.ballots
        assert ballots is not None
        vote = ballots.vote

        def late(key, choice):
            came.set()
            assert go.wait(30)
            return vote(key, choice)

        monkeypatch.setattr(ballots, "vote", late)
        with begun(server, "/votes", pair=pair, choice="a"):
            assert came.wait(30)
        time.sleep(0.05)
        go.set()
        until(lambda: figures(server)["lmsd_votes_total"] == 1)


def test_an_image_that_cannot_be_drawn_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    with running("digits", batch=4, wait_ms=20.0) as server, ThreadPoolExecutor(4) as clients:
        served, draw = server.service.served, server.service.served.draw

        def broken(items):
            if any(item.seed == 13 for item in items):
                raise ArithmeticError("planted")
            return draw(items)

        served.draw = broken  # type: ignore[method-assign]
        found = {seed: clients.submit(server.draw, n=1, seed=seed) for seed in (12, 13, 14)}
        assert {seed: each.result().status for seed, each in found.items()} == {12: 200, 13: 500, 14: 200}
        assert "planted" not in json.dumps(found[13].result().body)


def until(true) -> None:
    due = time.monotonic() + 20
    while not true():
        assert time.monotonic() < due
        time.sleep(0.002)


# -- draining and change-over -------------------------------------------------------------------------------


def test_a_server_that_ends_answers_what_it_accepted() -> None:
    with running("digits", batch=2) as server, ThreadPoolExecutor(8) as clients:
        slow = Slow(server.service.served)
        found = [clients.submit(server.draw, n=2, seed=seed) for seed in range(6)]
        until(lambda: server.service.batcher.waiting >= 10)
        server.server.end()
        time.sleep(0.2)
        slow.go.set()
        answers = [each.result() for each in found]
        assert [each.status for each in answers] == [200] * 6
        assert {each.headers["connection"] for each in answers} == {"close"}
        server.thread.join(20)
        assert not server.thread.is_alive()
        with pytest.raises(OSError, match="refused"):
            server.draw()


def promote(pointer: Path, name: str) -> None:
    """Point to a run, as `lmsd promote` does: all at once."""
    fresh = pointer.with_name("x")
    fresh.write_text(json.dumps({"run": name, "checkpoint": "x.ckpt", "sha256": "", "history": []}))
    fresh.replace(pointer)


def test_what_is_promoted_takes_over_between_requests_and_each_answer_names_its_model(tmp_path: Path) -> None:
    pointer = tmp_path / "promoted.json"
    models = {name: tiny_models.model("digits", seed=seed) for seed, name in enumerate(["old", "new", "odd"])}

    class Pointed(Source):
        def open(self):
            name = self.promoted(self.pointer).run
            return models[name], name

    promote(pointer, "old")
    source = Pointed(lambda run, checkpoint: models[run], "promoted", pointer)
    with running("digits", source=source, look_seconds=0.05) as server, ThreadPoolExecutor(4) as clients:
        stop = threading.Event()

        def load(seed: int) -> list:
            found = []
            while not stop.is_set():
                found.append(server.draw(seed=seed))
            return found

        loads = [clients.submit(load, seed) for seed in range(3)]
        time.sleep(0.3)
        promote(pointer, "new")
        until(lambda: server.get("/v1/models").body["data"][0]["id"] == "new")
        promote(pointer, "none")  # there is no such model: the one that serves goes on
        until(lambda: figures(server)["lmsd_model_change_failures_total"] >= 1)
        time.sleep(0.1)
        stop.set()
        answers = [(seed, each) for seed, found in enumerate(loads) for each in found.result()]
        assert {each.status for _, each in answers} == {200}
        wanted = {
            (name, seed): models[name].sample(["a red circle"], seed=seed)[0, :, :, 0].astype(int)
            for name in ("old", "new")
            for seed in range(3)
        }
        for seed, each in answers:
            name = each.headers["X-LMSD-Model"]
            assert np.abs(each.pixels()[0] - wanted[name, seed]).max() <= 1
        assert {each.headers["X-LMSD-Model"] for _, each in answers} == {"old", "new"}


def test_what_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    pointer, failures = tmp_path / "promoted.json", 2
    models = {name: tiny_models.model("digits", seed=seed) for seed, name in enumerate(["old", "new"])}

    class Pointed(Source):
        def open(self):
            nonlocal failures
            name = self.promoted(self.pointer).run
            if name == "new" and failures:
                failures -= 1
                raise RuntimeError("out of memory, for a moment")
            return models[name], name

    promote(pointer, "old")
    source = Pointed(lambda run, checkpoint: models[run], "promoted", pointer)
    with running("digits", source=source, look_seconds=0.05) as server:
        promote(pointer, "new")
        until(lambda: server.get("/health").body["model"] == "new")
        assert figures(server)["lmsd_model_change_failures_total"] == 2


def test_it_is_not_ready_before_it_is_warm() -> None:
    from tiny_server import service

    made = service("digits")
    from lmsd.serving.api import Api

    answer = asyncio.run(Api(made).health())
    assert answer.status_code == 503
    assert b"warming up" in answer.body
