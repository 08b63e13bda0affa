"""The options of `lmsd data build`, frozen records; None leaves the choice to the source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lmsd.data.builders.source import LAYOUTS, Captions, NearDuplicates
from lmsd.errors import Count, UserError
from lmsd.flat import flat

ONLY_FOR: dict[str, tuple[str, ...]] = {
    "path": (*LAYOUTS, "cifar10"),
    "captions": ("folder",),
    "lines": tuple(name for name in LAYOUTS if name != "classes"),
    "train_count": ("shapes", "edits"),
    "val_count": ("shapes", "edits"),
    "test_count": ("shapes", "edits"),
    "holdout": ("shapes",),
    "mismatch": ("shapes",),
    "seed": ("shapes", "edits"),
    "test": ("digits", *LAYOUTS),
    "val": ("digits", *LAYOUTS, "cifar10"),
    "where": ("digits", "shapes", *LAYOUTS),
}
"""The options that not every source reads."""


@dataclass(frozen=True)
class Preparation:
    """What becomes of every picture.

    image_size: side in pixels; channels: 1 (gray) or 3;
    val, test: parts of the pictures, by content;
    denoise: a 3x3 median, or a Gaussian of half a pixel, after resizing;
    near_duplicates: drop all but one, or all but one of each caption ("same_caption", the choice of folder),
    or keep all in one split ("group"), or do not look for any ("keep");
    similarity: correlation in (0, 1] from which two pictures are near duplicates;
    where: a condition that every picture meets (see `lmsd.data.builders.where`).
    """

    image_size: Count | None = None
    channels: Literal[1, 3] | None = None
    val: float | None = None
    test: float | None = None
    denoise: Literal["none", "median", "gaussian"] = "none"
    near_duplicates: NearDuplicates | None = None
    similarity: float | None = None
    where: str | None = None


@dataclass(frozen=True)
class Drawing:
    """What a source that draws its pictures draws.

    train_count, val_count, test_count: how many; holdout: "color shape" pairs that only test may show;
    mismatch: share of the training captions that have one wrong word; seed: of what is drawn.
    """

    train_count: int = 10_000
    val_count: int = 1_000
    test_count: int = 2_000
    holdout: tuple[str, ...] = ()
    mismatch: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class BuildOptions:
    """How a data set is made.

    pictures: what becomes of them; drawing: what is drawn, of a source that draws;
    path: the folder of images, or the file; captions: a table of captions (default: .txt beside images);
    lines: what several lines of a caption give: all joined (None), the first, one drawn by the name, or all
    of them ("keep", also None for coco), a line each; "none" leaves captions out;
    image_format: png is exact, jpg (quality 95) smaller; shard_size: samples in a shard;
    overwrite: replace the data set that is there.
    """

    pictures: Preparation = Preparation()
    drawing: Drawing = Drawing()
    path: Path | None = None
    captions: Path | None = None
    lines: Captions | None = None
    image_format: Literal["png", "jpg"] = "png"
    shard_size: int = 1_000
    overwrite: bool = False

    def check(self, source: str) -> None:
        """Raise UserError for a value out of range, or an option that `source` does not read."""
        given, defaults = flat(self), flat(BuildOptions())
        for name, readers in ONLY_FOR.items():
            if source not in readers and given[name] != defaults[name]:
                raise UserError(
                    f"the source {source!r} has no option {name}; it belongs to {', '.join(readers)}"
                )
        for name in ("val", "test"):
            part = given[name]
            if part is not None and not 0 <= part < 1:
                raise UserError(f"{name}={part} is not a part of the pictures; take a number in [0, 1)")
        if not 0 <= given["mismatch"] <= 1:
            raise UserError(f"mismatch={given['mismatch']} is not a share of the captions: take 0 to 1")
        val, test, similarity = self.pictures.val, self.pictures.test, self.pictures.similarity
        if (val or 0) + (test or 0) >= 1:
            raise UserError(f"val={val} and test={test} leave nothing for train; make them smaller")
        if similarity is not None and not 0 < similarity <= 1:
            raise UserError(f"similarity={similarity} is not a correlation: take a number in (0, 1]")
        lowest = {"image_size": 1, "shard_size": 1, "train_count": 1, "val_count": 0, "test_count": 0}
        for name, low in lowest.items():
            value = given[name]
            if value is not None and value < low:
                raise UserError(f"{name}={value} is too small; take {low} or more")
        for name, allowed in _CHOICES.items():
            if given[name] not in allowed:
                raise UserError(f"{name}={given[name]!r} is unknown; take one of {allowed}")


_CHOICES: dict[str, tuple[object, ...]] = {
    "channels": (None, 1, 3),
    "denoise": ("none", "median", "gaussian"),
    "lines": (None, *get_args(Captions)),
    "near_duplicates": (None, *get_args(NearDuplicates)),
    "image_format": ("png", "jpg"),
}
