"""Building at scale: memory, processes, kills and parts, on shards like those that img2dataset leaves.

    python benchmarks/building.py --n 200000 --base 20000

memory   the largest sum of private memory (RssAnon) of the build and its processes, at `base` and at `n`
         images; slope: the difference an image. Files that are mapped (signatures) are not private.
speed    one process and two, in turn, `rounds` times: seconds, and CPU seconds on the critical path (the
         command's own and those of the busiest of its processes), which another load does not move
kills    kill -9 of the whole build at random times, each time begun again: the same bytes as in one go
parts    eight parts and `lmsd data merge`: the same bytes

One line of JSON each.
"""

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 5_000


def make(folder: Path, n: int) -> Path:
    """Tars of n JPEGs of 48 pixels with captions; 2 % are exact copies, 2 % brighter."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    last = rng.integers(0, 256, (6, 6, 3))
    for shard in range(-(-n // SHARD)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard * SHARD, min(n, (shard + 1) * SHARD)):
                small = rng.integers(0, 256, (6, 6, 3))
                small = (
                    last if number % 50 == 7 else np.clip(last * 1.1, 0, 255) if number % 50 == 9 else small
                )
                last = small
                image = Image.fromarray(small.astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
                stream = io.BytesIO()
                image.save(stream, "JPEG", quality=90)
                for suffix, content in (("jpg", stream.getvalue()), ("txt", f"a picture, {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return folder


def processes(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in below for each in processes(int(child)))]


def measured(pid: int) -> tuple[int, dict[int, float]]:
    """Private bytes of a process and all below it, and CPU seconds of each."""
    private, cpu = 0, {}
    for each in processes(pid):
        try:
            status = Path(f"/proc/{each}/status").read_text()
            stat = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        private += sum(
            int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")
        )
        cpu[each] = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return private, cpu


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lmsd.cli", "data", *words]


def built(words: list[str]) -> dict[str, float]:
    """Run a command; its peak memory, seconds, and CPU seconds on the critical path."""
    began, peak, cpu = time.perf_counter(), 0, dict[int, float]()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            private, used = measured(process.pid)
            peak, cpu = max(peak, private), cpu | used
            time.sleep(0.05)
        assert process.returncode == 0, words
        own = cpu.pop(process.pid)
    return {
        "peak_mb": round(peak / 1e6, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_critical": round(own + max(cpu.values(), default=0), 1),
    }


def bytes_of(folder: Path) -> dict[str, str]:
    """sha256 of shards and manifest; indexes hold the time of writing."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def say(what: str, **values: object) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def killed(words: list[str], out: Path, seconds: float, times: int) -> int:
    """Begin a build again and again, killing it `times` times within its usual seconds; how often it was."""
    rng, count = random.Random(0), 0
    for _ in range(times):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            try:
                process.wait(rng.uniform(0.05, 0.35) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                count += 1
        time.sleep(0.5)  # until its processes have noticed
        if out.exists():
            return count
    built(words)
    return count


def main() -> None:
    """Print the table as JSON lines."""
    parser = argparse.ArgumentParser()
    for name, value in (("n", 40_000), ("base", 20_000), ("rounds", 1), ("kills", 10), ("parts", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small, large = make(folder / "small", given.base), make(folder / "large", given.n)
        build = ["build", str(small), "image_size=32"]
        one = {}
        for number in range(given.rounds):
            for workers in (1, 2):
                words = command(*build, f"workers={workers}", f"out={folder}/{workers}-{number}")
                found = built(words)
                one = found if workers == 1 else one
                say("speed", n=given.base, workers=workers, **found)
        expected = bytes_of(folder / "1-0")
        say("two processes", same=all(bytes_of(folder / f"2-{n}") == expected for n in range(given.rounds)))
        found = built(command("build", str(large), "image_size=32", "workers=2", f"out={folder}/large-out"))
        first = built(command("build", str(small), "image_size=32", "workers=2", f"out={folder}/small-out"))
        slope = (found["peak_mb"] - first["peak_mb"]) * 1e6 / (given.n - given.base)
        say("memory", base=given.base, n=given.n, at_base=first, at_n=found, bytes_an_image=round(slope, 1))
        parts = [folder / f"part{number}" for number in range(1, given.parts + 1)]
        for number, part in enumerate(parts, 1):
            built(command(*build, f"part={number}/{given.parts}", f"out={part}"))
        built(command("merge", *map(str, parts), f"out={folder}/merged"))
        say("parts", n=given.base, parts=given.parts, same=bytes_of(folder / "merged") == expected)
        words = command(*build, "workers=2", f"out={folder}/killed")
        count = killed(words, folder / "killed", one["seconds"], given.kills)
        say("kills", n=given.base, kills=count, same=bytes_of(folder / "killed") == expected)


if __name__ == "__main__":
    main()
