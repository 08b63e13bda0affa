"""The article's preparation: each picture decoded, checked, cropped, resized, denoised, deduplicated, split.

A picture's content hash h = sha256(shape, pixels) names it, and pictures with one h are one picture. Of near
duplicates (`duplicates`) one is kept: one that the source fixes as test, else as val, else the first of
the source. Those with another caption are kept too where the source or the options say so, in one split. Kin,
which are near duplicates under a looser bound and in any turn, share a split. A group of kin goes by its
smallest h, hashed once more and read as u in [0, 1):

    u < test → test,   u < test + val → val,   else train

so the split of a picture depends on its group's content alone: no other file's coming or going moves it.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmsd.data.builders.catalog import Catalog, twin, words
from lmsd.data.builders.chunks import COUNT, Chunk
from lmsd.data.builders.duplicates import SIDE
from lmsd.data.builders.near import Near
from lmsd.data.builders.plan import Plan
from lmsd.data.notes import Notes
from lmsd.data.shards import Split
from lmsd.errors import UserError

if TYPE_CHECKING:  # torch is imported where it is used
    from lmsd.types import Progress


_KEPT = "duplicates with another caption, kept in one split (near_duplicates=drop leaves them out)"
OTHER_CAPTION, SAME_PIXELS = f"near {_KEPT}", f"exact {_KEPT}"

Integers = NDArray[np.int64]


def split_of(key: str, *, val: float, test: float) -> Split:
    """The split of a content hash: u in [0, 1) against the parts.

    u is a hash of the key, since the smallest key of a group is a small number.
    """
    u = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
    if u < test:
        return "test"
    return "val" if u < test + val else "train"


def decide(
    chunks: Iterable[Chunk], plan: Plan, notes: Notes, *, folder: Path, progress: "Progress | None" = None
) -> Catalog:
    """What of all prepared pictures is written, and where; the table lies in `folder`.

    UserError when no picture can be used.
    """
    rules, chunks = plan.rules, list(chunks)
    catalog = Catalog(folder / "catalog")
    for chunk in chunks:
        rows = list(chunk.rows())
        catalog.add(chunk.number * COUNT, rows, worded=rules.near_duplicates != "drop")
        for row in rows:
            for note in row.notes:
                notes.add(note, row.name)
    catalog.drop_copies()
    if not len(catalog):
        first = next(catalog.dropped())
        raise UserError(f"no picture of {plan.name} can be used; {first.name}: {first.reason}")
    groups, gone = _near_duplicates(catalog, plan, chunks, notes, folder=folder, progress=progress)
    for each in sorted(gone):
        name = catalog.named(each)
        catalog.drop("near", each, name[0], twin("near", name, catalog.named(gone[each])))
    catalog.relate(groups, gone)
    count, first_name = catalog.kept_copies()
    if count:
        notes.add(SAME_PIXELS, first_name, count)

    def place(key: str, fixed: Split | None) -> Split:
        if fixed in ("test", "val"):
            return fixed
        return split_of(key, val=rules.val, test=0.0 if fixed == "train" else rules.test)  # val is of train

    catalog.split(place)
    return catalog


def _near_duplicates(
    catalog: Catalog,
    plan: Plan,
    chunks: list[Chunk],
    notes: Notes,
    *,
    folder: Path,
    progress: "Progress | None",
) -> tuple[Integers, dict[int, int]]:
    """The group of related samples of each, and which are dropped as near duplicates of which."""
    rules, total = plan.rules, len(catalog)
    if rules.near_duplicates == "keep":
        return np.arange(total), {}
    signatures = _signatures(catalog, chunks, min(plan.recipe.image_size, SIDE), folder / "signatures")

    def tell(stage: str) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(done, total, stage)

    near = Near(signatures, rules.similarity, progress=tell("near duplicates"), scratch=folder / "near")
    groups, gone = near.groups(), dict[int, int]()
    if rules.near_duplicates != "group":
        several = np.flatnonzero(np.bincount(groups, minlength=total)[groups] > 1)
        order = several[np.argsort(catalog.ranks()[several], kind="stable")].tolist()
        gone = alike = near.first_of(order, dict.fromkeys(order, ""), groups)
        if rules.near_duplicates == "same_caption":
            gone = near.first_of(order, {each: words(*catalog.named(each)[1:]) for each in order}, groups)
            for each in sorted(alike.keys() - gone.keys()):
                if not catalog.copied(each):
                    notes.add(OTHER_CAPTION, catalog.named(each)[0])
    if rules.kinship is not None:
        bound = min(rules.kinship, rules.similarity)
        del near
        kin = Near(signatures, bound, turned=True, progress=tell("kin"), scratch=folder / "near")
        groups = kin.groups()
    return groups, gone


def _signatures(catalog: Catalog, chunks: list[Chunk], side: int, file: Path) -> NDArray[np.float32]:
    """The signatures [N,S,S,3] of all samples, in one file."""
    places = catalog.places()
    result = np.memmap(file, np.float32, "w+", shape=(len(places), side, side, 3))
    known = {chunk.number: chunk for chunk in chunks}
    ends = np.searchsorted(places, (places // COUNT + 1) * COUNT)
    first = 0
    while first < len(places):
        chunk, end = known[int(places[first]) // COUNT], int(ends[first])
        own = np.fromfile(chunk.file("signatures"), np.float32).reshape(-1, side, side, 3)
        result[first:end] = own[places[first:end] % COUNT]
        first = end
    return result
