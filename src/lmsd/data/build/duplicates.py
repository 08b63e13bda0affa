"""Near duplicates: pictures that are one picture under another brightness, contrast, size or compression.

The signature of a picture x is its box average to at most 16x16 pixels, less its mean over pixels and channels,
to unit length: u = (x − x̄)/‖x − x̄‖. Two pictures are near duplicates when ⟨u, v⟩ ≥ ρ: that is the correlation of
all their pixels, blind to a common gain and offset but not to a shift, a color or a turn. A flat picture has no
signature and only exact duplicates.

The search is exact, with no hash that could miss. ‖u − v‖² = 2 − 2⟨u, v⟩, so for every unit direction p near
duplicates have |⟨p, u⟩ − ⟨p, v⟩| ≤ √(2 − 2ρ): sorted along the direction of largest variance, only pictures within
that window are compared.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmsd.data.build.source import Pixels

SIDE = 16
"""Side of the signature in pixels: coarse enough to forget compression, fine enough for 8x8 and 16x16 images."""
_BLOCK = 1024


def signature(pixels: Pixels) -> NDArray[np.float32]:
    """u [S·S·3], S = min(side, 16), of a square picture uint8 [side, side, C]; zeros for a flat one."""
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if len(rgb) > SIDE:
        rgb = np.asarray(Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BOX))
    flat = rgb.reshape(-1).astype(np.float32)
    flat -= flat.mean()
    length = float(np.linalg.norm(flat))
    return flat / length if length > 1e-3 else np.zeros_like(flat)


def near_pairs(signatures: NDArray[np.float32], similarity: float) -> NDArray[np.int64]:
    """Every pair i < j with ⟨u_i, u_j⟩ ≥ similarity, int64 [P, 2], from signatures [N, D]."""
    if len(signatures) < 2:
        return np.zeros((0, 2), np.int64)
    place = signatures @ _main_direction(signatures)
    order = np.argsort(place, kind="stable")
    u, place = signatures[order], place[order]
    width = np.sqrt(max(2 - 2 * similarity, 0.0)) + 1e-4
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(u), _BLOCK):
        stop = min(start + _BLOCK, len(u))
        last = int(np.searchsorted(place, place[stop - 1] + width, side="right"))
        rows, columns = np.nonzero(u[start:stop] @ u[start:last].T >= similarity - 1e-6)
        keep = columns > rows
        found.append(np.stack([order[start + rows[keep]], order[start + columns[keep]]], 1))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _main_direction(signatures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vector of the largest variance of (at most 4,096 of) the signatures."""
    some = signatures[:: max(1, len(signatures) // 4096)]
    centered = some - some.mean(0)
    return np.linalg.eigh(centered.T @ centered)[1][:, -1].astype(np.float32)


def components(count: int, pairs: NDArray[np.int64]) -> list[int]:
    """The group of each of `count` items when pairs belong together, named by its first member (union-find)."""
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for one, other in pairs.tolist():
        a, b = root(one), root(other)
        parent[max(a, b)] = min(a, b)
    return [root(item) for item in range(count)]
