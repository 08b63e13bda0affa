"""Processes that are killed and signalled: forked, so that what is imported already is there at once.

The benchmarks of this folder are commands (`python benchmarks/reliability/NAME.py --n N`), each for a promise
of the README; `tests/reliability` runs them with a small n. What a command finds goes to
`benchmarks/results/reliability/NAME.json`: n, the seed, what failed, and figures beside it.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

RESULTS = Path(__file__).parent.parent / "results" / "reliability"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fork(function: Callable[[], object], log: Path) -> int:
    """Run a function in a child that ends with its exit code (1 for an error); its pid."""
    for module in ("lmsd.cli.build.experiment", "lmsd.cli.build.validate", "lmsd.engine.trainer"):
        importlib.import_module(module)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = open(handle, "w", buffering=1)  # noqa: SIM115
        torch.set_num_threads(1)
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def fork_ranks(function: Callable[[int], object], count: int, folder: Path) -> list[int]:
    """The same function on each of `count` ranks, as torchrun would start them; their pids."""
    port = free_port()

    def rank(number: int) -> object:
        names = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "MASTER_PORT": port}
        sizes = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in {**names, **sizes}.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        from lightning.pytorch.utilities import rank_zero_only

        rank_zero_only.rank = number  # Lightning has read the environment of the parent
        return function(number)

    return [fork(lambda n=n: rank(n), folder / f"rank{n}.log") for n in range(count)]


def codes(children: list[int], *, seconds: float) -> list[int]:
    """Exit codes, negative for a signal; those that are still there then are killed and count as -9."""
    deadline, found = time.monotonic() + seconds, dict.fromkeys(children, -9)
    left = set(children)
    while left and time.monotonic() < deadline:
        for child in sorted(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                found[child] = os.waitstatus_to_exitcode(status)
                left.remove(child)
        time.sleep(0.02)
    for child in left:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [found[child] for child in children]


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder to work in, with a cache of its own."""
    with tempfile.TemporaryDirectory() as name:
        before = Path.cwd()
        os.environ["LMSD_CACHE"] = str(Path(name) / "cache")
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def count(default: int) -> int:
    """The option --n."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=default)
    return int(parser.parse_args().n)


def report(what: str, done: int, failures: list[str], figures: Mapping[str, object] | None = None) -> None:
    """Print and write down n and what failed; exit with 1 where anything did."""
    for failure in failures:
        print(f"  FAILED {failure}")
    print(f"{what}: n = {done}, failures = {len(failures)}", flush=True)
    path = RESULTS / f"{Path(sys.argv[0]).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.is_file() else {}
    found[what] = {"n": done, "seed": 0, "failures": failures, **(figures or {})}
    path.write_text(json.dumps(found, indent=1) + "\n")
    if failures:
        sys.exit(1)
