"""The search of what is near among many signatures: ⟨u, v⟩ ≥ ρ, in any turn where that is asked for.

The search is exact, with no hash that could miss. For every orbit o of pixels under the turns, let p_o(u) be
the sum of u over o by √|o|, and r_o(u) the length of what p_o leaves of u there. No turn changes p or r, so

    Σ_o (p_o(u) − p_o(v))² + (r_o(u) − r_o(v))² ≤ ‖u − g v‖² = 2 − 2⟨u, g v⟩ = d(u, v)²  for the best g

First along the direction in which (p, r) varies most, where only pictures within reach are compared, then in
all of (p, r), four times shorter than u; the few pairs that pass are compared in every turn.

A thousand frames of one camera are half a million pairs, so pairs are not listed. Taken one after the other,
a picture that is near none of the leaders so far becomes a leader: few in a thousand frames, nearly all
elsewhere. The leaders in the order of rank are what stays of near duplicates. For the groups, each picture is
joined with the leaders that it is near; stars that are still apart are compared member by member, where their
leaders are close enough for it: with δ² = 2 − 2ρ and radii r, d(leaders) ≤ δ + r + r' by the triangle
inequality.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Reals: TypeAlias = NDArray[np.float32]
_BLOCK, _TILE = 1024, 4096
_ROUNDING = 1e-5


class Near:
    """Which of N signatures [N, S, S, 3] are near: correlated `similarity` or more, in any turn when
    `turned`.

    progress is told how many of the N have been compared; scratch: a file for what is derived, so that with
    signatures mapped from a file N may be millions.
    """

    def __init__(
        self,
        signatures: NDArray[np.float32],
        similarity: float,
        *,
        turned: bool = False,
        progress: Callable[[int], None] | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._turns = _turns(signatures.shape[1])[: 8 if turned else 1]
        self._flat = signatures.reshape(len(signatures), -1, 3)
        self._least = similarity - _ROUNDING
        self._reach = float(np.sqrt(max(2 - 2 * similarity, 0.0)))
        self._part = _invariants(self._flat, self._turns, scratch)
        direction = _main_direction(self._part)
        self._place, self._energy = np.empty((2, len(self._flat)), np.float32)
        for some in _blocks(len(self._flat)):
            part = np.asarray(self._part[some])
            self._place[some], self._energy[some] = part @ direction, (part**2).sum(1)
        self._progress = progress

    def groups(self) -> Integers:
        """The group of each, named by its first member, when what is near belongs together."""
        total = len(self._flat)
        order = np.argsort(self._place, kind="stable")
        leaders, items, owners = self._leaders(order[self._energy[order] > 0], told=True)
        found = _Groups(total)
        for item, owner in zip(items.tolist(), owners.tolist(), strict=True):
            found.join(item, owner)
        stars: dict[int, list[int]] = {}
        for item, owner in dict(zip(items[::-1].tolist(), owners[::-1].tolist(), strict=True)).items():
            stars.setdefault(owner, []).append(item)
        members = {owner: np.asarray([owner, *star]) for owner, star in stars.items()}
        radius = np.zeros(total, np.float32)
        np.maximum.at(radius, owners, self._apart(items, owners))
        centers = np.asarray(list(stars), np.int64)
        for some in _blocks(len(centers)):
            for one, other in self._close(centers[some], leaders, radius):
                if found.root(one) != found.root(other):
                    ours, theirs = members[one], members.get(other, np.asarray([other]))
                    if self._touch(ours, theirs, radius):
                        found.join(one, other)
        if self._progress is not None:
            self._progress(total)
        return found.names()

    def first_of(self, order: Sequence[int], kinds: Mapping[int, str], groups: Integers) -> dict[int, int]:
        """Which are dropped, and near which: each in `order` stays unless near one of its kind that stays.

        groups: as `groups` gives them.
        """
        parts: dict[tuple[int, str], list[int]] = {}
        for item in order:
            parts.setdefault((int(groups[item]), kinds[item]), []).append(item)
        gone: dict[int, int] = {}
        for part in parts.values():
            if len(part) > 1:
                _, items, owners = self._leaders(np.asarray(part))
                rank = np.argsort(np.asarray(part))  # number → place in the order, by search
                sought = rank[np.searchsorted(np.asarray(part)[rank], owners)]
                best = np.lexsort((sought, items))
                gone.update(zip(items[best][::-1].tolist(), owners[best][::-1].tolist(), strict=True))
        return gone

    def _leaders(self, order: Integers, *, told: bool = False) -> tuple[Integers, Integers, Integers]:
        """The leaders in this order; and the pairs of all others with the leaders that they are near.

        told: the order is that of places, and progress is told.
        """
        leaders = np.zeros(0, np.int64)
        items, owners = [leaders], [leaders]
        for start in range(0, len(order), _BLOCK):
            block = order[start : start + _BLOCK]
            low = np.searchsorted(self._place[leaders], self._place[block[0]] - self._reach) if told else 0
            rows, columns = self._within(block, leaders[low:])
            one, other = self._near(block[rows], leaders[low:][columns])
            items.append(one)
            owners.append(other)
            rest = block[~np.isin(block, one)]
            fresh, one, other = self._fresh(rest)
            items.append(one)
            owners.append(other)
            leaders = np.concatenate([leaders, fresh])
            if told and self._progress is not None and start + _BLOCK < len(order):
                self._progress(start + _BLOCK)
        return leaders, np.concatenate(items), np.concatenate(owners)

    def _fresh(self, rest: Integers) -> tuple[Integers, Integers, Integers]:
        """The same for a block of which nothing is near an earlier leader."""
        rows, columns = self._within(rest, rest)
        rows, columns = rows[columns > rows], columns[columns > rows]
        starts = np.searchsorted(rows, np.arange(len(rest) + 1))
        gone = np.zeros(len(rest), np.bool_)
        items, owners = [rest[:0]], [rest[:0]]
        for row in np.unique(rows).tolist():
            if not gone[row]:
                after = columns[starts[row] : starts[row + 1]]
                near = self._correlation(rest[after], rest[row : row + 1]) >= self._least
                gone[after[near]] = True
                items.append(rest[after[near]])
                owners.append(np.full(int(near.sum()), rest[row]))
        return rest[~gone], np.concatenate(items), np.concatenate(owners)

    def _close(
        self, some: Integers, leaders: Integers, radius: NDArray[np.float32]
    ) -> Iterator[tuple[int, int]]:
        """Pairs of some leaders with any others whose stars may have something near each other."""
        bound = self._reach + radius[some] + _ROUNDING
        rows, columns = self._within(some, leaders, (bound, radius[leaders]))
        one, other = some[rows], leaders[columns]
        close = (one != other) & (self._apart(one, other) <= bound[rows] + radius[other])
        yield from zip(one[close].tolist(), other[close].tolist(), strict=True)

    def _touch(self, ours: Integers, theirs: Integers, radius: NDArray[np.float32]) -> bool:
        """Whether anything of one star is near anything of another; leaders stand first."""
        bounds = [self._reach + radius[star[0]] + _ROUNDING for star in (ours, theirs)]
        ours, theirs = (
            ours[self._apart(ours, theirs[:1]) <= bounds[1]],
            theirs[self._apart(theirs, ours[:1]) <= bounds[0]],
        )
        for start in range(0, len(ours), _BLOCK):
            rows, columns = self._within(ours[start : start + _BLOCK], theirs)
            for first in range(0, len(rows), 4096):
                some = slice(first, first + 4096)
                if len(self._near(ours[start + rows[some]], theirs[columns[some]])[0]):
                    return True
        return False

    def _near(self, one: Integers, other: Integers) -> tuple[Integers, Integers]:
        """Those of the pairs that are near."""
        near = self._correlation(one, other) >= self._least
        return one[near], other[near]

    def _within(
        self, some: Integers, others: Integers, bounds: tuple[Reals, Reals] | None = None
    ) -> tuple[Integers, Integers]:
        """Rows and columns of the pairs that may be within reach (near), by what no turn changes.

        bounds: of each of some, and what is added for each of the others, in place of the reach.
        """
        rows, columns, part = [others[:0]], [others[:0]], self._part[some]
        for start in range(0, len(others), _TILE):
            tile = others[start : start + _TILE]
            apart = self._energy[some, None] + self._energy[tile] - 2 * (part @ self._part[tile].T)
            reach = self._reach if bounds is None else bounds[0][:, None] + bounds[1][start : start + _TILE]
            row, column = np.nonzero(apart <= np.square(reach) + _ROUNDING)
            rows.append(row)
            columns.append(column + start)
        row, column = np.concatenate(rows), np.concatenate(columns)
        order = np.argsort(row, kind="stable")
        return row[order], column[order]

    def _apart(self, one: Integers, other: Integers) -> NDArray[np.float64]:
        correlation = self._correlation(one, other).astype(np.float64)
        return np.sqrt(np.maximum(2 - 2 * correlation, 0))

    def _correlation(self, one: Integers, other: Integers) -> NDArray[np.float32]:
        """The largest ⟨u_i, g u_j⟩ over the turns, for every pair; some thousand pairs at a time."""
        one, other = np.broadcast_arrays(one, other)
        result = np.zeros(len(one), np.float32)
        for start in range(0, len(one), 4096):
            some = slice(start, start + 4096)
            a, b = self._flat[one[some]], self._flat[other[some]]
            result[some] = np.max([np.einsum("npc,npc->n", a, b[:, turn]) for turn in self._turns], axis=0)
        return result


def _turns(side: int) -> NDArray[np.int64]:
    """The pixel orders [8, side²] of the square's turns and mirror images, the identity first."""
    grid = np.arange(side * side).reshape(side, side)
    return np.stack([np.rot90(turn, k).ravel() for turn in (grid, grid.T) for k in range(4)])


def _blocks(total: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, total, _BLOCK))


def _invariants(flat: Reals, turns: Integers, scratch: Path | None) -> Reals:
    """`_invariant` of all, in the file `scratch` where there is one."""
    width = _invariant(flat[:1], turns).shape[1]
    if scratch is None:
        result = np.empty((len(flat), width), np.float32)
    else:
        result = np.memmap(scratch, np.float32, "w+", shape=(len(flat), width))
    for some in _blocks(len(flat)):
        result[some] = _invariant(np.asarray(flat[some]), turns)
    return result


def _invariant(flat: NDArray[np.float32], turns: NDArray[np.int64]) -> NDArray[np.float32]:
    """What no turn changes: (p, r) [N, 6K] of K orbits; u itself when there is only one turn."""
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


class _Groups:
    """Disjoint sets of items; each is named by its first member."""

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def root(self, item: int) -> int:
        """The name of an item's group."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = int(parent[item])
        return item

    def join(self, one: int, other: int) -> None:
        """Merge two groups."""
        a, b = self.root(one), self.root(other)
        self._parent[max(a, b)] = min(a, b)

    def names(self) -> Integers:
        """The names of the groups of all items, [N]."""
        for item in np.flatnonzero(self._parent != np.arange(len(self._parent))).tolist():
            self._parent[item] = self.root(item)
        return self._parent
