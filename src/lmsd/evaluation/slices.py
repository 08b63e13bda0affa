"""Scores of parts of a split: of one class, or of all captions that hold one word.

The share of right prompts, as of the whole, and the kernel distance: it has no bias in n, and so stands for
the few samples of a part too, where FD would need twice as many as there are features.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.metrics import GROUPS, Score, kernel_distance_by_rows, prompts_score

LEAST, MOST = 2 * GROUPS, 30
"""Rows that a slice needs, and slices at most, the largest ones."""
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Slice:
    """Scores by name on the n rows that have something in common."""

    n: int
    scores: Mapping[str, Score]


@explained
def rows_by_slice(labels: Sequence[int] | None, captions: Sequence[str] | None) -> dict[str, Tensor]:
    """Rows of each label, or of each word that some captions hold and others do not; in order of names."""
    if labels is not None:
        named = [{str(label)} for label in labels]
    else:
        named = [set(_WORD.findall(caption.lower())) for caption in captions or ()]
    rows: dict[str, list[int]] = {}
    for row, names in enumerate(named):
        for name in names:
            rows.setdefault(name, []).append(row)
    kept = [name for name in rows if LEAST <= len(rows[name]) < len(named)]
    largest = sorted(kept, key=lambda name: (-len(rows[name]), name))[:MOST]
    order = sorted(largest, key=lambda name: (int(name) if labels is not None else 0, name))
    return {name: torch.tensor(rows[name]) for name in order}


@explained
def sliced(
    fakes: Sequence[Tensor],
    real: Tensor,
    right: Tensor | None,
    rows: Mapping[str, Tensor],
    *,
    extractor: str,
    real_right: Tensor | None = None,
) -> dict[str, Slice]:
    """Scores of every slice: generated features, one array [n,d] a seed, real ones [n,d], right [n,s].

    extractor: what made the features, for the scores' names; real_right [n]: right of the real images.
    """
    found = {}
    for name, chosen in rows.items():
        groups = torch.arange(len(chosen)) % GROUPS
        kid, paired = kernel_distance_by_rows([fake[chosen] for fake in fakes], real[chosen], groups)
        scores = {f"kid[{extractor}]": kid, f"kid_paired[{extractor}]": paired}
        if right is not None:
            scores["right"] = prompts_score(right[chosen], share=True)
        if real_right is not None:
            scores["right_real"] = prompts_score(real_right[chosen, None], share=True)
        found[name] = Slice(len(chosen), scores)
    return found
