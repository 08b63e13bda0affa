"""Two disjoint halves of one set with the same labels in both: what a real-vs-real floor is measured on.

A floor from unmatched halves contains the distance between two label histograms, which a conditional model
that is prompted with the reference's own labels does not pay: it would flatter the model.
"""

from collections import defaultdict
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from lmsd.errors import UserError


def matched_halves(labels: Sequence[int] | Sequence[str] | Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint row numbers idx_a, idx_b, int64 [h] each, with labels[idx_a[k]] == labels[idx_b[k]].

    Equal labels (or captions) are paired at random and each pair is dealt out by a coin; an odd one is left
    out. Where most labels are their own (more distinct ones than a quarter of the rows: free captions), the
    odd ones are paired with their neighbor in caption order instead, so that h stays near half the rows.
    """
    values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    random = Random(seed)
    rows: dict[int | str, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        rows[value].append(row)
    odd: list[int] = []
    pairs: list[tuple[int, int]] = []
    for value in sorted(rows):
        members = rows[value]
        random.shuffle(members)
        if len(members) % 2:
            odd.append(members.pop())
        pairs += zip(members[::2], members[1::2], strict=True)
    if 4 * len(rows) > len(values):
        pairs += zip(odd[: len(odd) // 2 * 2 : 2], odd[1::2], strict=True)
    if not pairs:
        raise UserError(f"no two of {len(values)} rows share a label: the floor needs a larger held-out set")
    pairs = [pair if random.random() < 0.5 else (pair[1], pair[0]) for pair in pairs]
    first, second = torch.tensor(pairs, dtype=torch.int64).T
    return first.contiguous(), second.contiguous()
