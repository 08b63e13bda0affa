"""Do two splits share pictures? A score on images that were trained on flatters, whoever made the splits.

Exact: the same pixels, as the model sees them. Near: correlated at least 0.99 in brightness and color (one
picture under another size, compression, contrast; see `data.build.duplicates`), or as much as the manifest of
the data set says that it was split by: what one source draws twice is two pictures of another. Where training
mirrors images, a mirrored training image is one.

Kept is a hash and a signature (768 numbers) of every held-out image; the training set goes by in chunks.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmsd.arguments import explained
from lmsd.data.builders.duplicates import signature
from lmsd.features.base import ImageSet
from lmsd.files import write_text
from lmsd.types import levels

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


@explained
def overlap(
    train: ImageSet,
    held_out: ImageSet,
    *,
    similarity: float = SIMILARITY,
    mirrored: bool = False,
    cache: Path | None = None,
) -> Overlap:
    """Compare every held-out image with every training image; kept in `cache` where both have a hash.

    mirrored: whether training mirrors images.
    """
    hashes = [split.hash for split in (train, held_out)]
    path = None
    if cache is not None and all(hashes):
        words = f"{hashes} {similarity}" + (" mirrored" if mirrored else "")
        path = cache / f"overlap-{hashlib.sha256(words.encode()).hexdigest()[:32]}.json"
        kept = _kept(path)
        if kept is not None:
            return kept
    found = _compare(train, held_out, similarity, mirrored)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(found)) + "\n")
        except OSError as error:
            warnings.warn(f"the overlap is not kept for the next evaluation: {error}", stacklevel=2)
    return found


def _kept(path: Path) -> Overlap | None:
    """What a file of the cache holds; None where it is absent or damaged."""
    try:
        return Overlap(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _compare(train: ImageSet, held_out: ImageSet, similarity: float, mirrored: bool) -> Overlap:
    held = [_seen(images) for images in _chunks(held_out)]
    near = [np.zeros(len(names), bool) for names, _ in held]
    wanted = {name for names, _ in held for name in names}
    known: set[bytes] = set()
    for images in _chunks(train):
        for turned in (images, images.flip(-1)) if mirrored else (images,):
            names, signatures = _seen(turned)
            known |= wanted.intersection(names)
            for found, (_, own) in zip(near, held, strict=True):
                found |= (own @ signatures.T).max(axis=1) >= similarity
    exact = np.array([name in known for names, _ in held for name in names])
    return Overlap(exact=int(exact.sum()), near=int((exact | np.concatenate(near)).sum()), of=len(exact))


def _chunks(split: ImageSet) -> Iterator[Tensor]:
    for start in range(0, len(split), _CHUNK):
        yield split.images(range(start, min(start + _CHUNK, len(split))))


def _seen(images: Tensor) -> tuple[list[bytes], NDArray[np.float32]]:
    """Hash of the pixels and signature (flat, of unit length) of every image."""
    pixels = levels(images).permute(0, 2, 3, 1).contiguous().numpy()
    names = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in pixels]
    return names, np.stack([signature(image).ravel() for image in pixels])
