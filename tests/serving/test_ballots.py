"""A vote that was answered is on the disk once, whatever comes: repeats, restarts, kill -9, a full disk."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_server import decoded, running

from lmsd.data.votes import JOURNAL, PAIRS, Pair, votes_in
from lmsd.errors import UserError
from lmsd.serving.ballots import Ballots


def pair(number: int) -> Pair:
    return Pair("a thing", "m", number, 4, 1.0, "text", b"a%d" % number, b"b")


def test_a_vote_counts_once(tmp_path: Path) -> None:
    ballots = Ballots(tmp_path, room=10)
    key = ballots.keep(pair(1))
    assert [ballots.vote(key, choice) for choice in ("a", "a", "b")] == ["new", "same", "other"]
    assert ballots.vote("0" * 24, "a") == "unknown"
    ballots.close()
    again = Ballots(tmp_path, room=10)
    assert again.vote(key, "a") == "same"
    assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == 1
    again.close()


def test_many_at_once_are_all_there_once(tmp_path: Path) -> None:
    ballots = Ballots(tmp_path, room=100)
    keys = [ballots.keep(pair(number)) for number in range(40)]
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(lambda key: ballots.vote(key, "b"), keys * 3))
    assert found.count("new") == 40
    assert found.count("same") == 80
    assert votes_in(tmp_path) == dict.fromkeys(keys, "b")
    ballots.close()


def test_pairs_without_a_vote_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    ballots = Ballots(tmp_path, room=3)
    voted = ballots.keep(pair(0))
    ballots.vote(voted, "a")
    keys = [ballots.keep(pair(number)) for number in range(1, 8)]
    assert {path.stem for path in (tmp_path / PAIRS).iterdir()} == {voted, *keys[-3:]}
    assert ballots.vote(keys[0], "a") == "unknown"
    ballots.close()


def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path) -> None:
    ballots = Ballots(tmp_path, room=10)
    keys = [ballots.keep(pair(number)) for number in range(2)]
    ballots.vote(keys[0], "a")
    ballots.close()
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"pair": "' + keys[1])
    again = Ballots(tmp_path, room=10)
    assert again.vote(keys[1], "b") == "new"
    again.close()
    assert votes_in(tmp_path) == {keys[0]: "a", keys[1]: "b"}


def test_a_disk_that_takes_a_part_of_a_line_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballots = Ballots(tmp_path, room=10)
    key, write = ballots.keep(pair(1)), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(OSError, match="a part of a vote"):
            ballots.vote(key, "a")
    assert (tmp_path / JOURNAL).read_bytes() == b""
    assert ballots.vote(key, "b") == "new"
    ballots.close()


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    ballots = Ballots(tmp_path, room=10)
    with pytest.raises(UserError, match="another server's"):
        Ballots(tmp_path, room=10)
    ballots.close()


VOTER = """
import sys
from pathlib import Path
from threading import Lock, Thread
from lmsd.data.votes import Pair
from lmsd.serving.ballots import Ballots
ballots, first, told = Ballots(Path(sys.argv[1]), room=10_000), int(sys.argv[2]), Lock()

def vote(start):
    for number in range(start, start + 10_000):
        key = ballots.keep(Pair("p", "m", number, 4, 1.0, "text", b"a", b"b"))
        choice = ["a", "b", "tie", "both_bad"][number % 4]
        ballots.vote(key, choice)
        with told:
            print(key, choice, flush=True)

for number in range(4):
    Thread(target=vote, args=(first + 10_000 * number,)).start()
"""


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_loses_no_vote_that_was_answered_and_doubles_none(tmp_path: Path, kills: int) -> None:
    draw, answered = random.Random(0), {}
    for round_ in range(kills):
        words = [sys.executable, "-c", VOTER, str(tmp_path), str(round_ * 100_000)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(draw.randrange(1, 60))]
        time.sleep(draw.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
        process.wait()
        answered |= dict(line.split() for line in lines if line.endswith("\n"))
    Ballots(tmp_path, room=10_000).close()
    found = votes_in(tmp_path)
    assert answered.items() <= found.items()
    assert len(found) <= len(answered) + 4 * kills  # written, and killed before the answer
    kept = [json.loads(line)["pair"] for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert len(set(kept)) == len(kept)


def test_pairs_and_votes_over_the_network(tmp_path: Path) -> None:
    with running("digits", votes=tmp_path) as server:
        found = [server.post("/pairs", {"prompt": "a red circle", "seed": seed}).body for seed in range(20)]
        pairs = {
            told["pair"]: Pair.of((tmp_path / PAIRS / f"{told['pair']}.json").read_text()) for told in found
        }
        drawn = server.draw(n=2, seed=3).pixels()
        assert (decoded(found[3]["a"]) == drawn[0]).all()
        assert (decoded(found[3]["b"]) == drawn[1]).all()
        assert {told["left"] for told in found} == {"a", "b"}
        assert all(told["left"] == pairs[told["pair"]].left for told in found)
        assert "model" not in found[0]
        for told, choice in zip(found, ["a", "b", "tie", "both_bad"] * 5, strict=True):
            assert server.post("/votes", {"pair": told["pair"], "choice": choice}).body["counted"]
        again = server.post("/votes", {"pair": found[0]["pair"], "choice": "a"})
        assert (again.status, again.body["counted"]) == (200, False)
        assert server.post("/votes", {"pair": found[0]["pair"], "choice": "b"}).status == 409
        assert server.post("/votes", {"pair": "0" * 24, "choice": "b"}).status == 404
        assert server.post("/votes", {"pair": found[0]["pair"], "choice": "left"}).status == 400
    assert len(votes_in(tmp_path)) == 20


def test_a_server_without_a_folder_keeps_no_votes() -> None:
    with running("digits") as server:
        assert server.post("/pairs", {"prompt": "a red circle"}).status == 404
        assert (
            "serve.votes=DIR"
            in server.post("/votes", {"pair": "0" * 24, "choice": "a"}).body["error"]["message"]
        )
