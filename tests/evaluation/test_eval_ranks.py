"""Two processes against one: the same scores, bit for bit, and the same refusals."""

import json
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_set import TinySet, blobs

from lmsd.errors import UserError
from lmsd.evaluation import Evaluator
from lmsd.features.cnn import LMSDCNN, Extractor, Recipe
from lmsd.features.training import Training
from lmsd.ranks import by_chunks, by_first, first_alone, rank_and_world


def extractor() -> Extractor:
    """Untrained, of a fixed seed: here only that everybody has the same matters."""
    torch.manual_seed(0)
    net = LMSDCNN(1, 8, 4).eval()
    classes = ("0", "1", "2", "3")
    recipe = Recipe(1, 8, "label", classes, Training(0, 1, 0.0, "none", 0), 0, "", "")
    return Extractor(net.requires_grad_(False), recipe, "ab12" * 16)


def generate(batch, rng):
    seeds = rng.integer(0, 2**31, (), "image").tolist()
    return torch.cat([blobs(label[None], seed) for label, seed in zip(batch.label, seeds, strict=True)])


def scored(folder: Path) -> str:
    """The record of 410 samples of two seeds, in chunks of 60: the last one is cut short."""
    torch.set_num_threads(1)
    evaluator = Evaluator(
        TinySet(410, 2), extractor(), train=TinySet(450, 1), chunk=60, halvings=1, cache=folder / "cache"
    )
    scores = evaluator(
        generate, seeds=(0, 1), keep_images=folder / "images", keep_features=folder / "kept.safetensors"
    )
    return json.dumps(scores.as_json())


def no_room() -> None:
    raise OSError("no room")


def work(rank: int, port: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    seen: list[int] = []

    def refused(part: slice) -> int:
        seen.append(part.start)
        if part.start == 5:
            raise UserError("no fifth")
        return part.start

    with pytest.raises(UserError, match="no fifth"):
        by_chunks(8, 1, refused)
    with pytest.raises(OSError, match="no room"):
        by_first(no_room)
    with pytest.raises(RuntimeError, match="rank 0: ZeroDivisionError"):
        by_first(lambda: 1 // 0)
    with first_alone():
        if rank == 0:
            (folder / "left").write_text("by the first")
        assert (folder / "left").is_file()
    told = by_first(lambda: 7)
    record = scored(folder)
    (folder / f"rank{rank}.json").write_text(json.dumps([record, sorted(seen), told, rank_and_world()]))
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_ranks_score_as_one(tmp_path):
    alone = tmp_path / "alone"
    single = scored(alone)
    mp.start_processes(work, (free_port(), tmp_path), nprocs=2, start_method="spawn")
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0][0] == ranks[1][0] == single
    assert "precision" in single
    assert [each[1] for each in ranks] == [[0, 2, 4], [1, 3, 5]], "each on one rank, none after the failure"
    assert [each[2:] for each in ranks] == [[7, [0, 2]], [7, [1, 2]]]
    names = sorted(path.relative_to(alone).as_posix() for path in alone.glob("images/*/*.png"))
    assert len(names) == 820
    for name in names:
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
    assert (tmp_path / "kept.safetensors").read_bytes() == (alone / "kept.safetensors").read_bytes()


def test_without_a_process_group_there_is_one_rank():
    assert rank_and_world() == (0, 1)
    assert by_chunks(7, 3, lambda part: (part.start, part.stop)) == [(0, 3), (3, 6), (6, 7)]
    with pytest.raises(UserError, match="mine"):
        by_first(lambda: (_ for _ in ()).throw(UserError("mine")))
