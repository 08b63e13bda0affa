"""Tasks learned one after the other: the matrix of scores, what was forgotten and what carried over.

R[i, j]     score on task j after task i; R[0, ·]: before any task (an untrained net, or where all begin)
average     mean_j R[T, j]
forgetting  mean_{j<T} (max_{0<i<T} R[i, j] − R[T, j])          0 is none; for errors min and the other sign
transfer    mean_{1<j≤T} (R[j − 1, j] − R[0, j])                what earlier tasks bring to a later one

With several seeds each number is a mean over seeds with its t-interval (Lopez-Paz and Ranzato 2017;
Chaudhry et al. 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.metrics.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Learned:
    """Average, forgetting and transfer of a method, each with its interval over seeds."""

    average: Interval
    forgetting: Interval
    transfer: Interval


def learned(matrices: Sequence[Sequence[Sequence[float]]], *, higher: bool = True) -> Learned:
    """What matrices [T + 1, T], one a seed, say; higher: whether more is better, as for right prompts.

    Raises UserError for matrices of another form, and for fewer than two tasks.
    """
    found = torch.tensor(matrices, dtype=torch.float64)
    if found.ndim != 3 or found.shape[1] != found.shape[2] + 1 or found.shape[2] < 2:
        raise UserError(
            f"a matrix of scores has a row for the start and one after each of two tasks or more, not "
            f"{list(found.shape[1:])}"
        )
    scores = found if higher else -found
    tasks = scores.shape[2]
    last = scores[:, -1]
    best = scores[:, 1:-1].amax(1)
    before = torch.stack([scores[:, j, j] - scores[:, 0, j] for j in range(1, tasks)], 1)
    lost = (best - last)[:, : tasks - 1]
    average = last.mean(1) if higher else -last.mean(1)
    return Learned(*map(_interval, (average, lost.mean(1), before.mean(1))))


def _interval(values: Tensor) -> Interval:
    """The mean over seeds; one seed has no interval."""
    if len(values) > 1:
        return mean_interval(values[:, None])
    nothing = float("nan")
    return Interval(float(values[0]), nothing, nothing)


def table(found: dict[str, Learned], *, unit: str) -> str:
    """A row for each method, as Markdown."""
    rows = [f"| method | average, {unit} | forgetting | forward transfer |", "|---|---|---|---|"]
    rows += [f"| {name} | {one.average} | {one.forgetting} | {one.transfer} |" for name, one in found.items()]
    return "\n".join(rows)
