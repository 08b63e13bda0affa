"""lmsd-ssl: the classifier's net, trained on the same images without a label or a word (VICReg).

Of each image two views are made, z = head(f(view)) [n,d], and the loss over a batch is

    10 mean |z − z'|² + 25 mean_j max(0, 1 − √(Var z_j + ε)) + 1/d Σ_{i≠j} Cov(z)²_ij

its last two terms the mean of both views' (Bardes et al. 2022, eq. 1 to 6; their first weight is 25, which is
too much for so short a training): alike where the image is one, no feature dead, no two the same. It needs
neither pairs of other images nor large batches, so 128 images a step do on a CPU, and features without
correlation are what FD and whitening want: a full covariance.

A view is the image shifted by up to an eighth, mirrored where the data allow it, and a quarter of its 4×4
blocks hidden. Nothing is resized, recolored or blurred: what a view changes the features forget, and they are
to see grids, contrast, blur and noise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmsd.errors import UserError
from lmsd.features.base import ImageSet
from lmsd.features.cnn import FEATURES, LMSDCNN, Extractor, finished, recipe_of
from lmsd.features.training import Augment, Training, augmented, fit, loaded
from lmsd.types import Progress, scale

EMBEDDED = 128
"""Width of what the loss is taken of; its head is thrown away."""
_BLOCKS, _HIDDEN = 4, 0.25
_LIKE, _SPREAD, _EPS = 10.0, 25.0, 1e-4


def train_without_labels(
    train: ImageSet,
    *,
    augment: Augment = "shift",
    images: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.004,
    seed: int = 0,
    data: str = "",
    progress: Progress | None = None,
) -> Extractor:
    """Train lmsd-ssl in one cycle of `images` images, two views each (None: by `effort`).

    augment: shift_flip also mirrors, none leaves the image where it is; seed: the only source of randomness;
    data: hash of the split, for the recipe. The train split is held in memory as uint8.
    """
    pixels = loaded(train, alone=True)[0]
    if len(pixels) < 2:
        raise UserError("lmsd-ssl tells images from each other and the train split holds one: take more")
    count = effort(len(pixels)) if images is None else images
    training = Training(count, min(batch_size, len(pixels)), learning_rate, augment, seed)
    recipe = recipe_of(pixels, "views", (), training, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LMSDCNN(recipe.channels, recipe.image_size, 0)
        head = nn.Sequential(
            nn.Linear(FEATURES, 2 * EMBEDDED), nn.BatchNorm1d(2 * EMBEDDED), nn.ReLU(),
            nn.Linear(2 * EMBEDDED, EMBEDDED),
        )  # fmt: skip

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        x = scale(pixels[rows])
        both = torch.cat([view(x, augment, generator) for _ in range(2)])
        return vicreg(*head(net(both)[0]).chunk(2))

    players = nn.ModuleList([net, head])
    fit(players, training, len(pixels), loss, told="lmsd-ssl", weight_decay=0.01, progress=progress)
    return finished(net, recipe, pixels)


def effort(images: int) -> int:
    """How many images to learn from of so many: three passes, at least 30,000, at most a hundred passes."""
    return max(3 * images, min(30_000, 100 * images))


def view(x: Tensor, augment: Augment, generator: torch.Generator) -> Tensor:
    """A view of each image [B,C,H,W] (module text)."""
    moved = augmented(x, augment, generator)
    side = x.shape[-1]
    hidden = torch.rand(len(x), 1, _BLOCKS, _BLOCKS, generator=generator) < _HIDDEN
    return moved.masked_fill(F.interpolate(hidden.float(), (side, side)) > 0.5, 0.0)


def vicreg(one: Tensor, other: Tensor) -> Tensor:
    """The loss of two views' embeddings [n,d] (module formula)."""
    terms = [_LIKE * F.mse_loss(one, other)]
    for z in (one, other):
        centered = z - z.mean(dim=0)
        covariance = centered.T @ centered / (len(z) - 1)
        variance = covariance.diagonal()
        crossed = covariance.square().sum() - variance.square().sum()
        terms.append(0.5 * _SPREAD * F.relu(1.0 - (variance + _EPS).sqrt()).mean())
        terms.append(0.5 * crossed / z.shape[1])
    return torch.stack(terms).sum()
