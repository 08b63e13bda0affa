"""`lmsd watch`: what the page is told, that it tells nobody else, and how it looks while a run goes on."""

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import pytest
from tiny_home import Home

from lmsd.cli.runs import store, watched
from lmsd.cli.verbs.watch import name_of, opened

sys.path.append(str(Path(__file__).parents[2] / "export"))

from browser import CHROMIUM, browser


@contextmanager
def watching(*beside: Path) -> Iterator[int]:
    """A server on any port, ended with the block."""
    server = opened(0, list(beside))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_a_run_is_told_of_once_for_every_state(home: Home) -> None:
    with watching() as port:
        runs = {run["name"]: run for run in json.loads(get(port, "/runs")[1])["runs"]}
        assert runs["first"]["state"] == "done"
        assert runs["first"]["images"] == runs["first"]["total"] == 192
        code, content = get(port, "/run?name=first&stamp=")
        run = json.loads(content)
        assert code == 200
        assert any(
            chart["title"].startswith("right") or "right" in chart["title"].lower() for chart in run["charts"]
        )
        assert run["samples"][-1] == "step_000000192"
        assert "images" in run["log"]
        assert {row["name"] for row in run["scores"]["val"]} >= {"right"}
        assert run["left"] is None, "it is done"
        assert get(port, f"/run?name=first&stamp={run['stamp']}") == (204, b"")
        with Path("outputs/first/log.txt").open("a") as file:
            file.write("one line more\n")
        assert json.loads(get(port, f"/run?name=first&stamp={run['stamp']}")[1])["log"].endswith(
            "one line more\n"
        )
        picture = get(port, "/sample?name=first&sample=step_000000192")
        assert picture == (200, Path("outputs/first/samples/step_000000192.png").read_bytes())


@pytest.mark.parametrize(
    "path",
    [
        "/run?name=../first",
        "/run?name=nobody",
        "/sample?name=first&sample=../../config",
        "/sample?name=first&sample=step_1/../../x",
        "/sample?name=first&sample=",
        "/etc/passwd",
        "/run",
    ],
)
def test_nothing_else_is_read(home: Home, path: str) -> None:
    with watching() as port:
        assert get(port, path)[0] == 404


def test_pages_of_other_hosts_are_told_nothing(home: Home) -> None:
    """A name that somebody lets point to this machine."""
    with watching() as port:
        assert get(port, "/runs", Host=f"evil.example:{port}")[0] == 403
        assert get(port, "/runs", Host=f"localhost:{port}")[0] == 200


def test_a_run_outside_of_outputs_and_a_sweep_are_listed(home: Home) -> None:
    shutil.copytree("outputs/first", "elsewhere", dirs_exist_ok=True)
    sweep = Path("outputs/sweeps/tiny")
    shutil.copytree("outputs/first", sweep / "0", dirs_exist_ok=True)
    trial = {"number": 0, "values": {"seed": 1}, "state": "done", "value": 3.5}
    (sweep / "trials.json").write_text(json.dumps({"trials": [trial]}))
    with watching(Path("elsewhere")) as port:
        found = json.loads(get(port, "/runs")[1])
        assert {"elsewhere", "first", "tiny/0"} <= {run["name"] for run in found["runs"]}
        told = {"run": "tiny/0", "values": "seed=1", "state": "done", "score": 3.5}
        assert found["sweeps"] == [{"name": "tiny", "trials": [told]}]
        assert json.loads(get(port, f"/run?name={quote('tiny/0')}")[1])["images"] == 192
    shutil.rmtree(sweep)


def test_a_run_elsewhere_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("outputs", "moved"):
        (tmp_path / place / "first").mkdir(parents=True)
        (tmp_path / place / "first" / "config.yaml").write_text("name: first\n")
    moved = Path("moved/first")
    assert name_of(moved) == str(tmp_path / "moved" / "first")
    assert watched.folders([moved]) == {name_of(moved): moved, "first": Path("outputs/first")}


def test_the_time_left_is_that_of_the_last_lines() -> None:
    """100 images a second of late, after a slow beginning: 1,000 images take 10 s."""
    lines = [{"images": 10 * n, "time": 100.0 * n} for n in range(10)]
    lines += [{"images": 90 + 100 * n, "time": 900.0 + n} for n in range(1, 30)]
    assert watched.time_left(lines, 2_990 + 1_000) == pytest.approx(10.0)
    assert watched.time_left(lines[:1], 100) is None


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_lives_while_the_run_does(home: Home, tmp_path: Path, width: int) -> None:
    """It shows a run, and a line of its log and a state that come later; nothing is wider than the window."""
    live = Path("outputs/live")
    shutil.copytree("outputs/first", live, dirs_exist_ok=True)
    with watching() as port, browser(tmp_path / "profile") as page:
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        page.call("Page.navigate", url=f"http://127.0.0.1:{port}/#live")
        waited = (
            "new Promise(done => { const look = () => (%s) ? done(true) : setTimeout(look, 100); look(); })"
        )
        assert page.ask(waited % "window.drawn === 'live' && document.querySelector('.cards svg')")
        assert page.ask("document.querySelector('h1').textContent") == "live"
        assert page.ask("document.documentElement.scrollWidth") <= width
        assert page.ask("document.querySelector('.samples img').decode().then(() => true)")
        page.picture(tmp_path / f"watch{width}.png")
        with (live / "log.txt").open("a") as file:
            file.write("a line that comes later\n")
        store.set_status(live, state="failed")
        assert page.ask(waited % "document.querySelector('#log').textContent.endsWith('comes later\\n')")
        assert page.ask("document.querySelector('.facts b').textContent") == "failed"
        assert page.ask("document.querySelectorAll('table').length") >= 1
    shutil.rmtree(live)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nobody"], "no run 'nobody' in outputs/"),
        (["port=99999"], "port=99999"),
        (["prot=1"], "unknown option 'prot' of lmsd watch; did you mean port?"),
        (["--open"], "lmsd watch has no option --open"),
    ],
    ids=" ".join,
)
def test_mistakes(
    words: list[str], said: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused("watch", *words)


def test_a_port_that_is_taken_is_told_of(home: Home, refused: Callable[..., str]) -> None:
    with watching() as port:
        assert f"port={port} cannot be listened on" in refused("watch", f"port={port}")
