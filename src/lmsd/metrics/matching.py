"""Two disjoint halves of one set with the same labels in both: what a real-vs-real floor is measured on.

A floor from unmatched halves contains the distance between two label histograms, which a conditional model
that is prompted with the reference's own labels does not pay: it would flatter the model.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError


@explained
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


@explained
def dealt(pairs: tuple[Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """The pairs with a random half of them turned round."""
    turned = torch.rand(len(pairs[0]), generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(turned, pairs[1], pairs[0]), torch.where(turned, pairs[0], pairs[1])


@explained
def matched_rows(
    labels: Sequence[int] | Sequence[str], among: Sequence[int] | Sequence[str], seed: int
) -> Tensor:
    """For each of `labels` a row of `among` with the same label, int64 [n], no row twice; drawn by `seed`.

    Where most labels are their own (more distinct ones than a quarter of the rows: free captions), those that
    `among` has no row for get any of the rows left over. Raises UserError for fewer rows in `among` than
    labels, and where a label that rows share has too few.
    """
    if len(among) < len(labels):
        raise UserError(
            f"{len(among)} training samples are fewer than the {len(labels)} to stand beside them"
        )
    wanted, there = Counter(labels), Counter(among)
    short = [label for label in sorted(wanted, key=str) if there[label] < wanted[label]]
    if short and 4 * len(wanted) <= len(labels):
        first = short[0]
        raise UserError(
            f"{wanted[first]} held-out samples have '{first}' and only {there[first]} training samples do"
            + (f", and so with {len(short) - 1} more" if len(short) > 1 else "")
        )
    rows: dict[int | str, list[int]] = defaultdict(list)
    order = list(range(len(among)))
    Random(seed).shuffle(order)
    for row in order:
        rows[among[row]].append(row)
    found = [rows[label].pop() if rows.get(label) else -1 for label in labels]
    spare = sorted(row for left in rows.values() for row in left)
    Random(seed + 1).shuffle(spare)
    return torch.tensor([row if row >= 0 else spare.pop() for row in found], dtype=torch.int64)
