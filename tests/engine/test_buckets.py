"""Gradients in buckets on two gloo ranks: the mean to the last bit, early on their way, and never a hang."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from two_ranks import as_torchrun, spawned

from lmsd.engine.buckets import LARGE, SHARED, Order, Reducer

pytestmark = pytest.mark.slow
SECONDS = 300


class Net(nn.Module):
    """Eight large layers, small ones between, a convolution in channels_last, and parts that may rest."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(640, 640) for _ in range(8)])
        self.small = nn.ModuleList([nn.Linear(640, 4) for _ in range(8)])
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.spare, self.never = nn.Linear(640, 640), nn.Linear(7, 7)
        self.to(dtype)
        self.conv.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, uses: tuple[str, ...]) -> Tensor:
        found = self.conv(x[:, :48].view(-1, 3, 4, 4)).square().mean()
        for layer, small in zip(self.layers, self.small, strict=True):
            x = torch.tanh(layer(x))
            if "small" in uses:
                found = found + small(x).square().mean()
        return found + (self.spare(x).square().mean() if "spare" in uses else 0.0) + x.square().mean()


def in_a_row(parameters: list[nn.Parameter], grads: list[Tensor | None]) -> Tensor:
    pairs = zip(parameters, grads, strict=True)
    return torch.cat([(torch.zeros_like(p) if grad is None else grad).flatten() for p, grad in pairs])


def turn(net: Net, reducer: Reducer, seed: int, uses: tuple[str, ...], *, pieces: int = 1) -> dict[str, Any]:
    """One turn, and the mean as one flat reduction of local gradients makes it."""
    rank = dist.get_rank()
    draw = torch.Generator().manual_seed(100 * seed + rank)
    batches = [torch.randn(16, 640, generator=draw, dtype=torch.float64) for _ in range(pieces)]
    alone = copy.deepcopy(net)
    for batch in batches:
        (alone(batch.to(alone.never.weight), uses) / pieces).backward()
    local = [p.grad for p in alone.parameters()]
    flat = in_a_row(list(net.parameters()), local)
    dist.all_reduce(flat)
    parameters = list(net.parameters())
    before, early = reducer.elements, reducer.early
    for number, batch in enumerate(batches):
        with reducer.sending(parameters, last=number == pieces - 1):
            (net(batch.to(net.never.weight), uses) / pieces).backward()
    reducer(parameters)
    sent = [p.grad for p in parameters]
    ours = in_a_row(parameters, sent)
    absent = {name for name, p in net.named_parameters() if p.grad is None}
    layouts = all(p.grad is None or p.grad.stride() == p.stride() for p in parameters)
    for p in parameters:
        p.grad = None
    return {
        "equal": torch.equal(ours, flat / 2),
        "digest": ours.double().sum().item(),
        "absent": absent,
        "layouts": layouts,
        "sent": reducer.elements - before,
        "early": (reducer.early - early) / flat.numel(),
        "most": reducer.most,
    }


ALL = ("small", "spare")
TURNS: dict[str, Callable[[int, int], tuple[str, ...]]] = {
    # what a rank uses in turn k
    "all": lambda rank, k: ALL,
    "unused on one rank": lambda rank, k: ALL if rank == 0 or k < 2 else ("small",),
    "unused on the first": lambda rank, k: ALL if rank == 1 else ("small",),
    "another phase": lambda rank, k: ALL if k < 2 else ("small",),
    "in turns": lambda rank, k: (("small",), ("spare",))[(k + rank) % 2],
}


def _rank(rank: int, port: int, folder: Path) -> None:
    as_torchrun(rank, port)
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for case, uses in TURNS.items():
        torch.manual_seed(0)
        net, reducer = Net(), Reducer()
        found[case] = [turn(net, reducer, k, uses(rank, k)) for k in range(5)]
    torch.manual_seed(0)
    net, reducer = Net(), Reducer()
    found["accumulating"] = [turn(net, reducer, k, ALL, pieces=3) for k in range(3)]
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("buckets")
    spawned(_rank, folder, seconds=SECONDS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("case", [*TURNS, "accumulating"])
def test_the_mean_to_the_last_bit_whatever_a_rank_uses(both: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in both)
    for ours, theirs in zip(first, second, strict=True):
        assert ours["equal"]
        assert theirs["equal"]
        assert ours["digest"] == theirs["digest"]
        assert ours["layouts"]
        assert ours["absent"] == theirs["absent"] >= {"never.weight", "never.bias"}


def test_what_no_rank_uses_has_no_gradient(both: list[dict[str, Any]]) -> None:
    spare = {"spare.weight", "spare.bias"}
    absent = [found["absent"] for found in both[0]["another phase"]]
    assert [spare <= found for found in absent] == [False, False, True, True, True]
    assert not any(spare <= found["absent"] for found in both[0]["unused on one rank"])


def test_numbers_are_sent_once_also_when_they_accumulate(both: list[dict[str, Any]]) -> None:
    parameters = list(Net().parameters())
    numbers = sum(p.numel() for p in parameters) + len(parameters) + 1
    for found in [*both[0]["accumulating"], *both[1]["in turns"]]:
        assert found["sent"] == numbers


def test_four_fifths_are_on_their_way_before_the_backward_pass_ends(both: list[dict[str, Any]]) -> None:
    for rank in both:
        for case in ("all", "accumulating", "another phase"):
            late = rank[case][2 if case == "another phase" else 1 :]
            assert late[-1]["early"] >= 0.8, case
            assert all(found["most"] <= 64 << 20 for found in late)
        assert rank["another phase"][2]["early"] < rank["another phase"][-1]["early"]


def test_large_parameters_are_buckets_by_themselves() -> None:
    sizes = [LARGE, 10, SHARED - 20, 20, LARGE + 1, 5]
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    parameters.append(nn.Parameter(torch.zeros(5, dtype=torch.float64)))
    found = Order(parameters, list(range(7))).buckets()
    assert found[0] == [0]
    assert sorted(place for bucket in found for place in bucket) == list(range(7))
    assert all(
        sum(parameters[place].numel() for place in bucket) <= SHARED or len(bucket) == 1 for bucket in found
    )
    assert found[-1] == [6]
