"""Checkpoints under SIGKILL, damage, and disks that are full.

python benchmarks/reliability/saves.py --n 200

killed     a child that saves without end, a few dozen kilobytes to megabytes, with its temporary folder on
another file system: what is committed is intact, and there is always something
damaged    one bit flipped, and the file cut, at 50 offsets: all noticed, and the one before is read
full       a real file system without room (a limit on the size of files, for who may not mount one): the
save is refused, training goes on, the checkpoint before is intact. 20 times. Seed 0.
"""

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
from harness import codes, count, fork, report

from lmsd.engine import checkpoint as disk


def content(images: int, size: int) -> dict[str, Any]:
    """A checkpoint filled with its own number."""
    own = {"clock": {"images": images, "updates": 1}, "metrics": {}}
    return {"state_dict": {"w": torch.full((size,), images)}, disk.KEY: own}


def holds(folder: Path) -> int:
    return int(disk.read(folder)["state_dict"]["w"][0])


def elsewhere(folder: Path) -> str:
    """A folder on another file system, where there is one."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shared.stat().st_dev != folder.stat().st_dev else str(folder)


def kills(n: int) -> tuple[int, list[str]]:
    """Kills of a child that saves without end."""
    draw, failures = random.Random(0), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk.save(content(1, 10), folder / disk.checkpoint_name(1))

        def saving(size: int) -> None:
            os.environ["TMPDIR"] = tempfile.tempdir = elsewhere(folder)
            number = holds(folder) + 1
            while True:
                disk.save(content(number, size), folder / disk.checkpoint_name(number % 5 + 1))
                number += 1

        for number in range(n):
            size = draw.choice([10_000, 100_000, 500_000])
            child = fork(lambda size=size: saving(size), folder / "log")  # type: ignore[misc]
            time.sleep(draw.uniform(0.01, 0.1))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            known = disk.manifests(folder)
            if not known or not all(map(disk.intact, known)):
                failures.append(f"kill {number}: {len(known)} committed, not all intact")
            for path, manifest in known.items():
                if int(torch.load(path, weights_only=True)["state_dict"]["w"][0]) != manifest["images"]:
                    failures.append(f"kill {number}: {path.name} holds another state than its manifest says")
    return n, failures


def damages(n: int) -> tuple[int, list[str]]:
    """Flips and cuts at n offsets each."""
    draw, failures = random.Random(0), []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        for images in (1, 2):
            disk.save(content(images, 10_000), folder / disk.checkpoint_name(images))
        newer = folder / disk.checkpoint_name(2)
        whole = newer.read_bytes()
        for at in sorted(draw.sample(range(len(whole)), n)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << draw.randrange(8)
            for kind, damaged in (("flipped", bytes(flipped)), ("cut", whole[:at])):
                newer.write_bytes(damaged)
                if disk.intact(newer) or holds(folder) != 1:
                    failures.append(f"{kind} at {at}")
    return 2 * n, failures


def full(n: int) -> tuple[int, list[str]]:
    """Saves that do not fit, each after one that does."""
    failures = []
    for number in range(n):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", name]
            mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
            child = fork(lambda folder=folder, limit=not mounted: _fill(folder, limit), Path("/dev/null"))  # type: ignore[misc]
            found = codes([child], seconds=60)
            kept = disk.manifests(folder)
            if (
                found != [0]
                or [m["images"] for m in kept.values()] != [1, 3]
                or not all(map(disk.intact, kept))
            ):
                failures.append(f"number {number}: exit code {found}, {len(kept)} checkpoints")
            if mounted:
                subprocess.run(["umount", name], check=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
    return n, failures


def _fill(folder: Path, limit: bool) -> None:
    """Save 1, fail to save 2, save 3; through what Lightning writes with."""
    from lmsd.engine.plugin import AtomicCheckpointIO

    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    writer = AtomicCheckpointIO(asynchronous=True)
    for images, size in ((1, 10_000), (2, 1_000_000), (3, 10_000)):
        writer.save_checkpoint(content(images, size), folder / disk.checkpoint_name(images))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            writer.wait()
        assert (writer.failures > 0) == (images == 2) == bool(told)
        assert not list(folder.glob("*.tmp.*"))


if __name__ == "__main__":
    wanted = count(200)
    report("SIGKILLs while saving, unusable", *kills(wanted))
    report("flips and cuts, unnoticed", *damages(max(1, wanted // 4)))
    report("full disks, lost or stopped", *full(max(1, wanted // 10)))
