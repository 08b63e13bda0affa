"""W&B without a key: nothing is asked, all lies in the run's folder, a resume goes on under its id."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_home import TINY, Home

from lmsd.cli.config.compose import load
from lmsd.cli.runs import store
from lmsd.cli.verbs.train import loggers

BLOCK, HEAD = 32768, 7


def records(path: Path) -> list[Any]:
    """The records of an offline file: LevelDB's log format below a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole, found = path.read_bytes(), 7, b"", []
    while place + HEAD <= len(data):
        if BLOCK - place % BLOCK < HEAD:  # the end of a block is filled up
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + HEAD : place + HEAD + length]
        place += HEAD + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, line by line."""
    rows = [record.history.item for record in records(path) if record.HasField("history")]
    return [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items} for items in rows]


def test_it_starts_where_there_is_a_key_or_when_asked(tmp_path: Path, monkeypatch) -> None:
    """logger=auto: with a key online, under the run's own id; without one not at all; asked for: offline."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "unset by this test")  # so that it is put back afterwards
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "status.json").write_text(json.dumps({"id": "12ab34cd"}))
    assert loggers(load("train", []), tmp_path) == []
    assert "WANDB_MODE" not in os.environ
    (asked,) = loggers(load("train", ["logger=wandb"]), tmp_path)
    assert os.environ.pop("WANDB_MODE") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (auto,) = loggers(load("train", ["name=mine"]), tmp_path)
    assert "WANDB_MODE" not in os.environ
    for logger in (asked, auto):
        settings = logger._wandb_init
        assert (settings["id"], settings["resume"], settings["project"]) == ("12ab34cd", "allow", "lmsd")
    assert auto._wandb_init["name"] == "mine"


@pytest.mark.slow
def test_two_sessions_write_one_run_with_captioned_images_and_tables(home: Home) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    folder = Path("outputs/watched")
    words = [*TINY, "data.shards=data/shapes", "logger=wandb", f"run_dir={folder}"]
    words += ["images=3200", "evaluate.every=1600"]

    def train(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "lmsd.cli", "train", *words],
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**clean, "HOME": str(home.folder)},
        )

    first, metrics = train(*words), folder / "metrics.jsonl"
    while first.poll() is None and not (
        metrics.is_file() and metrics.read_text().count("val/right/low") == 2
    ):
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == 143, said[-2000:]
    again = train(f"resume={folder}")
    said = again.communicate(timeout=600)[1]
    assert again.returncode == 0, said[-2000:]
    offline = sorted((folder / "wandb").glob("offline-run-*"))
    assert [path.name.rsplit("-", 1)[-1] for path in offline] == [store.status(folder)["id"]] * 2
    lines = [line for path in offline for line in history(next(path.glob("*.wandb")))]

    axis = "trainer/global_step"  # Lightning's name of it; its values are images seen
    assert [line[axis] for line in lines if "generator/loss" in line] == [*range(32, 3201, 32)]
    pictures = {line[axis]: line["samples/captions"] for line in lines if "samples/captions" in line}
    assert list(pictures) == [0, 1600, 3200]
    for captions in pictures.values():
        assert len(captions) == 4
        assert all(len(caption.split()) > 2 for caption in captions)
    files = [path for run in offline for path in (run / "files" / "media").rglob("*")]
    assert len([path for path in files if path.suffix == ".png"]) == 3 * 4
    tables = [json.loads(path.read_text()) for path in files if path.name.endswith(".table.json")]
    assert len(tables) == 3
    for table in tables:
        assert table["columns"] == ["score", "value", "low (95 %)", "high (95 %)"]
        right = {row[0]: row[1:] for row in table["data"]}["val/right"]
        assert right[1] <= right[0] <= right[2]
