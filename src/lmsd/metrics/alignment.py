"""Do images show their captions? Scores from paired embeddings of images and texts.

    CLIP score  = 2.5 max(cos(v_i, t_i), 0)                                      (Hessel et al. 2021, eq. 1)
    R-precision = 1[t_i is the nearest of t_i and 99 other captions]               (Park et al. 2021; R = 1)

Both are means over images, so an interval is that of a mean over prompts; images of one prompt (its seeds)
form one cluster. The ceiling is the same score of real images, the floor that of shuffled captions.
"""

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.metrics.frechet import Features
from lmsd.metrics.kernel import unit_rows


def clip_scores(images: Features, texts: Features) -> Tensor:
    """2.5 max(cos, 0) [n] of each image's embedding [n,d] and its own text's [n,d]."""
    v, t = _paired(images, texts)
    return 2.5 * (v * t).sum(dim=1).clamp(min=0.0)


def r_precision(images: Features, texts: Features, *, candidates: int = 100, seed: int = 0) -> Tensor:
    """Whether each image's own text beats candidates − 1 others, drawn by `seed` [n]; ties lose.

    Others with the same embedding (the same caption) do not count against it. Chance is 1/candidates.
    """
    v, t = _paired(images, texts)
    n = len(v)
    if not 2 <= candidates <= n:
        raise UserError(f"R-precision among {candidates} captions needs as many rows, and there are {n}")
    own = (v * t).sum(dim=1)
    generator = torch.Generator().manual_seed(seed)
    hits = []
    for row in range(n):
        others = torch.randperm(n - 1, generator=generator)[: candidates - 1]
        rivals = t[others + (others >= row)]
        different = (rivals - t[row]).abs().amax(dim=1) > 1e-9
        hits.append(bool((rivals[different] @ v[row] < own[row]).all()))
    return torch.tensor(hits)


def _paired(images: Features, texts: Features) -> tuple[Tensor, Tensor]:
    v, t = unit_rows(images, "images"), unit_rows(texts, "texts")
    if v.shape != t.shape:
        raise UserError(f"images {list(v.shape)} and texts {list(t.shape)} must be embeddings row by row")
    return v, t
