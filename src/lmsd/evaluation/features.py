"""What an extractor is; features of real images, kept under the hash of data, rows and extractor."""

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lmsd.features.cnn import ImageSet
from lmsd.files import replacing
from lmsd.ranks import by_chunks, by_first, rank_and_world

_CHUNK = 500


class FeatureExtractor(Protocol):
    """Images to features and logits, with a name that carries its weights' hash."""

    @property
    def net(self) -> nn.Module:
        """The weights, wherever they are to be."""

    @property
    def name(self) -> str:
        """What metrics are called after: name@hash."""

    @property
    def sha256(self) -> str:
        """Hash of the weights."""

    @property
    def exclusive(self) -> bool:
        """Whether its logits are those of classes of which every image has one."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W], uint8 or float in [-1,1] → (features [n,d], logits [n,classes ≥ 0])."""

    def right(self, logits: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> Tensor | None:
        """Whether each image shows its label, or its caption's words, bool [n]; None: it cannot tell."""

    def texts(self, captions: Sequence[str]) -> Tensor | None:
        """Captions → embeddings [n,d] in the space of the images' features; None: it reads none."""


class Mirrored:
    """A split with every image turned left to right; its hash says so."""

    def __init__(self, split: ImageSet) -> None:
        self.split = split
        found = getattr(split, "hash", None)
        self.hash = None if found is None else f"{found} mirrored"

    def __len__(self) -> int:
        return len(self.split)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Images of these rows, float32 [k,C,H,W] in [-1,1], mirrored."""
        return self.split.images(indices).flip(-1)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """Captions of these rows, as they are."""
        return self.split.captions(indices)

    def labels(self, indices: Sequence[int]) -> Tensor | None:
        """Class indices of these rows."""
        return self.split.labels(indices)


def same_set(one: ImageSet, other: ImageSet) -> bool:
    """Whether two splits are one: the same object, or of the same hash."""
    name = getattr(one, "hash", None)
    return one is other or (name is not None and name == getattr(other, "hash", None))


def cached_features(
    split: ImageSet, extractor: FeatureExtractor, rows: Sequence[int], *, cache: Path | None = None
) -> tuple[Tensor, Tensor]:
    """(features [n,d], logits [n,classes]) of these rows of a split; all ranks share the work.

    cache: a folder, used where the split names itself by a `hash`; a file in it is written whole or not at
    all.
    """
    data = getattr(split, "hash", None)
    if cache is None or data is None:
        return _extract(split, extractor, rows)
    key = hashlib.sha256(f"{data} {extractor.sha256} {list(rows)}".encode()).hexdigest()
    path = cache / f"{key[:32]}.safetensors"
    kept = by_first(partial(_kept, path))
    if kept is not None:
        return kept
    features, logits = _extract(split, extractor, rows)
    if rank_and_world()[0] == 0:
        try:
            save_features(path, {"features": features, "logits": logits})
        except (OSError, SafetensorError) as error:
            warnings.warn(f"features are not kept for the next evaluation: {error}", stacklevel=2)
    return features, logits


def _kept(path: Path) -> tuple[Tensor, Tensor] | None:
    """What a file of the cache holds; None where it is absent or damaged."""
    try:
        found = load_file(path)
        return found["features"], found["logits"]
    except (OSError, SafetensorError, KeyError):
        return None


def save_features(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(tensors, partial)


def _extract(split: ImageSet, extractor: FeatureExtractor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    parts = by_chunks(len(rows), _CHUNK, lambda part: extractor(split.images(rows[part])))
    features, logits = (torch.cat(column).contiguous() for column in zip(*parts, strict=True))
    return features, logits
