import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from lmsd.errors import UserError
from lmsd.rewards import HTTPService, base, judge
from lmsd.types import Batch


class Judge(BaseHTTPRequestHandler):
    """Scores are the mean level of each picture; the answers before `good` are errors."""

    def do_POST(self):
        self.server.asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.asked <= self.server.failures:
            self.send_error(503)
            return
        pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
        scores = [float(np.asarray(picture).mean()) for picture in pictures]
        scores[0] = None if body["captions"][0] == "none" else scores[0]
        answer = json.dumps(self.server.answer or {"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[:-1] if self.server.asked <= self.server.cut else answer)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    found = HTTPServer(("127.0.0.1", 0), Judge)
    found.asked, found.failures, found.answer, found.cut = 0, 0, None, 0
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


def ask(server, *, text=("a", "b"), **options):
    images = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 4, 4)
    service = HTTPService(f"http://127.0.0.1:{server.server_address[1]}/score", wait=0.01, **options)
    base._told.clear()
    return judge(service, images, Batch(images, torch.arange(2), text=list(text)))


def test_pictures_go_out_and_scores_come_back(server):
    assert ask(server).value.tolist() == [0.0, 255.0]


def test_it_tries_again(server):
    server.failures = 2
    assert ask(server, retries=2).valid.all()
    assert server.asked == 3


def test_it_tries_again_where_an_answer_breaks_off(server):
    server.cut = 2
    assert ask(server).value.tolist() == [0.0, 255.0]
    assert server.asked == 3


def test_what_never_answers_or_answers_nonsense_has_no_score(server):
    server.failures = 99
    with pytest.warns(UserWarning, match="HTTPError: HTTP Error 503"):
        assert not ask(server, retries=1).valid.any()
    assert server.asked == 2
    server.failures, server.answer = 0, {"points": [1, 2]}
    with pytest.warns(UserWarning, match="did not answer"):
        assert not ask(server, retries=0).valid.any()
    server.answer = {"scores": [1.0]}
    with pytest.warns(UserWarning, match=r"returned \[1\] where scores \[2\]"):
        assert not ask(server, retries=0).valid.any()


def test_null_is_a_score_that_failed(server):
    with pytest.warns(UserWarning, match="1 of 2 scores"):
        verdict = ask(server, text=("none", "b"))
    assert verdict.valid.tolist() == [False, True]


def test_another_address_is_refused():
    with pytest.raises(UserError, match="http"):
        HTTPService("file:///etc/passwd")
