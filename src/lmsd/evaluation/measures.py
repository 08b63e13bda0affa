"""Every score that feature arrays give, with the floors that belong beside it.

name          generated against the held-out images, row i and row i of one prompt
name_floor    two label-matched halves of the held-out images, hence at n/2
name_train    as many training images, of the same labels, against the held-out ones: what a model that
              draws from its training set would get
name_real     of the held-out images themselves (the ceiling); name_shuffled: with the captions of others
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import torch
from torch import Tensor

from lmsd.evaluation.distances import distance_of, distances, row_groups
from lmsd.metrics import (
    GROUPS,
    Interval,
    Kernel,
    Manifold,
    Score,
    batch_means,
    clip_scores,
    clustered_share,
    divided,
    divided_share,
    gaussian,
    inception_scores,
    kernel_distance_by_rows,
    manifolds,
    matched_halves,
    mean_interval,
    polynomial,
    r_precision,
    stretched,
    unit_rows,
)

K = 5
"""Neighbors behind precision, recall, density and coverage."""
_SHARES = tuple(field.name for field in fields(Manifold))
LEAST_PAIRS = 2 * GROUPS
LEAST_ROWS = 400
"""Rows from which neighborhoods of five are local enough to tell precision from recall."""
CANDIDATES = 100


@dataclass(frozen=True)
class Measures:
    """Scores by kind, and what was refused, in words."""

    scores: dict[str, Score]
    notes: tuple[str, ...]


def measures(
    fakes: Sequence[Tensor],
    real: Tensor,
    keys: Sequence[int] | Sequence[str],
    *,
    training: Tensor | None = None,
    halvings: int | None = None,
) -> Measures:
    """FD, FD∞, KID (usual and paired), precision, recall, density and coverage with their floors.

    fakes: generated features, one array [n,d] a seed; real [n,d]; keys [n]: labels or captions that rows
    share; training [n,d]: features of training images with the same keys. What n is too small for is left
    out, and a note says why and what to do.
    """
    n, d = real.shape
    pairs = matched_halves(keys, 0)
    if len(pairs[0]) < LEAST_PAIRS:
        few = f"n={n} images make {len(pairs[0])} label-matched pairs, and intervals need {LEAST_PAIRS}"
        return Measures({}, (f"no distances: {few}; take a larger n",))
    groups = row_groups(n, pairs)
    found: dict[str, Score] = {}
    notes: list[str] = []
    if n >= 2 * d:
        far = distances(fakes, real, pairs, groups, halvings=halvings)
        found |= {"fd": far.fd, "fd_infinity": far.infinity, "fd_matched": far.matched}
        found |= {"fd_floor": far.floor, "fd_ratio": far.ratio}
        if far.infinity_floor is not None:
            found["fd_infinity_floor"] = far.infinity_floor
        if training is not None:
            found["fd_train"], found["fd_infinity_train"] = distance_of(training, real, groups)
    else:
        notes.append(
            f"no fd: n={n} is below {2 * d}, twice the number of features; take a larger n, an extractor "
            "with fewer features, or read kid_paired, which has no bias in n"
        )
    found |= _kernel(fakes, real, pairs, groups, training)
    if n >= LEAST_ROWS:
        found |= _shares(fakes, real, pairs, training)
    else:
        notes.append(f"no precision, recall, density and coverage: n={n} is below {LEAST_ROWS}")
    return Measures(found, tuple(notes))


def _kernel(
    fakes: Sequence[Tensor],
    real: Tensor,
    pairs: tuple[Tensor, Tensor],
    groups: Tensor,
    training: Tensor | None,
    *,
    name: str = "kid",
    kernel: Kernel = polynomial,
) -> dict[str, Score]:
    sets = {"": (fakes, real, groups), "_floor": ([real[pairs[0]]], real[pairs[1]], groups[pairs[0]])}
    if training is not None:
        sets["_train"] = ([training], real, groups)
    found: dict[str, Score] = {}
    for suffix, (ours, theirs, own) in sets.items():
        usual, paired = kernel_distance_by_rows(ours, theirs, own, kernel=kernel)
        found |= {f"{name}{suffix}": usual, f"{name}_paired{suffix}": paired}
    return found


def _shares(
    fakes: Sequence[Tensor],
    real: Tensor,
    pairs: tuple[Tensor, Tensor],
    training: Tensor | None,
) -> dict[str, Score]:
    """Precision, recall, density and coverage, their intervals from thirds of the rows."""
    sets = {"": list(fakes)} | ({} if training is None else {"_train": [training]})
    found: dict[str, Score] = {}
    for suffix, arrays in sets.items():
        every = [manifolds(array, real, k=K) for array in arrays]
        found |= {f"{name}{suffix}": _share(name, every, len(real)) for name in _SHARES}
    halves = manifolds(real[pairs[0]], real[pairs[1]], k=K)
    return found | {f"{name}_floor": _share(name, [halves], len(pairs[0])) for name in _SHARES}


def _share(name: str, every: Sequence[Sequence[Manifold]], rows: int) -> Score:
    """One of the four, of each seed's [whole, first third, ...], as the mean over the seeds."""
    values = [[float(getattr(each, name)) for each in one] for one in every]
    whole, *parts = (fmean(column) for column in zip(*values, strict=True))
    by_seed = tuple(one[0] for one in values)
    if name == "density":
        return Score(divided(whole, parts), tuple(parts), "thirds", by_seed)
    parts = stretched(whole, parts)
    return Score(divided_share(whole, parts, rows), tuple(parts), "thirds", by_seed)


def clip_distance(
    fakes: Sequence[Tensor],
    real: Tensor,
    keys: Sequence[int] | Sequence[str],
    *,
    training: Tensor | None = None,
) -> dict[str, Score]:
    """CMMD of CLIP embeddings, the kernel distance of unit vectors times 1000, with the floors of KID."""
    pairs = matched_halves(keys, 0)
    units = [unit_rows(fake) for fake in fakes]
    trained = None if training is None else unit_rows(training)
    groups = row_groups(len(real), pairs)
    found = _kernel(units, unit_rows(real), pairs, groups, trained, name="cmmd", kernel=gaussian)
    return {name: _thousandfold(score) for name, score in found.items()}


def _thousandfold(score: Score) -> Score:
    ends = score.interval
    interval = Interval(1000 * ends.value, 1000 * ends.low, 1000 * ends.high, ends.level)
    parts, by_seed = (tuple(1000 * value for value in values) for values in (score.parts, score.by_seed))
    return Score(interval, parts, score.method, by_seed)


def class_scores(fakes: Sequence[Tensor], real: Tensor, *, splits: int = 10) -> dict[str, Score]:
    """The Inception Score's formula on a classifier's logits [n,classes], of generated and of real images."""
    found = {}
    for name, arrays in (("class_score", fakes), ("class_score_real", [real])):
        by_split = [inception_scores(array, splits=splits) for array in arrays]
        scores = torch.tensor(by_split, dtype=torch.float64)
        means = tuple(scores.mean(dim=0).tolist())
        by_seed = tuple(scores.mean(dim=1).tolist())
        found[name] = Score(batch_means(fmean(by_seed), means), means, "batches", by_seed)
    return found


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


def prompts_score(values: Tensor, *, share: bool) -> Score:
    """Mean of values [n,s], s for each of n prompts; 0/1 where it is a share. Groups: rows in turn."""
    rows = values.double()
    by_seed = tuple(rows.mean(dim=0).tolist())
    parts = tuple(
        float(part.mean()) for part in (rows[group::GROUPS] for group in range(GROUPS)) if len(part)
    )
    interval = clustered_share(values) if share else mean_interval(values)
    return Score(interval, parts, "batches", by_seed)
