"""`lmsd serve` of a run and of its exports, as a process; and votes on its pictures that train."""

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_home import ALONE, Home, spoken

from lmsd import cli
from lmsd.cli.verbs.serve import model_of, source_of, split
from lmsd.data.votes import Pair
from lmsd.errors import UserError
from lmsd.evaluation.pointer import Promoted, point

pytest.importorskip("fastapi", reason="pip install 'lmsd[serve]'")

PROMPTS = ["a red circle", "a blue star on the left", "a small green ring"]


@pytest.mark.parametrize(
    "kind", ["run", "safetensors", pytest.param("onnx", marks=pytest.mark.slow)], ids=str
)
def test_a_run_and_its_exports_draw_what_sampling_draws(home: Home, kind: str) -> None:
    from lmsd.sampling import load
    from lmsd.serving.served import Item, Served

    folder = "outputs/first" if kind == "run" else f"served/{kind}"
    if kind == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install 'lmsd[export]'")
    if kind != "run":
        spoken(["export", "run=outputs/first", f"format={kind}", f"to={folder}"])
    wanted = load("outputs/first").sample(PROMPTS, seed=3).astype(int)
    served = Served(*source_of(split([f"run={folder}"])[0]).open(), at_once=4)
    items = [Item(served.own, prompt, 3, place) for place, prompt in enumerate(PROMPTS)]
    assert np.abs(np.stack(served.draw(items)) - wanted).max() <= 1
    assert served.name.startswith(folder.rpartition("/")[2])


def test_settings_that_are_typed_become_the_models_own(home: Home) -> None:
    chosen = split(["run=outputs/first", "steps=2", "guidance=1.5", "ema=raw"])[0]
    settings = model_of(chosen).generation().settings
    assert (settings.steps, settings.guidance) == (2, 1.5)
    assert model_of(chosen).ema == "raw"


def test_nothing_is_promoted_yet(home: Home, refused) -> None:
    assert "lmsd promote RUN first=true" in refused("serve", "run=promoted")
    assert "leave checkpoint= out" in refused("serve", "run=promoted", "checkpoint=x")


def test_what_is_promoted_is_opened_and_a_change_is_seen_once(home: Home, monkeypatch) -> None:
    files = sorted(Path("outputs/first/checkpoints").glob("*.ckpt"))
    point(Promoted.of(Path("outputs/first"), files[0]), [])
    source = source_of(split(["run=promoted", "steps=2"])[0])
    model, name = source.open()
    assert (name, model.generation().settings.steps) == (f"first/{files[0].name}@ema", 2)
    assert not source.changed()
    point(Promoted.of(Path("outputs/first"), files[-1]), [])
    assert source.changed()
    assert not source.changed()
    assert source.open()[1] == f"first/{files[-1].name}@ema"
    pointer = Path("outputs/promoted.json")
    pointer.write_text(pointer.read_text().replace(files[-1].name, "step_000000001.ckpt"))
    assert source.changed()
    with pytest.raises(UserError, match="lmsd promote back"):
        source.open()
    pointer.unlink()
    assert not source.changed()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve.device=nonsense"], "serve.device=nonsense cannot be had"),
        (["serve.keys=nowhere"], "serve.keys=nowhere cannot be read"),
        (["serve.keys=short.txt"], "at least 16 letters"),
        (["serve.host=999.1.1.1"], "take another serve.host="),
        (["serve.votes=/proc/votes"], "cannot be written"),
        (["sampler=nonsense"], "sampler 'nonsense' not found"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_said(home: Home, refused, words: list[str], said: str) -> None:
    Path("short.txt").write_text("short\n")
    assert said in refused("serve", "run=outputs/first", "serve.port=0", *words)


def test_the_process_draws_and_ends_with_0_when_it_is_asked_to(home: Home) -> None:
    words = [
        sys.executable,
        "-m",
        "lmsd.cli",
        "serve",
        "run=outputs/first",
        "serve.port=0",
        "serve.votes=kept",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        body = json.dumps({"prompt": "a red circle", "n": 2, "seed": 1}).encode()
        request = urllib.request.Request(
            f"{url}/v1/images/generations", body, {"Content-Type": "application/json"}
        )
        due = time.monotonic() + 60
        while not ready(url):
            assert time.monotonic() < due
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert len(json.load(answer)["data"]) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()


def ready(url: str) -> bool:
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{url}/health", timeout=30):
        return True
    return False


def test_votes_on_its_pictures_train(home: Home) -> None:
    from lmsd.serving.ballots import Ballots
    from lmsd.serving.pictures import encoded
    from lmsd.serving.served import Item, Served

    served = Served(*source_of(split(["run=outputs/first"])[0]).open(), at_once=16)
    ballots = Ballots(Path("ballots"), room=100)
    for seed in range(48):
        prompt = f"a red circle {seed % 12}"
        a, b = (
            encoded(each) for each in served.draw([Item(served.own, prompt, seed, place) for place in (0, 1)])
        )
        pair = Pair(prompt, served.name, seed, 4, 1.0, "text", a, b)
        ballots.vote(ballots.keep(replace(pair)), "a" if seed % 2 else "b")
    ballots.close()
    said = spoken(["data", "votes", "ballots", "out=data/votes", "val=0.2"])
    assert "votes that prefer none: 0" in said
    words = [word for word in ALONE if not word.startswith(("images=", "evaluate.", "batch_size"))]
    words += [
        "images=64",
        "batch_size=16",
        "evaluate.n=0",
        "run_dir=outputs/voted",
        "init_from=outputs/first@ema",
    ]
    words += ["objective=dpo", "objective.reward=null", "data.shards=data/votes"]
    spoken(["train", *words, "data.images=[rejected]"])
    rows = [json.loads(line) for line in Path("outputs/voted/metrics.jsonl").read_text().splitlines()]
    assert any("generator/preference" in row for row in rows)
    without = [word.replace("outputs/voted", "outputs/other") for word in words]
    assert cli.run(["train", *without]) == 2
