"""What a builder hands to the preparation: named pictures with captions, before anything is checked."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from lmsd.data.notes import Note
from lmsd.data.shards import Split

NearDuplicates: TypeAlias = Literal["same_caption", "drop", "group", "keep"]
Captions: TypeAlias = Literal["join", "first", "draw", "keep", "none"]
"""What the lines of a caption give; "keep": all, a line each; "none": no picture has a caption."""
LayoutName: TypeAlias = Literal[
    "folder", "imagefolder", "classes", "kohya", "coco", "table", "parquet", "tars"
]
"""What other tools leave on a disk (see `layouts`)."""
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
Pixels: TypeAlias = NDArray[np.uint8]
"""uint8 [H, W, C] with C = 1 or 3."""


@dataclass(frozen=True)
class Raw:
    """One picture as its source has it, and what of caption, class and split is given.

    picture: pixels, a file, or what reads encoded bytes; repeats: how often it comes in an epoch of train;
    fields: what else is known of it, for `where`.
    """

    name: str
    picture: Pixels | Path | Callable[[], bytes]
    caption: str | None
    label: int | None = None
    split: Split | None = None
    repeats: int = 1
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A picture that is left out, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class Defaults:
    """The defaults of a source for options that are not given.

    image_size: side in pixels; channels: 1 (gray) or 3;
    similarity: correlation from which two pictures are near duplicates, of which one is kept;
    kinship: correlation, in any turn or mirror image, from which two pictures share a split (None: none do);
    val, test: parts of the pictures whose split the source does not fix (val is taken from a fixed train);
    near_duplicates: what becomes of near duplicates (see `BuildOptions`).
    """

    image_size: int
    channels: Literal[1, 3]
    similarity: float
    kinship: float | None
    val: float
    test: float
    near_duplicates: NearDuplicates = "drop"


@dataclass(frozen=True)
class Source:
    """A stream of `total` pictures, and how they are prepared unless the options say otherwise.

    dropped: what the source itself leaves out; notes: what else is worth telling;
    details: what the manifest says of it; fields: names of what is known of its pictures, for `where`.
    """

    name: str
    samples: Iterable[Raw]
    total: int
    defaults: Defaults
    classes: list[str] | None = None
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    details: Mapping[str, object] = field(default_factory=dict)
    fields: frozenset[str] = frozenset()
