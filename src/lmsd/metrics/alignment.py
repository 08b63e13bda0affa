"""Do images show their captions? Scores from paired embeddings of images and texts.

    CLIP score  = 2.5 max(cos(v_i, t_i), 0)                                      (Hessel et al. 2021, eq. 1)
    R-precision = 1[t_i is the nearest of t_i and 99 other captions]               (Park et al. 2021; R = 1)

Both are means over images, so an interval is that of a mean over prompts; images of one prompt (its seeds)
form one cluster. The ceiling is the same score of real images, the floor that of shuffled captions.
"""

import torch
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features
from lmsd.metrics.kernel import unit_rows


@explained
def clip_scores(images: Features, texts: Features) -> Tensor:
    """2.5 max(cos, 0) [n] of each image's embedding [n,d] and its own text's [n,d]."""
    v, t = _paired(images, texts)
    return 2.5 * (v * t).sum(dim=1).clamp(min=0.0)


@explained
def r_precision(images: Features, texts: Features, *, candidates: int = 100, seed: int = 0) -> Tensor:
    """Whether each image's own text beats candidates − 1 other ones, drawn by `seed` [n]; ties lose.

    Equal rows of `texts` are one caption. Chance is 1/candidates. Raises UserError for fewer captions.
    """
    v, t = _paired(images, texts)
    captions, own = t.unique(dim=0, return_inverse=True)
    if not 2 <= candidates <= len(captions):
        there = f"there are {len(captions)}"
        raise UserError(f"R-precision among {candidates} captions needs as many different ones, and {there}")
    generator = torch.Generator().manual_seed(seed)
    hits = []
    for row, number in enumerate(own.tolist()):
        others = torch.randperm(len(captions) - 1, generator=generator)[: candidates - 1]
        rivals = captions[others + (others >= number)]
        hits.append(bool((rivals @ v[row] < t[row] @ v[row]).all()))
    return torch.tensor(hits)


def _paired(images: Features, texts: Features) -> tuple[Tensor, Tensor]:
    v, t = unit_rows(images, "images"), unit_rows(texts, "texts")
    if v.shape != t.shape:
        raise UserError(f"images {list(v.shape)} and texts {list(t.shape)} must be embeddings row by row")
    return v, t
