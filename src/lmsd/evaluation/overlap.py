"""Do two splits share pictures? A score on images that were trained on flatters, whoever made the splits.

Exact: the same pixels, as the model sees them. Near: correlated at least 0.99 in brightness and color (one
picture under another size, compression, contrast; see `data.build.duplicates`), or as much as the manifest of
the data set says that it was split by: what one source draws twice is two pictures of another.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lmsd.data.build.duplicates import signature
from lmsd.models.extractor import ImageSet

SIMILARITY = 0.99
_CHUNK = 500


@dataclass(frozen=True)
class Overlap:
    """How many of `of` held-out images lie in the training set: with the same pixels, or nearly so."""

    exact: int
    near: int
    of: int

    def note(self) -> str | None:
        """What to say beside the scores; None where nothing is shared."""
        if not self.near:
            return None
        share = f"{self.near} of {self.of} held-out images ({100 * self.near / self.of:.1f} %)"
        return f"{share} are in the training set or nearly so ({self.exact} exactly): scores flatter"


def similarity_of(shards: object) -> float:
    """The correlation from which the builder of folder `shards` took pictures for duplicates; 0.99 else."""
    manifest = Path(shards) / "manifest.json" if isinstance(shards, str) and "://" not in shards else None
    if manifest is None or not manifest.is_file():
        return SIMILARITY
    return float(json.loads(manifest.read_text()).get("options", {}).get("similarity") or SIMILARITY)


def overlap(
    train: ImageSet, held_out: ImageSet, *, similarity: float = SIMILARITY, cache: Path | None = None
) -> Overlap:
    """Compare every held-out image with every training image; kept in `cache` where both have a hash."""
    hashes = [getattr(split, "hash", None) for split in (train, held_out)]
    path = None
    if cache is not None and all(hashes):
        key = hashlib.sha256(f"{hashes} {similarity}".encode()).hexdigest()
        path = cache / f"overlap-{key[:32]}.json"
        if path.is_file():
            return Overlap(**json.loads(path.read_text()))
    found = _compare(train, held_out, similarity)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(asdict(found)) + "\n")
        os.replace(partial, path)
    return found


def _compare(train: ImageSet, held_out: ImageSet, similarity: float) -> Overlap:
    known, trained = _seen(train)
    names, held = _seen(held_out)
    already = set(known)
    exact = {row for row, name in enumerate(names) if name in already}
    near = {
        start + row
        for start in range(0, len(held), _CHUNK)
        for row in np.flatnonzero(
            (held[start : start + _CHUNK] @ trained.T).max(axis=1) >= similarity
        ).tolist()
    }
    return Overlap(exact=len(exact), near=len(exact | near), of=len(names))


def _seen(split: ImageSet) -> tuple[list[bytes], NDArray[np.float32]]:
    """Hash of the pixels and signature (flat, of unit length) of every image."""
    names: list[bytes] = []
    signatures: list[NDArray[np.float32]] = []
    for start in range(0, len(split), _CHUNK):
        images = split.images(range(start, min(start + _CHUNK, len(split))))
        pixels = images.add(1.0).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for image in pixels:
            names.append(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
            signatures.append(signature(image).ravel())
    return names, np.stack(signatures)
