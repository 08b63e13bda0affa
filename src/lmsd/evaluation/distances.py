"""FD's matched form, the real-vs-real floor and their quotient, with intervals (formulas in `evaluator`).

The values come from the arrays; the jackknife needs each of them 20 times more, without a group of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics import (
    GROUPS,
    Score,
    firsts,
    frechet_without,
    infinity,
    jackknife,
    jackknife_groups,
    jackknifed,
    means_of,
)
from lmsd.metrics.matching import dealt

WIDE = 256
"""Above this number of features one halving stands for eight: an FD takes seconds there."""


@dataclass(frozen=True)
class Distances:
    """What FD has to be compared with.

    floor: FD of two label-matched real halves, mean over random halvings; infinity_floor: that without
    its 1/n bias (None: halves smaller than twice the features do not show it); matched: the same with one
    half generated from its captions; ratio: matched / floor, 1 for a perfect model.
    """

    infinity_floor: Score | None
    matched: Score
    floor: Score
    ratio: Score


@explained
def distances(
    fakes: Sequence[Tensor],
    real: Tensor,
    pairs: tuple[Tensor, Tensor],
    groups: Tensor,
    *,
    halvings: int | None = None,
) -> Distances:
    """What stands beside FD of generated features, an array [n,d] a seed, and real ones [n,d], row by row.

    pairs: disjoint rows (idx_a, idx_b) [h] with equal labels, as `matched_halves` gives them; in each of the
    halvings (None: 8, or 1 for more than 256 features) a coin deals out every pair. groups [n]: of the
    jackknife, from `row_groups`.
    """
    center = real.double().mean(dim=0)
    real, fakes = real.double() - center, [fake.double() - center for fake in fakes]
    count = halvings if halvings is not None else 8 if real.shape[1] <= WIDE else 1
    halves = [dealt(pairs, seed) for seed in range(count)]
    floor = means_of([_distance(real, real, groups, a, b) for a, b in halves])
    crossed = [half for a, b in halves for half in ((a, b), (b, a))]
    matches = [means_of([_distance(fake, real, groups, a, b) for a, b in crossed]) for fake in fakes]
    if min(floor) <= 0.0:
        raise UserError("halves of the real images have the same features: no distance has a floor")
    ratios = [[one / other for one, other in zip(found, floor, strict=True)] for found in matches]
    matched, ratio = (means_of(found) for found in (matches, ratios))
    return Distances(
        infinity_floor=infinity(floor) if len(pairs[0]) >= 2 * real.shape[1] else None,
        matched=jackknifed(matched, matches),
        floor=jackknifed(floor),
        ratio=Score(
            jackknife(ratio[0], ratio[1:], scale="log"), tuple(ratio[1:]), "log jackknife", firsts(ratios)
        ),
    )


def row_groups(rows: int, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Group [rows] of every row, one for both of a pair, so that halves stay matched when it is left out.

    Rows without a partner are dealt out in turn. Raises UserError for fewer than 40 pairs.
    """
    result = torch.arange(rows) % GROUPS
    result[pairs[0]] = result[pairs[1]] = jackknife_groups(len(pairs[0]))
    return result


def _distance(x: Tensor, y: Tensor, groups: Tensor, rows_x: Tensor, rows_y: Tensor) -> list[float]:
    """FD of some rows of x and of y: of all of them, then without each group."""
    return frechet_without(x[rows_x], y[rows_y], groups[rows_x], groups[rows_y])
