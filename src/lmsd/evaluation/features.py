"""What an extractor is; features of real images, kept under the hash of data, rows and extractor."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmsd.models.extractor import ImageSet

_CHUNK = 500


class FeatureExtractor(Protocol):
    """Images to features and logits, with a name that carries its weights' hash."""

    @property
    def name(self) -> str:
        """What metrics are called after: name@hash."""

    @property
    def sha256(self) -> str:
        """Hash of the weights."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,H,W] in [-1,1] → (features [n,d], logits [n,classes])."""

    def right(self, logits: Tensor, labels: Tensor | None, captions: Sequence[str] | None) -> Tensor:
        """Whether each image shows its label, or its caption's words, bool [n]."""


def cached_features(
    split: ImageSet, extractor: FeatureExtractor, rows: Sequence[int], *, cache: Path | None = None
) -> tuple[Tensor, Tensor]:
    """(features [n,d], logits [n,classes]) of these rows of a split.

    cache: a folder, used where the split names itself by a `hash`; a file in it is written whole or not at
    all.
    """
    data = getattr(split, "hash", None)
    if cache is None or data is None:
        return _extract(split, extractor, rows)
    key = hashlib.sha256(f"{data} {extractor.sha256} {list(rows)}".encode()).hexdigest()
    path = cache / f"{key[:32]}.safetensors"
    if path.is_file():
        kept = load_file(path)
        return kept["features"], kept["logits"]
    features, logits = _extract(split, extractor, rows)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file({"features": features, "logits": logits}, partial)
    os.replace(partial, path)
    return features, logits


def _extract(split: ImageSet, extractor: FeatureExtractor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    parts = [extractor(split.images(rows[start : start + _CHUNK])) for start in range(0, len(rows), _CHUNK)]
    features, logits = (torch.cat(column).contiguous() for column in zip(*parts, strict=True))
    return features, logits
