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
from wandb_server import server

from lmsd.cli.config.compose import load
from lmsd.cli.runs import offline, store
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
    assert loggers(load([]), tmp_path) == []
    assert "WANDB_MODE" not in os.environ
    (asked,) = loggers(load(["logger=wandb"]), tmp_path)
    assert os.environ.pop("WANDB_MODE") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (auto,) = loggers(load(["name=mine"]), tmp_path)
    assert "WANDB_MODE" not in os.environ
    for logger in (asked, auto):
        settings = logger._wandb_init
        assert (settings["id"], settings["resume"], settings["project"]) == ("12ab34cd", "allow", "lmsd")
    assert auto._wandb_init["name"] == "mine"


def fragment(record: bytes, kind: int = 1) -> bytes:
    return struct.pack("<IHB", 0, len(record), kind) + record


def line(images: int) -> bytes:
    """A record of metrics at so many images, as W&B writes it."""
    from wandb.proto.wandb_internal_pb2 import Record

    record = Record()
    item = record.history.item.add()
    item.key, item.value_json = "generator/loss", "0.5"
    item = record.history.item.add()
    item.key, item.value_json = "trainer/global_step", str(images)
    return bytes(record.SerializeToString())


class WandbLogger:
    """What is logged, in the place of Lightning's."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))


def test_a_part_ends_where_the_checkpoint_does_and_has_no_hole(tmp_path: Path) -> None:
    """W&B wrote lines up to 96 images before the kill, we wrote all to 160, and the checkpoint is of 128."""
    folder = tmp_path / "wandb" / "offline-run-20300101_000000-12ab34cd"
    folder.mkdir(parents=True)
    path = folder / "run-12ab34cd.wandb"
    whole = b":W&B\0\0\0"[:7] + b"".join(fragment(line(images)) for images in (32, 64, 96))
    path.write_bytes(whole + fragment(line(128))[:20])
    lines: list[dict[str, Any]] = [
        {"images": n, "time": 1, "generator/loss": n / 2} for n in range(32, 161, 32)
    ]
    lines.insert(3, {"images": 96, "time": 1, "val/right": None})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logger = WandbLogger()
    offline.mend(tmp_path, 128, [logger])
    assert path.read_bytes() == whole
    assert str(logger.lines) == "[(96, {'val/right': nan}), (128, {'generator/loss': 64.0})]"
    offline.mend(tmp_path, 64, [WandbLogger()])
    assert [row["trainer/global_step"] for row in history(path)] == [32, 64]
    (folder / f"{path.name}.synced").touch()
    offline.mend(tmp_path, -1, [logger])
    assert len(history(path)) == 2
    (folder / f"{path.name}.synced").unlink()
    (tmp_path / "wandb" / "run-20300101_000001-12ab34cd").mkdir()
    offline.mend(tmp_path, 128, [logger])
    assert (len(history(path)), len(logger.lines)) == (2, 2)  # a session was online
    (tmp_path / "wandb" / "run-20300101_000001-12ab34cd").rmdir()
    offline.mend(tmp_path, -1, [logger])
    assert (path.stat().st_size, len(logger.lines)) == (7, 2)
    for content in (b"", b"another format's " + whole):
        path.write_bytes(content)
        offline.mend(tmp_path, -1, [logger])
        assert path.read_bytes() == content, "what cannot be read is not cut"


def test_a_line_that_goes_over_a_blocks_end_is_one() -> None:
    early, late = line(32), line(64) + b"\x00" * 40_000
    room = BLOCK - 7 - 2 * HEAD - len(early)
    first = b"\0" * 7 + fragment(early)
    data = first + fragment(late[:room], 2) + fragment(late[room:], 4)
    found = [(end, at) for end, at, _ in offline.records(data, 64)]
    assert found == [(len(first), 32), (len(data), 64)]
    assert [at for _, at, _ in offline.records(data, 63)] == [32]
    assert [at for _, at, _ in offline.records(data[:-1], 64)] == [32]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_sessions_write_one_run_with_captioned_images_and_tables(
    number: signal.Signals, home: Home
) -> None:
    """Each line once, by our reading of the files and by W&B's own, which sends them to a server."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    folder = Path(f"outputs/watched-{number.name}")
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
    first.send_signal(number)
    said = first.communicate(timeout=120)[1]
    assert first.returncode == (143 if number == signal.SIGTERM else -number), said[-2000:]
    again = train(f"resume={folder}")
    said = again.communicate(timeout=600)[1]
    assert again.returncode == 0, said[-2000:]
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert [path.name.rsplit("-", 1)[-1] for path in parts] == [store.status(folder)["id"]] * 2
    lines = [line for path in parts for line in history(next(path.glob("*.wandb")))]

    axis = "trainer/global_step"  # Lightning's name of it; its values are images seen
    assert [line[axis] for line in lines if "generator/loss" in line] == [*range(32, 3201, 32)]
    with server() as (address, sent):
        command = [sys.executable, "-m", "wandb", "sync", *map(str, parts)]
        given = {**clean, "HOME": str(home.folder), "WANDB_BASE_URL": address, "WANDB_API_KEY": "a" * 40}
        subprocess.run(command, env=given, check=True, capture_output=True, timeout=120)
        arrived = [json.loads(text) for text in sent]
    assert [row[axis] for row in arrived if "generator/loss" in row] == [*range(32, 3201, 32)]
    assert len(arrived) == len(lines)
    if number == signal.SIGKILL:  # pictures of what was cut lie there too, those in memory are lost
        return
    pictures = {line[axis]: line["samples/captions"] for line in lines if "samples/captions" in line}
    assert list(pictures) == [0, 1600, 3200]
    for captions in pictures.values():
        assert len(captions) == 4
        assert all(len(caption.split()) > 2 for caption in captions)
    files = [path for run in parts for path in (run / "files" / "media").rglob("*")]
    assert len([path for path in files if path.suffix == ".png"]) == 3 * 4
    tables = [json.loads(path.read_text()) for path in files if path.name.endswith(".table.json")]
    assert len(tables) == 3
    for table in tables:
        assert table["columns"] == ["score", "value", "low (95 %)", "high (95 %)"]
        right = {row[0]: row[1:] for row in table["data"]}["val/right"]
        assert right[1] <= right[0] <= right[2]
