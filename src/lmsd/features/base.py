"""What a set of images is, and what turns images into features."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lmsd.errors import UserError


class ImageSet(Protocol):
    """Random access to one split: images, captions and class indices of given rows."""

    @property
    def hash(self) -> str | None:
        """What names its images, the same in every process; None: nothing does, and nothing is kept of it."""

    def __len__(self) -> int:
        """How many samples."""

    def images(self, indices: Sequence[int]) -> Tensor:
        """Images of these rows, float32 [k,C,H,W] in [-1,1]."""

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions of these rows; UserError where the set has none."""

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Class indices of these rows, int64 [k]; None where the set has none."""


class FeatureExtractor(Protocol):
    """Images to features and logits, with a name that carries its weights' hash."""

    @property
    def net(self) -> nn.Module:
        """The weights, wherever they are to be."""

    @property
    def kind(self) -> str:
        """The family: lmsd-cnn, lmsd-ssl, random-conv, inception, clip, dinov2."""

    @property
    def name(self) -> str:
        """What metrics are called after: name@hash."""

    @property
    def sha256(self) -> str:
        """Hash of the weights."""

    @property
    def resize(self) -> str | None:
        """How it resizes images to its own size; None: it takes them as they are."""

    @property
    def reference(self) -> bool:
        """Whether these are the weights that published figures stand on."""

    @property
    def exclusive(self) -> bool:
        """Whether its logits are those of classes of which every image has one."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W], uint8 or float in [-1,1] → (features [n,d], logits [n,classes ≥ 0])."""

    def right(self, logits: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> Tensor | None:
        """Whether each image shows its label, or its caption's words, bool [n]; None: it cannot tell."""

    def texts(self, captions: Sequence[str]) -> Tensor | None:
        """Captions → embeddings [n,d] in the space of the images' features; None: it reads none."""

    def cut(self, captions: Sequence[str]) -> int:
        """How many of the captions `texts` reads only in part."""


class Speechless:
    """What an extractor without words and without classes answers."""

    def right(self, logits: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> Tensor | None:
        """It has no classes that could be asked for."""
        return None

    def texts(self, captions: Sequence[str]) -> Tensor | None:
        """It reads no texts."""
        return None

    def cut(self, captions: Sequence[str]) -> int:
        """None: it reads no texts."""
        return 0


def captions_of(split: ImageSet, rows: Sequence[int]) -> list[str] | None:
    """Captions of these rows, or None where the set has none."""
    try:
        split.captions([0])
    except UserError:
        return None
    return split.captions(rows)


def in_range(images: Tensor) -> Tensor:
    """Images [n,C,H,W] as float32 in [-1,1]: uint8 is scaled from [0,255], floats must be in [-1,1] already.

    Raises UserError for floats beyond it, as those in [0,255] are.
    """
    if images.dtype == torch.uint8:
        return images.float().div_(127.5).sub_(1.0)
    if not bool(images.isfinite().all()):
        raise UserError("images hold NaN or infinity: they are floats in [-1,1]; look for what made them")
    if not images.is_floating_point() or (len(images) and float(images.abs().max()) > 1.0 + 1e-4):
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(
            f"images are uint8 in [0,255] or floats in [-1,1], not {kind} up to {float(images.max()):.4g}"
        )
    return images.float()
