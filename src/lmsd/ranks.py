"""Work that is split by the chunk's number, so that no result knows how many processes there were.

Chunk c is done by rank c mod W, whole, and goes to its place in the list of all; every rank gets them all.
The ranks meet after each round of W chunks: there all leave together where one of them fails, or is asked to
end. Without a process group there is one rank.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch.distributed as dist

from lmsd import stops
from lmsd.errors import UserError

Part = TypeVar("Part")


def place() -> tuple[int, int]:
    """(rank, world size)."""
    alone = not (dist.is_available() and dist.is_initialized())
    return (0, 1) if alone else (dist.get_rank(), dist.get_world_size())


@contextmanager
def first_alone() -> Iterator[None]:
    """Rank 0 goes through the block before the others do, who then find what it has left on disk."""
    rank, world = place()
    if world > 1 and rank > 0:
        dist.barrier()
    try:
        yield
    finally:
        if world > 1 and rank == 0:
            dist.barrier()


def by_chunks(rows: int, chunk: int, work: Callable[[slice], Part]) -> list[Part]:
    """work(slice) for every chunk of 0 ... rows, each on one rank; all results in order, on every rank.

    A rank whose work fails makes every rank fail: with its UserError or OSError, else with RuntimeError.
    Raises BrokenOff on all where one of several was asked to end.
    """
    rank, world = place()
    slices = [slice(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    found: list[Part] = []
    for first in range(0, len(slices), world):
        mine = slices[first:][rank : rank + 1]
        for parts in _told(partial(_each, work, mine), gather=True):
            found += parts
    return found


def _each(work: Callable[[slice], Part], slices: Sequence[slice]) -> list[Part]:
    if place()[1] > 1 and stops.noted:
        raise stops.BrokenOff
    return [work(part) for part in slices]


def by_first(work: Callable[[], Part]) -> Part:
    """work() of rank 0, told to all; where it fails, all fail as in `by_chunks`."""
    return _told(work if place()[0] == 0 else None, gather=False)[0]


def _told(work: Callable[[], Part] | None, *, gather: bool) -> Sequence[Part]:
    """Each rank's result (or rank 0's alone), after all know that none has failed."""
    if place()[1] == 1:
        assert work is not None
        return [work()]
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
        failure = RuntimeError(f"rank {place()[0]}: {type(error).__name__}: {error}")
    told: list[tuple[Part | None, Exception | None]] = [(found, failure)] * (place()[1] if gather else 1)
    if gather:
        dist.all_gather_object(told, (found, failure))
    else:
        dist.broadcast_object_list(told, src=0)
    for _, failed in told:
        if failed is not None:
            raise failed
    return [part for part, _ in told]  # type: ignore[misc]
