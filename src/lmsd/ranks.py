"""Which rank this process is; and work split so that results do not depend on how many ranks there are.

Chunk c is done whole by rank c mod W and goes to its place in the list of results, which every rank gets. The
ranks meet after each round of W chunks: if one of them fails or is asked to end, all leave together there.
Without a process group there is one rank.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lmsd import stops
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used: a look at the options does without it
    from torch import Tensor

Part = TypeVar("Part")


def launched_rank() -> int:
    """The rank that this process was started as, known even without a process group."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))


def launched_world() -> int:
    """How many ranks were started, known even without a process group; 1 for a process by itself."""
    if "RANK" in os.environ or "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1"))
    return int(os.environ.get("SLURM_NTASKS", "1")) if "SLURM_PROCID" in os.environ else 1


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks) in the process group; (0, 1) without one."""
    import torch.distributed as dist

    alone = not (dist.is_available() and dist.is_initialized())
    return (0, 1) if alone else (dist.get_rank(), dist.get_world_size())


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return rank_and_world()[1]


def shares(batch_size: int, ranks: int, micro_batches: int) -> int:
    """Samples in one micro-batch of one rank. Raises UserError if the global batch does not divide."""
    parts = ranks * micro_batches
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f"batch_size={batch_size} (global) does not divide by {ranks} devices x {micro_batches} "
            f"micro-batches: take a multiple of {parts}"
        )
    return batch_size // parts


def union(numbers: set[int]) -> set[int]:
    """The union of all ranks' numbers."""
    if world_size() == 1:
        return numbers
    import torch.distributed as dist

    found: list[set[int]] = [set()] * world_size()
    dist.all_gather_object(found, numbers)
    return set().union(*found)


def gather(value: "Tensor") -> "Tensor":
    """All ranks' rows, one rank after the other; the tensor itself in a single process."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


@contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 runs the block before the others do, so that they find what it has left on disk."""
    import torch.distributed as dist

    rank, world = rank_and_world()
    if world > 1 and rank > 0:
        dist.barrier()
    try:
        yield
    finally:
        if world > 1 and rank == 0:
            dist.barrier()


def by_chunks(rows: int, chunk: int, work: Callable[[slice], Part]) -> list[Part]:
    """work(slice) for every chunk of 0 ... rows, each on one rank; all results in order, on every rank.

    A rank whose work fails makes all ranks fail, with its UserError or OSError, else with a RuntimeError.
    Raises BrokenOff on all ranks if one of several was asked to end.
    """
    rank, world = rank_and_world()
    slices = [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    found: list[Part] = []
    for first in range(0, len(slices), world):
        mine = slices[first:][rank : rank + 1]
        for parts in _told(partial(_each, work, mine), gather=True):
            found += parts
    return found


def _each(work: Callable[[slice], Part], slices: Sequence[slice]) -> list[Part]:
    if world_size() > 1 and stops.noted:
        raise stops.BrokenOff
    return [work(part) for part in slices]


def by_first(work: Callable[[], Part]) -> Part:
    """work() of rank 0, sent to all; if it fails, all fail as in `by_chunks`."""
    return _told(work if rank_and_world()[0] == 0 else None, gather=False)[0]


def _told(work: Callable[[], Part] | None, *, gather: bool) -> Sequence[Part]:
    """Every rank's result (or only rank 0's), once all know that none has failed."""
    if world_size() == 1:
        assert work is not None
        return [work()]
    import torch.distributed as dist

    found: Part | None = None
    failure: Exception | None = None
    try:
        found = None if work is None else work()
    except stops.BrokenOff as asked:
        failure = asked
    except UserError as error:
        failure = UserError(str(error))
    except OSError as error:
        failure = OSError(str(error))
    except Exception as error:
        failure = RuntimeError(f"rank {rank_and_world()[0]}: {type(error).__name__}: {error}")
    told: list[tuple[Part | None, Exception | None]] = [(found, failure)] * (world_size() if gather else 1)
    if gather:
        dist.all_gather_object(told, (found, failure))
    else:
        dist.broadcast_object_list(told, src=0)
    for _, failed in told:
        if failed is not None:
            raise failed
    return [part for part, _ in told]  # type: ignore[misc]
