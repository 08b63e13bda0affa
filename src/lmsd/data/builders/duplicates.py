"""Near duplicates: pictures that are one picture under another brightness, contrast, size or compression.

The signature of a picture x is its box average to at most 16x16 pixels, less its mean over pixels and
channels, to unit length: u = (x − x̄)/‖x − x̄‖. ⟨u, v⟩ is then the correlation of all pixels of two pictures,
blind to a common gain and offset but not to a shift or a color. Near duplicates have ⟨u, v⟩ ≥ ρ; kin have
⟨u, g v⟩ ≥ ρ' for some g of the eight turns and mirror images of the square. A flat picture has neither.

The search is exact, with no hash that could miss. For every orbit o of pixels under the turns, let p_o(u) be
the sum of u over o by √|o|, and r_o(u) the length of what p_o leaves of u there. No turn changes p or r, so

    Σ_o (p_o(u) − p_o(v))² + (r_o(u) − r_o(v))² ≤ ‖u − g v‖² = 2 − 2⟨u, g v⟩

First along the direction in which (p, r) varies most, where only pictures within √(2 − 2ρ) are compared, then
in all of (p, r), four times shorter than u; the few pairs that pass are compared in every turn.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmsd.data.builders.source import Pixels

SIDE = 16
"""Side of a signature: coarse enough to forget compression, fine enough for 8x8 and 16x16 images."""
_BLOCK = 1024
_ROUNDING = 1e-5


def signature(pixels: Pixels) -> NDArray[np.float32]:
    """The signature [S, S, 3], S = min(side, 16), of uint8 pixels [side, side, C]; zeros for a flat one."""
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    if len(rgb) > SIDE:
        rgb = np.asarray(Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.BOX))
    centered = rgb.astype(np.float32) - np.float32(rgb.mean())
    length = float(np.linalg.norm(centered))
    return centered / length if length > 1e-3 else np.zeros_like(centered)


def near_pairs(
    signatures: NDArray[np.float32],
    similarity: float,
    *,
    turned: bool = False,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.int64]:
    """Every pair i < j correlated at least `similarity`, in any turn when `turned`; int64 [P, 2].

    signatures [N, S, S, 3]; progress is told how many of the N have been compared with all others.
    """
    turns = _turns(signatures.shape[1]) if turned else _turns(signatures.shape[1])[:1]
    flat = signatures.reshape(len(signatures), -1, 3)
    part = _invariant(flat, turns)
    place = part @ _main_direction(part)
    order = np.argsort(place, kind="stable")
    found: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    gap = max(2 - 2 * similarity, 0.0) + _ROUNDING
    part, place = part[order], place[order]
    energy = (part**2).sum(1)
    for start in range(0, len(part), _BLOCK):
        stop = min(start + _BLOCK, len(part))
        last = int(np.searchsorted(place, place[stop - 1] + np.sqrt(gap), side="right"))
        apart = (
            energy[start:stop, None] + energy[None, start:last] - 2 * (part[start:stop] @ part[start:last].T)
        )
        rows, columns = np.nonzero(apart <= gap)
        ahead = columns > rows
        pairs = np.stack([order[start + rows[ahead]], order[start + columns[ahead]]], 1)
        found.append(pairs[_correlation(flat, pairs, turns) >= similarity - _ROUNDING])
        if progress is not None:
            progress(stop)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _turns(side: int) -> NDArray[np.int64]:
    """The pixel orders [8, side²] of the square's turns and mirror images, the identity first."""
    grid = np.arange(side * side).reshape(side, side)
    return np.stack([np.rot90(turn, k).ravel() for turn in (grid, grid.T) for k in range(4)])


def _invariant(flat: NDArray[np.float32], turns: NDArray[np.int64]) -> NDArray[np.float32]:
    """What no turn changes: (p, r) [N, 6K] of K orbits; u itself when there is but one turn."""
    _, orbit, size = np.unique(turns.min(0), return_inverse=True, return_counts=True)
    basis = np.zeros((flat.shape[1], len(size)), np.float32)
    basis[np.arange(flat.shape[1]), orbit] = 1 / np.sqrt(size[orbit])
    mean = np.tensordot(flat, basis, (1, 0)).reshape(len(flat), -1)
    if len(turns) == 1:
        return mean
    energy = np.tensordot(flat**2, (basis > 0).astype(np.float32), (1, 0)).reshape(len(flat), -1)
    return np.concatenate([mean, np.sqrt(np.maximum(energy - mean**2, 0))], 1)


def _main_direction(part: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vector of the largest variance of (at most 4,096 of) the rows of `part`."""
    some = part[:: max(1, len(part) // 4096)]
    centered = some - some.mean(0)
    return np.linalg.eigh(centered.T @ centered)[1][:, -1].astype(np.float32)


def _correlation(
    flat: NDArray[np.float32], pairs: NDArray[np.int64], turns: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The largest ⟨u_i, g u_j⟩ over the turns, for every pair; some thousand pairs at a time."""
    result = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), 4096):
        one, other = (flat[pairs[start : start + 4096, side]] for side in (0, 1))
        best = [np.einsum("npc,npc->n", one, other[:, turn]) for turn in turns]
        result[start : start + 4096] = np.max(best, axis=0)
    return result


def components(count: int, pairs: NDArray[np.int64]) -> list[int]:
    """The group of each of `count` items, named by its first member, when pairs belong together."""
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
