"""The Inception Score, and the same formula for any other classifier.

    IS = exp E_x KL(p(c|x) ‖ p(c)),    p(c) = E_x p(c|x)                        (Salimans et al. 2016, eq. 1)

Its estimate is biased in n like a mutual information, so that it is taken over splits of equal size and its
mean reported; the splits are disjoint, hence independent, and t of their spread is an interval of the
expected score at that size. It knows no real data: a classifier's favorite images score highest.
"""

from collections.abc import Sequence
from statistics import fmean

import torch

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features
from lmsd.metrics.intervals import Interval, Score, batch_means


@explained
def inception_scores(logits: Features, *, splits: int = 10) -> list[float]:
    """The score of each of `splits` consecutive parts of the logits [n,classes], 1 ≤ score ≤ classes.

    Parts are of equal size but for one image. Raises UserError for fewer than two images a part.
    """
    array = as_features(logits, "logits")
    if splits < 1:
        raise UserError(f"splits={splits}: the score is taken over one part of the images or more")
    if len(array) < 2 * splits:
        raise UserError(f"{len(array)} images are too few for {splits} splits: take n ≥ {2 * splits}")
    found = []
    for part in array.tensor_split(splits):
        log_p = part.log_softmax(dim=1)
        p = log_p.exp()
        marginal = p.mean(dim=0, keepdim=True).log()
        terms = torch.where(p == 0.0, 0.0, p * (log_p - marginal))  # 0 log 0 = 0
        found.append(float(terms.sum(dim=1).mean().exp()))
    return found


@explained
def inception_score_by_seed(arrays: Sequence[Features], *, splits: int = 10) -> Score:
    """The score of several arrays of logits [n,classes], one a seed: mean, and interval over the splits."""
    scores = torch.tensor([inception_scores(each, splits=splits) for each in arrays], dtype=torch.float64)
    means, by_seed = tuple(scores.mean(dim=0).tolist()), tuple(scores.mean(dim=1).tolist())
    return Score(batch_means(fmean(by_seed), means), means, "batches", by_seed)


@explained
def inception_score(logits: Features, *, splits: int = 10) -> Interval:
    """Mean over the splits with the interval that their spread gives (module text); order your rows first.

    One split has no spread: low and high are nan.
    """
    found = inception_scores(logits, splits=splits)
    return batch_means(sum(found) / len(found), found)
