"""A generator cut over two gloo ranks is the one that is whole on both."""

import faulthandler
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny_run import Stream, engine, players, run, samples
from torch import Tensor
from two_ranks import as_torchrun, spawned

from lmsd import checkpoints
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.logging import read_metrics
from lmsd.engine.module import Engine
from lmsd.errors import UserError
from lmsd.rng import Rng

SECONDS = 600
CASES = ("lmsd", "recipe", "denoising")
BATCHES = 5


def subject(case: str) -> Engine:
    """Both clipped, averaged, in two micro-batches and with recomputed activations."""
    return engine(
        case,
        batches=BATCHES,
        micro_batches=2,
        ema=(9, 40),
        clip={"generator": 0.3},
        gradient_checkpointing=True,
    )


def mean_image(subject: Engine) -> dict[str, float]:
    """A score that the ranks do not work on alike: rank 0 calls the average twice, the others never."""
    if subject.global_rank:
        return {}
    batch, generator = samples(torch.arange(4)), subject.average("generator").average()
    cond, z = generator.condition(batch), Rng(1, batch.position).normal((4,), "z").double()
    t = torch.full((len(batch),), 0.5, dtype=torch.float64)
    twice = [generator(batch.x, t, cond, z) for _ in range(2)]
    return {"val/mean": float(sum(twice).mean())}


class Memory(Callback):
    """Goes back to the first checkpoint once, as the guard does, and notes what this rank holds."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Engine, *_: Any) -> None:
        if pl_module.clock.images == 24 and not self.held:
            content = checkpoints.read(Checkpoint.folder(trainer) / checkpoints.checkpoint_name(16))
            content["optimizer_states"] = list(content["optimizers"].values())
            trainer.strategy.load_model_state_dict(content)
            trainer.strategy.load_optimizer_state_dict(content)
            moments = pl_module.optimizers_by_role["generator"].state.values()
            cut = [*pl_module.players["generator"].parameters(), *pl_module.ema.parameters()]
            moving = [s["exp_avg"] for s in moments]
            self.held = {
                name: sum(t.to_local().numel() if hasattr(t, "to_local") else t.numel() for t in found)
                for name, found in (("weights", cut), ("moments", moving))
            }


def play(case: str, folder: Path, *, fsdp: bool) -> dict[str, int]:
    memory = Memory()
    parts = [Evaluate(mean_image, every_images=16), memory, Checkpoint(every_images=8, keep_last=9)]
    run(subject(case), folder, devices=2, callbacks=parts, fsdp=fsdp)
    return memory.held


def begin_at(images: int, folder: Path, run_dir: Path) -> None:
    """A run folder that holds one checkpoint of the run that was cut."""
    source, kept = folder / "lmsd" / "fsdp" / "checkpoints", run_dir / "checkpoints"
    kept.mkdir(parents=True)
    path = source / checkpoints.checkpoint_name(images)
    for file in (path, checkpoints.manifest_of(path)):
        (kept / file.name).write_bytes(file.read_bytes())


def _rank(rank: int, port: int, folder: Path) -> None:
    as_torchrun(rank, port)
    faulthandler.dump_traceback_later(SECONDS - 30)
    held = {}
    for case in CASES:
        for kind in ("ddp", "fsdp"):
            held[case, kind] = play(case, folder / case / kind, fsdp=kind == "fsdp")
    torch.distributed.barrier()
    if rank == 0:
        begin_at(24, folder, folder / "again")
    torch.distributed.barrier()
    run(subject("lmsd"), folder / "again", devices=2, resume_from=folder / "again", fsdp=True)
    torch.save(held, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have trained all cases, whole and cut."""
    folder = tmp_path_factory.mktemp("sharding")
    spawned(_rank, folder, seconds=SECONDS)
    return folder


def same(first: dict[str, Any], second: dict[str, Any], *, tolerance: float) -> None:
    ours, theirs = dict(checkpoints.tensors(first)), dict(checkpoints.tensors(second))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert type(value) is Tensor
        assert value.dtype == theirs[name].dtype
        assert torch.allclose(value, theirs[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("case", CASES)
def test_cut_or_whole_every_checkpoint_is_the_same(ranks: Path, case: str) -> None:
    """Weights of both players, averages and moments, after each of five batches: within 1e-10 in float64."""
    for images in range(8, 8 * BATCHES + 1, 8):
        whole, cut = (
            checkpoints.read(ranks / case / kind / "checkpoints" / checkpoints.checkpoint_name(images))
            for kind in ("ddp", "fsdp")
        )
        same(cut["state_dict"], whole["state_dict"], tolerance=1e-10)
        same({"o": cut["optimizers"]}, {"o": whole["optimizers"]}, tolerance=1e-10)
        assert cut[checkpoints.KEY]["clock"] == whole[checkpoints.KEY]["clock"]
    before = players()["generator"].state_dict()
    last = checkpoints.read(ranks / case / "fsdp")["state_dict"]
    assert any(not torch.equal(before[name], last[f"players.generator.{name}"]) for name in before)


@pytest.mark.parametrize("case", CASES)
def test_norms_losses_and_scores_are_the_same(ranks: Path, case: str) -> None:
    whole, cut = (read_metrics(ranks / case / kind / "metrics.jsonl") for kind in ("ddp", "fsdp"))
    assert len(whole) == len(cut) > BATCHES
    assert any(line.get("generator/grad_norm", 0) > 0.3 for line in cut)  # what clipping is for
    for ours, theirs in zip(cut, whole, strict=True):
        assert {**ours, "time": 0} == pytest.approx({**theirs, "time": 0}, rel=1e-5, abs=1e-6)


def test_a_rank_holds_half(ranks: Path) -> None:
    """Of the generator, its averages and its moments, but for what does not divide."""
    first, second = (torch.load(ranks / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    for case in CASES:
        size = sum(p.numel() for p in players()["generator"].parameters())
        both = [rank[case, "fsdp"] for rank in (first, second)]
        assert sum(rank["weights"] for rank in both) == 3 * size
        assert abs(both[0]["weights"] - both[1]["weights"]) < 0.1 * size
        assert sum(rank["moments"] for rank in both) == size
        assert (first[case, "ddp"]["weights"], first[case, "ddp"]["moments"]) == (3 * size, size)


def test_a_run_that_was_cut_goes_on_cut_or_in_one_process(ranks: Path, tmp_path: Path) -> None:
    unbroken = checkpoints.read(ranks / "lmsd" / "fsdp")
    assert checkpoints.read(ranks / "again")[checkpoints.KEY]["clock"]["images"] == 8 * BATCHES
    same(checkpoints.read(ranks / "again")["state_dict"], unbroken["state_dict"], tolerance=1e-12)
    begin_at(24, ranks, tmp_path)
    run(subject("lmsd"), tmp_path, resume_from=tmp_path)
    same(checkpoints.read(tmp_path)["state_dict"], unbroken["state_dict"], tolerance=1e-9)


@pytest.mark.parametrize(
    ("case", "options", "ranks", "said"),
    [
        ("lmsd", {}, 1, "shards the generator over ranks and there is one: devices=2"),
        ("lmsd", {"compile": True}, 2, "compile=true does not see"),
        ("nft", {}, 2, "keeps copies, old, reference: use trainer=ddp"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    tmp_path: Path, case: str, options: dict[str, Any], ranks: int, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run(engine(case, **options), tmp_path, datamodule=Stream(8), devices=ranks, fsdp=True)


def test_frozen_weights_are_refused(tmp_path: Path) -> None:
    cast = players()
    cast["generator"].conditioner.table.weight.requires_grad_(False)
    with pytest.raises(
        UserError, match=r"the generator's conditioner.table.weight is frozen: use trainer=ddp"
    ):
        run(engine(players=cast), tmp_path, datamodule=Stream(8), devices=2, fsdp=True)
