"""Every score that feature arrays give, with the floors that belong beside it.

name          generated against the held-out images, row i and row i of one prompt
name_floor    two label-matched halves of the held-out images, hence at n/2
name_train    as many training images, of the same labels, against the held-out ones: what a model that
              draws from its training set would get
name_real     of the held-out images themselves (the ceiling); name_shuffled: with the captions of others
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.evaluation.catalog import CANDIDATES, LOCAL
from lmsd.evaluation.distances import distances, row_groups
from lmsd.metrics import GROUPS, Score, clip_scores, matched_halves, prompts_score, r_precision
from lmsd.metrics.streaming import CLIPMMD, FrechetDistance, InceptionScore, KernelDistance, Precision, Rows

K = 5
"""Neighbors behind precision, recall, density and coverage."""
LEAST_PAIRS = 2 * GROUPS


@dataclass(frozen=True)
class Measures:
    """Scores by kind, and what was refused, in words."""

    scores: dict[str, Score]
    notes: tuple[str, ...]


@explained
def measures(
    fakes: Sequence[Tensor],
    real: Tensor,
    keys: Sequence[int] | Sequence[str],
    *,
    training: Tensor | None = None,
    halvings: int | None = None,
    kernel: bool = True,
) -> Measures:
    """FD, FD∞, KID (usual and paired), precision, recall, density and coverage with their floors.

    fakes: generated features, one array [n,d] a seed; real [n,d]; keys [n]: labels or captions that rows
    share; training [n,d]: features of training images with the same keys; kernel: KID too. What n is too
    small for is left out, and a note says why and what to do.
    """
    n, d = real.shape
    pairs = matched_halves(keys, 0)
    if len(pairs[0]) < LEAST_PAIRS:
        return Measures({}, (too_few(keys, len(pairs[0])),))
    groups = row_groups(n, pairs)
    found: dict[str, Score] = {}
    notes: list[str] = []
    sets = {"": list(fakes)} | ({} if training is None else {"_train": [training]})
    if n >= 2 * d:
        for suffix, arrays in sets.items():
            found |= _named(_fed(FrechetDistance(sync=False), arrays, real).scores(groups), suffix)
        far = distances(fakes, real, pairs, groups, halvings=halvings)
        found |= {"fd_matched": far.matched, "fd_floor": far.floor, "fd_ratio": far.ratio}
        if far.infinity_floor is not None:
            found["fd_infinity_floor"] = far.infinity_floor
    else:
        notes.append(
            f"no fd: n={n} is below {2 * d}, twice the number of features; take a larger n, an extractor "
            "with fewer features, or read kid_paired, which has no bias in n"
        )
    if kernel:
        found |= _kernel(KernelDistance(sync=False), fakes, real, pairs, groups, training)
    if n >= LOCAL:
        for suffix, arrays in sets.items():
            found |= _named(_fed(Precision(k=K, sync=False), arrays, real).scores(), suffix)
        found |= _named(_fed(Precision(k=K, sync=False), [real[pairs[0]]], real[pairs[1]]).scores(), "_floor")
    else:
        notes.append(f"no precision, recall, density and coverage: n={n} is below {LOCAL}")
    return Measures(found, tuple(notes))


def too_few(keys: Sequence[int] | Sequence[str], pairs: int) -> str:
    """Why images with these keys have no distances; where all keys are one, nothing is matched by them."""
    matched = "label-matched " * (len(set(map(str, keys))) > 1)
    made = f"n={len(keys)} images make {pairs} {matched}pairs, and intervals need {LEAST_PAIRS}"
    return f"no distances: {made}; take a larger n"


@explained
def drawn(total: int, n: int) -> list[int]:
    """The n rows that a split of so many images is scored on, the same at every evaluation."""
    rows: list[int] = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:n].tolist()
    return rows


@explained
def alike(labels: Tensor | None, captions: list[str] | None, n: int) -> list[int] | list[str]:
    """What makes n rows alike: labels, else captions, else nothing does."""
    if labels is not None:
        found: list[int] = labels.tolist()
        return found
    return [""] * n if captions is None else captions


def _fed(metric: Rows, fakes: Sequence[Tensor], real: Tensor | None = None) -> Rows:
    """A metric that has seen the generated rows of every seed, and the real ones, and no others.

    It is one process's own (sync=False): the rows of all ranks have been put together already.
    """
    metric.reset()
    for seed, fake in enumerate(fakes):
        metric.update(fake, seed=seed)
    if real is not None:
        metric.update(real, real=True)
    return metric


def _named(scores: Mapping[str, Score], suffix: str) -> dict[str, Score]:
    return {f"{name}{suffix}": score for name, score in scores.items()}


def _kernel(
    metric: Rows,
    fakes: Sequence[Tensor],
    real: Tensor,
    pairs: tuple[Tensor, Tensor],
    groups: Tensor,
    training: Tensor | None,
) -> dict[str, Score]:
    """A kernel distance, usual and paired, with its floors."""
    found = _named(_fed(metric, fakes, real).scores(groups), "")
    found |= _named(_fed(metric, [real[pairs[0]]], real[pairs[1]]).scores(groups[pairs[0]]), "_floor")
    if training is not None:
        found |= _named(_fed(metric, [training], real).scores(groups), "_train")
    return found


@explained
def clip_distance(
    fakes: Sequence[Tensor],
    real: Tensor,
    keys: Sequence[int] | Sequence[str],
    *,
    training: Tensor | None = None,
) -> dict[str, Score]:
    """CMMD of CLIP embeddings, the kernel distance of unit vectors times 1000, with the floors of KID."""
    pairs = matched_halves(keys, 0)
    return _kernel(CLIPMMD(sync=False), fakes, real, pairs, row_groups(len(real), pairs), training)


@explained
def class_scores(fakes: Sequence[Tensor], real: Tensor, *, splits: int = 10) -> dict[str, Score]:
    """The Inception Score's formula on a classifier's logits [n,classes], of generated and of real images."""
    found: dict[str, Score] = {}
    for suffix, arrays in (("", fakes), ("_real", [real])):
        found |= _named(_fed(InceptionScore(splits=splits, sync=False), arrays).scores(), suffix)
    return found


@explained
def alignment(fakes: Sequence[Tensor], real: Tensor, texts: Tensor, *, seed: int = 0) -> dict[str, Score]:
    """CLIP score and R-precision of image embeddings, one array [n,d] a seed, and their captions' [n,d].

    R-precision, among 100, needs as many captions. Beside them those of the real images, and of generated
    ones with the captions of others (of the next row that has another one; rows are in random order), where
    there are any.
    """
    captions = texts.unique(dim=0, return_inverse=True)[1]
    sets = {"": (list(fakes), texts), "_real": ([real], texts)}
    if captions.unique().numel() > 1:
        sets["_shuffled"] = (list(fakes), texts[_others(captions)])

    def scored(measure: Callable[[Tensor, Tensor], Tensor], share: bool) -> dict[str, Score]:
        return {
            suffix: prompts_score(torch.stack([measure(a, text) for a in arrays], dim=1), share=share)
            for suffix, (arrays, text) in sets.items()
        }

    clip = scored(clip_scores, False)
    found = {f"clip_score{suffix}": clip[suffix] for suffix in sets}
    if len(texts.unique(dim=0)) >= CANDIDATES:
        precise = scored(lambda v, t: r_precision(v, t, candidates=CANDIDATES, seed=seed), True)
        found |= {f"r_precision{suffix}": precise[suffix] for suffix in sets}
    return found


def _others(captions: Tensor) -> Tensor:
    """For each row the next one, cyclically, whose caption's number [n] is another; there are two."""
    rows = torch.arange(len(captions))
    found = rows.clone()
    for step in range(1, len(rows)):
        waiting = rows[found == rows]
        if not len(waiting):
            break
        next_ones = (waiting + step) % len(rows)
        found[waiting] = torch.where(captions[next_ones] != captions[waiting], next_ones, waiting)
    return found
