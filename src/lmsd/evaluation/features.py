"""Features of real images, kept under the hash of data, rows and extractor."""

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsd.errors import UserError
from lmsd.features.base import FeatureExtractor, ImageSet
from lmsd.files import replacing
from lmsd.ranks import by_chunks, by_first, rank_and_world

_CHUNK = 500


class Mirrored:
    """A split with every image turned left to right; its hash says so."""

    def __init__(self, split: ImageSet) -> None:
        self.split = split
        self.hash = None if split.hash is None else f"{split.hash} mirrored"

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


class Uncaptioned:
    """A split of images alone, for models that make them of no caption and no class; its hash stays."""

    def __init__(self, split: ImageSet) -> None:
        self.split, self.hash = split, split.hash

    def __len__(self) -> int:
        return len(self.split)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Images of these rows, float32 [k,C,H,W] in [-1,1]."""
        return self.split.images(indices)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """None: raises UserError."""
        raise UserError("images alone, without captions")

    def labels(self, indices: Sequence[int]) -> None:
        """None."""


def same_set(one: ImageSet, other: ImageSet) -> bool:
    """Whether two splits are one: the same object, or of the same hash."""
    return one is other or (one.hash is not None and one.hash == other.hash)


def cached_features(
    split: ImageSet, extractor: FeatureExtractor, rows: Sequence[int], *, cache: Path | None = None
) -> tuple[Tensor, Tensor]:
    """(features [n,d], logits [n,classes]) of these rows of a split; all ranks share the work.

    cache: a folder, used where the split names itself by a `hash`; a file in it is written whole or not at
    all.
    """
    if cache is None or split.hash is None:
        return _extract(split, extractor, rows)
    key = hashlib.sha256(f"{split.hash} {extractor.sha256} {list(rows)}".encode()).hexdigest()
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
