"""NaN in the loss, in a gradient or in the data of one rank of two: all skip alike, and the run goes back.

    python benchmarks/reliability/divergence.py --n 20

Each trial poisons one rank from a random batch on: for a while, so that updates are skipped, or for so long
makes the run go back to a checkpoint and on with later data. Both ranks must end with equal, finite weights,
weights, having seen every position once, and no checkpoint may hold what is not finite. Seed 0.
"""

import os
import random
from pathlib import Path

import torch
from harness import codes, count, fork_ranks, report, workplace
from kills import DATA, WORDS

from lmsd import cli
from lmsd.checkpoints import manifests, read
from lmsd.engine.checkpoint import first_not_finite

PLACES = ("loss", "gradient", "data")
SKIPPED, BATCHES = 4, 40


def poison(place: str, rank: int, positions: range) -> list[int]:
    """Spoil what this rank computes on some positions; where the positions that it sees are noted."""
    from lmsd.engine.module import Engine

    pieces, play, seen = Engine._pieces, Engine._play, []
    bad, hooks = [False], []

    def taken(self: Engine, batch: object) -> object:
        found = pieces(self, batch)  # type: ignore[arg-type]
        seen.extend(found[0].position.tolist())
        bad[0] = self.global_rank == rank and int(found[0].position[0]) in positions
        if bad[0] and place == "data":
            found[0].x[0, 0, 0, 0] = torch.nan
        return found

    def played(self: Engine, turns: object) -> None:
        turn = turns[0]  # type: ignore[index]
        if bad[0] and place != "data" and turn.player == "generator":
            inner = turn.loss

            def loss() -> object:
                found = inner()
                if place == "gradient":
                    weight = next(p for p in self.generator.parameters() if p.requires_grad)
                    hooks.append(weight.register_hook(lambda g: g * torch.nan))
                    return found
                return type(found)(found.value * torch.nan, found.logs)

            object.__setattr__(turn, "loss", loss)
        play(self, turns)  # type: ignore[arg-type]
        while hooks:
            hooks.pop().remove()

    Engine._pieces, Engine._play = taken, played  # type: ignore[method-assign, assignment]
    return seen


def trial(number: int, draw: random.Random) -> str:
    """What went wrong, or nothing."""
    place, bad_rank = PLACES[number % 3], draw.randrange(2)
    first, batches = draw.randrange(8, 20), SKIPPED * 2 if number % 2 else SKIPPED - 1
    positions = range(64 * first, 64 * (first + batches))
    folder = Path(f"run{number}")
    words = [
        *WORDS,
        f"images={64 * BATCHES}",
        "objective.head_start=0",
        "evaluate.n=0",
        "log_every=64",
        "checkpoint_every=256",
        "keep=99",
    ]
    words += [f"rollback.skipped={SKIPPED}", f"run_dir={folder}", "devices=2"]
    os.environ["LMSD_RUN_DIR"] = str(folder)

    def rank(own: int) -> None:
        from lmsd.engine.module import Engine

        seen, ended = poison(place, bad_rank, positions), Engine.on_fit_end

        def keep(self: Engine) -> None:
            ended(self)
            state = {name: value for name, value in self.state_dict().items() if torch.is_tensor(value)}
            torch.save({"state": state, "seen": seen, "back": self.rollbacks}, f"{number}-{own}.pt")

        Engine.on_fit_end = keep  # type: ignore[method-assign]
        raise SystemExit(cli.run(["train", *words]))

    found = codes(fork_ranks(rank, 2, Path()), seconds=600)
    if found != [0, 0]:
        return f"{folder} ({place}): exit codes {found}"
    a, b = (torch.load(f"{number}-{own}.pt", weights_only=True) for own in (0, 1))
    if any(not torch.equal(value, b["state"][name]) for name, value in a["state"].items()):
        return f"{folder} ({place}): the ranks' weights differ"
    if sorted(a["seen"] + b["seen"]) != list(range(len(a["seen"]) * 2)):
        return f"{folder} ({place}): positions lost or repeated"
    if a["back"] != b["back"] or (a["back"] > 0) != (batches >= SKIPPED):
        return f"{folder} ({place}): {a['back']} rollbacks after {batches} bad batches"
    bad = [path.name for path in manifests(folder / "checkpoints") if first_not_finite(read(path))]
    return f"{folder} ({place}): {bad} not finite" if bad else ""


def sweep(n: int) -> tuple[int, list[str]]:
    """N trials, in turn of the three places."""
    assert cli.run(DATA) == 0
    draw, failures = random.Random(0), []
    for number in range(n):
        wrong = trial(number, draw)
        failures += [wrong] if wrong else []
        print(f"trial {number + 1}: {wrong or 'as promised'}", flush=True)
    return n, failures


if __name__ == "__main__":
    wanted = count(20)
    with workplace():
        report("NaN on one rank, not as promised", *sweep(wanted))
