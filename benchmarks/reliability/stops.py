"""Signals at random moments, to one rank of one or two: all stop at the same batch, saved, in time.

    python benchmarks/reliability/stops.py --n 20

One rank, and two gloo ranks with the signal to the first or to the second, n times each, SIGTERM and SIGUSR1
in turn; half of them while batches play, half mostly in an evaluation of 11,760 samples. Exit codes 143, both
ranks at the same number of images, a checkpoint of it, under 10 s. Seed 0.
"""

import os
import random
import signal
import time
from pathlib import Path

from harness import codes, count, fork_ranks, report, workplace
from kills import DATA, WORDS

from lmsd import cli
from lmsd.checkpoints import intact, manifests
from lmsd.cli.runs import store

SECONDS = 10.0
EVALUATING = ["evaluate.n=294", f"evaluate.seeds={list(range(40))}".replace(" ", ""), "evaluate.every=640"]


def rank(number: int, words: list[str]) -> None:
    from lmsd.engine.signals import Interrupt

    ended = Interrupt.on_train_end

    def telling(self: Interrupt, trainer: object, pl_module: object) -> None:
        ended(self, trainer, pl_module)  # type: ignore[arg-type]
        Path(f"images{number}").write_text(str(pl_module.clock.images))  # type: ignore[attr-defined]

    Interrupt.on_train_end = telling  # type: ignore[method-assign, assignment]
    raise SystemExit(cli.run(["train", *words]))


def trial(number: int, kind: signal.Signals, ranks: int, to: int, draw: random.Random) -> tuple[float, str]:
    """Seconds from the signal to the end, and what went wrong, or nothing."""
    folder = Path(f"run{kind.name}{ranks}{to}{number}")
    words = [
        *WORDS,
        "images=10_000_000",
        "objective.warmup=0",
        "objective.head_start=0",
        f"run_dir={folder}",
        f"devices={ranks}",
        *(EVALUATING if number % 4 > 1 else ["evaluate.n=0"]),
    ]
    os.environ["LMSD_RUN_DIR"] = str(folder)  # as a launcher tells all of its ranks
    children = fork_ranks(lambda own: rank(own, words), ranks, Path())
    while not (folder / "metrics.jsonl").exists():
        time.sleep(0.02)
    time.sleep(draw.uniform(0, 2))
    began = time.monotonic()
    os.kill(children[to], kind)
    found = codes(children, seconds=60)
    seconds = time.monotonic() - began
    if found != [143] * ranks:
        return seconds, f"{folder}: exit codes {found}"
    images = {int(Path(f"images{own}").read_text()) for own in range(ranks)}
    newest = list(manifests(folder / "checkpoints"))[-1]
    if len(images) > 1 or newest.stem != f"step_{images.pop():09d}" or not intact(newest):
        return seconds, f"{folder}: ranks at {images}, newest checkpoint {newest.name}"
    if store.status(folder)["state"] != "interrupted":
        return seconds, f"{folder}: status is {store.status(folder)['state']}"
    return seconds, f"{folder}: took {seconds:.1f} s" if seconds > SECONDS else ""


def sweep(n: int) -> tuple[int, list[str], dict[str, object]]:
    """N signals to each rank of one and of two, SIGTERM and SIGUSR1 in turn; the longest that one took."""
    assert cli.run(DATA) == 0
    draw, failures, longest = random.Random(0), [], 0.0
    for ranks, to in ((1, 0), (2, 0), (2, 1)):
        for number in range(n):
            kind = (signal.SIGTERM, signal.SIGUSR1)[number % 2]
            seconds, wrong = trial(number, kind, ranks, to, draw)
            longest = max(longest, seconds)
            failures += [wrong] if wrong else []
            print(f"{kind.name} to rank {to} of {ranks}: {seconds:.1f} s {wrong}", flush=True)
    return 3 * n, failures, {"longest_seconds": round(longest, 1)}


if __name__ == "__main__":
    wanted = count(20)
    with workplace():
        report("signals, not as promised", *sweep(wanted))
