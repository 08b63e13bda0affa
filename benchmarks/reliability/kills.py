"""A digits run of both players, killed and resumed, against the one that was never killed.

    python benchmarks/reliability/kills.py --n 200

A trial has 1 to 3 SIGKILLs: at a random time, in a save (before one of its fsyncs or renames), in an
evaluation, or where an epoch ends. Weights, averages, optimizers, counts, the place in the data and every
line of metrics must be equal to the last bit. Seed 0.
"""

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import count, fork, report, workplace

from lmsd import cli
from lmsd.checkpoints import KEY, read
from lmsd.cli.runs import store
from lmsd.cli.verbs.verify_resume import compare, finish, killed

DATA = ["data", "build", "digits", "out=data/digits"]
WORDS = [
    "experiment=digits",
    "images=1920",
    "objective.warmup=0.2",
    "checkpoint_every=320",
    "log_every=320",
    "evaluate.n=32",
    "evaluate.every=640",
    "evaluate.neighbors=false",
    "evaluate.grid=4",
    "evaluate.extractor.images=2000",
    "accelerator=cpu",
]
KINDS = ("any time", "save", "evaluation", "epoch's edge")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sabotage(kind: str, draw: random.Random) -> None:
    """Have this process kill itself in a certain place, sooner or later."""
    from lmsd.engine.callbacks import Evaluate
    from lmsd.engine.datamodule import ShardDataModule

    if kind == "save":
        left = iter(range(draw.randrange(24), -1, -1))

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*arguments: Any, **options: Any) -> Any:
                if next(left, 1) == 0:
                    die()
                return call(*arguments, **options)

            return instead

        os.fsync, os.replace = dying(os.fsync), dying(os.replace)
    elif kind == "evaluation":
        score, number, seconds = Evaluate._score, draw.randrange(3), draw.uniform(0, 0.5)
        seen = iter(range(99))

        def scored(self: Evaluate, engine: Any) -> Any:
            if next(seen) == number:
                threading.Timer(seconds, die).start()
            return score(self, engine)

        Evaluate._score = scored  # type: ignore[method-assign]
    elif kind == "epoch's edge":
        advance, after = ShardDataModule.advance, draw.random() < 0.5

        def advanced(self: ShardDataModule, images: int) -> None:
            edge = (self.position + images) // len(self.index("train")) > self.epoch
            if edge and not after:
                die()
            advance(self, images)
            if edge:
                die()

        ShardDataModule.advance = advanced  # type: ignore[method-assign]


def train(words: list[str], log: Path, kind: str = "", seed: int = 0) -> int:
    def run() -> None:
        sabotage(kind, random.Random(seed))
        raise SystemExit(cli.run(["train", *words]))

    return fork(run, log)


def unbroken() -> float:
    """The run that is never killed; how long it trains."""
    finish(train([*WORDS, "run_dir=unbroken"], Path("unbroken.log")), Path("unbroken.log"))
    return float(store.status(Path("unbroken"))["seconds"])


def trial(number: int, kills: int, seconds: float) -> tuple[list[str], str]:
    """One run with up to so many kills: the kinds of those there were, and the first difference."""
    draw, folder, log = random.Random(number), Path(f"killed{number}"), Path(f"killed{number}.log")
    done: list[str] = []
    words = [*WORDS, f"run_dir={folder}", "resume=auto"]
    for k in range(kills):
        kind = KINDS[(number + k) % len(KINDS)]
        process = train(words, log, kind, seed=1000 * number + k)
        if not killed(process, folder, draw.uniform(0, seconds) if kind == KINDS[0] else 600.0):
            break
        done.append(kind)
    if store.status(folder).get("state") != "done":
        finish(train(words, log), log)
    return done, compare(Path("unbroken"), folder)[0]


def sweep(kills: int) -> tuple[int, list[str], dict[str, object]]:
    """Trials until so many kills have been; what differed, and how many kills of each kind there were."""
    assert cli.run(DATA) == 0
    seconds, done, number, failures = unbroken(), Counter[str](), 0, []
    while done.total() < kills:
        found, difference = trial(number, min(1 + number % 3, kills - done.total()), seconds)
        done, number = done + Counter(found), number + 1
        failures += [f"trial {number}: {difference}"] if difference else []
        print(f"trial {number}: {', '.join(found) or 'no kill'}; {difference or 'equal'}", flush=True)
    played = read(Path("unbroken"))[KEY]["clock"]["played"]
    return done.total(), failures, {"kills": dict(done), "runs": number, "updates": played}


if __name__ == "__main__":
    wanted = count(200)
    with workplace():
        report("SIGKILLs, bitwise differences", *sweep(wanted))
