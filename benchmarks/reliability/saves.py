"""Checkpoints under SIGKILL, damage, and disks that are full.

python benchmarks/reliability/saves.py --n 200

killed     a child that saves without end, a few dozen kilobytes to megabytes, with its temporary folder on
another file system: what is committed is intact, and there is always something
damaged    one bit flipped, and the file cut, at 50 offsets: all noticed, and the one before is read
full       training on a real file system without room (a limit on the size of files, for who may not mount
one): the save is refused, training goes on and ends, the checkpoint before is intact. 20 times. Seed 0.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from harness import codes, count, fork, report, workplace
from kills import DATA, WORDS

from lmsd import checkpoints, cli
from lmsd.engine import checkpoint as disk


def content(images: int, size: int) -> dict[str, Any]:
    """A checkpoint filled with its own number."""
    own = {"version": checkpoints.VERSION, "clock": {"images": images, "updates": 1}, "metrics": {}}
    return {"state_dict": {"w": torch.full((size,), images)}, checkpoints.KEY: own}


def holds(folder: Path) -> int:
    return int(checkpoints.read(folder)["state_dict"]["w"][0])


def elsewhere(folder: Path) -> str:
    """A folder on another file system, where there is one."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shared.stat().st_dev != folder.stat().st_dev else str(folder)


def kills(n: int) -> tuple[int, list[str]]:
    """Kills of a child that saves without end."""
    draw, failures = random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk.save(content(1, 10), folder / checkpoints.checkpoint_name(1))

        def saving(size: int) -> None:
            os.environ["TMPDIR"] = tempfile.tempdir = elsewhere(folder)
            number = holds(folder) + 1
            while True:
                disk.save(content(number, size), folder / checkpoints.checkpoint_name(number % 5 + 1))
                number += 1

        for number in range(n):
            size = draw.choice([10_000, 100_000, 500_000])
            child = fork(lambda size=size: saving(size), folder / "log")  # type: ignore[misc]
            time.sleep(draw.uniform(0.01, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            known = checkpoints.manifests(folder)
            if not known or not all(map(checkpoints.intact, known)):
                failures.append(f"kill {number}: {len(known)} committed, not all intact")
            for path, manifest in known.items():
                if int(torch.load(path, weights_only=True)["state_dict"]["w"][0]) != manifest["images"]:
                    failures.append(f"kill {number}: {path.name} holds another state than its manifest says")
    return n, failures


def damages(n: int) -> tuple[int, list[str]]:
    """Flips and cuts of a checkpoint, and flips of its manifest, at n offsets each."""
    draw, failures = random.Random(0), []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        for images in (1, 2):
            disk.save(content(images, 10_000), folder / checkpoints.checkpoint_name(images))
        newer = folder / checkpoints.checkpoint_name(2)
        whole = newer.read_bytes()
        for at in sorted(draw.sample(range(len(whole)), n)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << draw.randrange(8)
            for kind, damaged in (("flipped", bytes(flipped)), ("cut", whole[:at])):
                newer.write_bytes(damaged)
                if checkpoints.intact(newer) or holds(folder) != 1:
                    failures.append(f"{kind} at {at}")
        newer.write_bytes(whole)
        manifest = checkpoints.manifest_of(newer)
        text = manifest.read_bytes()
        words = [at for at in range(len(text)) if not text[at : at + 1].isspace()]
        for at in sorted(draw.sample(words, min(n, len(words)))):
            flipped = bytearray(text)
            flipped[at] ^= 1 << draw.randrange(7)
            manifest.write_bytes(flipped)
            if checkpoints.intact(newer) or holds(folder) != 1:
                failures.append(f"manifest flipped at {at}")
    return 2 * n + min(n, len(words)), failures


def full(n: int) -> tuple[int, list[str]]:
    """Runs whose disk is full at their second checkpoint, and has room again after it was refused."""
    assert cli.run(DATA) == 0
    failures = []
    for number in range(n):
        room = Path(f"room{number}")
        room.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(room)]
        mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
        child = fork(lambda room=room, limit=not mounted: _train(room, limit), Path("full.log"))  # type: ignore[misc]
        found, kept = codes([child], seconds=300), checkpoints.manifests(room / "run" / "checkpoints")
        images = {manifest["images"] for manifest in kept.values()}
        if (
            found != [0]
            or not {128, 640} <= images
            or 256 in images
            or not all(map(checkpoints.intact, kept))
        ):
            failures.append(f"number {number}: exit code {found}, intact at {sorted(images)}")
        if mounted:
            subprocess.run(["umount", str(room)], check=True)
        shutil.rmtree(room, ignore_errors=True)
    return n, failures


def _train(room: Path, limit: bool) -> None:
    """Train on a disk that is full from 256 images on, until a checkpoint was refused."""
    from lmsd.engine.callbacks import writer
    from lmsd.engine.module import Engine

    filler, advance = room / "filler", Engine._advance
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(whether: bool) -> None:
        if limit:
            size = 1 << 20 if whether else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        elif whether:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
        else:
            filler.unlink(missing_ok=True)

    def advanced(self: Engine, played: set[str]) -> None:
        advance(self, played)
        if self.clock.images == 256:
            fill(True)
        if self.clock.images > 256 and writer(self.trainer).failures:
            fill(False)

    Engine._advance = advanced  # type: ignore[method-assign]
    words = ["images=640", "checkpoint_every=128", "keep=9", "evaluate.n=0", f"run_dir={room}/run"]
    raise SystemExit(cli.run(["train", *WORDS, *words]))


if __name__ == "__main__":
    wanted = count(200)
    report("SIGKILLs while saving, unusable", *kills(wanted))
    report("flips and cuts, unnoticed", *damages(max(1, wanted // 4)))
    with workplace():
        report("full disks, lost or stopped", *full(max(1, wanted // 10)))
