"""Two gloo ranks against one process: same samples, same gradients, and only one player's on the wire."""

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import OBJECTIVES, cast_for, engine, run
from torch import Tensor
from torch.optim import SGD
from two_ranks import as_torchrun, spawned

from lmsd.engine.callbacks import Evaluate
from lmsd.engine.logging import read_metrics
from lmsd.engine.optim import adamw
from lmsd.models.codec import Unshuffle
from lmsd.objectives.base import Cast, Objective, trained
from lmsd.ranks import world_size
from lmsd.rng import Rng
from lmsd.types import Batch, Loss, Players, Turn

SECONDS = 600
LATENT = "{} in latents"
CASES = [*OBJECTIVES, "accumulating", *map(LATENT.format, ("lmsd", "grpo", "draft"))]


class Recorder(SGD):
    """SGD that keeps every gradient it is given, by player."""

    def __init__(self, params: list[Tensor], role: str, kept: list[tuple[str, Tensor]]) -> None:
        super().__init__(params, lr=0.05)
        self.role, self.kept = role, kept

    def step(self, closure: object = None) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        self.kept.append(
            (self.role, torch.cat([torch.zeros(0) if g is None else g.flatten() for g in grads]))
        )
        super().step()


class Listening(Objective):
    """An objective that notes the positions it is given."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.positions = inner, []
        self.state_dict, self.load_state_dict = inner.state_dict, inner.load_state_dict  # type: ignore[method-assign]

    @property
    def cast(self) -> Cast:
        return self.inner.cast

    def turns(self, cast: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
        self.positions += batch.position.tolist()
        yield from self.inner.turns(cast, batch, clock, rng)


class PoisonedOnOneRank(Listening):
    """The generator's loss is NaN where position 5 is, which with two ranks is on the second alone."""

    def turns(self, cast: Players, batch: Batch, clock: object, rng: Rng) -> Iterator[Turn]:
        for turn in super().turns(cast, batch, clock, rng):
            poisoned = turn.player == "generator" and 5 in batch.position

            def loss(turn: Turn = turn, poisoned: bool = poisoned) -> Loss:
                found = turn.loss()
                return Loss(found.value * float("nan"), found.logs) if poisoned else found

            yield Turn(turn.player, loss)


def play(case: str, folder: Path) -> dict[str, Any]:
    """Three batches; what was seen, computed, sent and is left."""
    rank = torch.distributed.get_rank() if world_size() > 1 else int(os.environ.get("RANK", "0"))
    name = case.partition(" ")[0]
    inner = OBJECTIVES[name if name in OBJECTIVES else "lmsd"]()
    objective = (PoisonedOnOneRank if case == "poisoned" else Listening)(inner)
    codec = Unshuffle(2, scale=1.5, shift=0.1) if case == LATENT.format(name) else None
    cast = cast_for(inner, codec=codec)
    if rank == 1:  # ranks start from rank 0's weights, whatever they were built with
        torch.nn.init.zeros_(next(cast["generator"].parameters()))
    kept: list[tuple[str, Tensor]] = []
    makers = {role: lambda p, role=role: Recorder(p, role, kept) for role in trained(inner.cast)}
    if case == "poisoned":
        makers = dict.fromkeys(trained(inner.cast), adamw)
    pieces = 2 if case == "accumulating" else 1
    subject = engine(
        objective=objective,
        players=cast,
        optimizers=makers,
        batches=3,
        micro_batches=pieces,
        ema=dict.fromkeys(makers, (9,)),
    )
    scores = Evaluate(lambda _: {"val/rank": float(rank)}, every_images=8)
    trainer = run(subject, folder / case, devices=int(os.environ.get("WORLD_SIZE", "1")), callbacks=[scores])
    return {
        "positions": objective.positions,
        "grads": kept,
        "sent": subject.reducer.elements,
        "sizes": {
            role: sum(p.numel() + 1 for p in player.parameters()) for role, player in subject.roles.items()
        },
        "state": subject.state_dict(),
        "steps": (trainer.global_step, subject.clock.updates, subject.clock.images),
        "lines": read_metrics(folder / case / "metrics.jsonl") if rank == 0 else [],
    }


def _rank(rank: int, port: int, folder: Path) -> None:
    as_torchrun(rank, port)
    faulthandler.dump_traceback_later(SECONDS - 60)
    torch.save({case: play(case, folder) for case in [*CASES, "poisoned"]}, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks report, all cases in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    spawned(_rank, folder, seconds=SECONDS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(tmp_path: Path, both: list[dict[str, Any]], case: str) -> None:
    """Gradients within 1e-10 relative, every sample in its place, ranks equal to the last bit."""
    alone = play(case, tmp_path)
    first, second = (rank[case] for rank in both)
    batches = [first["positions"][k : k + 4] + second["positions"][k : k + 4] for k in (0, 4, 8)]
    assert [position for batch in batches for position in batch] == alone["positions"] == list(range(24))
    updates = {"recipe": 2, "dmd2": 1, "adv_dmd": 1}.get(case, 3)  # of G, which rests in a head start
    assert first["steps"] == second["steps"] == alone["steps"] == (3, updates, 24)
    assert len(first["grads"]) == len(alone["grads"]) > 0
    for (role, ours), (same, theirs) in zip(first["grads"], alone["grads"], strict=True):
        assert role == same
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm()
    for name, value in first["state"].items():
        equal = torch.equal(value, second["state"][name]) if isinstance(value, Tensor) else value
        assert equal, f"{name} differs between ranks"


@pytest.mark.parametrize("case", CASES)
def test_only_the_playing_players_gradients_travel(both: list[dict[str, Any]], case: str) -> None:
    """Every turn sends that player's numbers once, a flag for each of its parameters, and one for all."""
    for rank in both:
        found = rank[case]
        assert found["sent"] == sum(found["sizes"][role] + 1 for role, _ in found["grads"]) > 0


def test_logs_are_means_over_ranks_and_scores_come_from_the_first(
    tmp_path: Path, both: list[dict[str, Any]]
) -> None:
    alone = play("lmsd", tmp_path)["lines"]
    lines = both[0]["lmsd"]["lines"]
    assert [line.keys() for line in lines] == [line.keys() for line in alone]
    for ours, theirs in zip(lines, alone, strict=True):
        assert ours.items() >= {"val/rank": 0.0}.items() or "generator/loss" in ours
        for name in ours.keys() - {"time"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def test_all_ranks_skip_alike(both: list[dict[str, Any]]) -> None:
    """NaN in one rank's loss: no rank steps, and their weights stay equal and finite."""
    first, second = (rank["poisoned"] for rank in both)
    lines = [line for line in first["lines"] if "generator/skipped" in line]
    assert [line["generator/skipped"] for line in lines] == [1.0, 0.0, 0.0]
    for name, value in first["state"].items():
        if isinstance(value, Tensor):
            assert value.isfinite().all(), name
            assert torch.equal(value, second["state"][name]), name
