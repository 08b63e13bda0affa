"""The extractor of a data set: trained once on its train split, then found again by the split's hash."""

from pathlib import Path
from typing import Literal, cast

from lmsd.cli.data import Bar
from lmsd.data.index import cache_folder
from lmsd.data.module import ShardDataModule
from lmsd.models.extractor import Extractor, load_extractor, save_extractor, train_extractor


def find_or_train(
    data: ShardDataModule,
    *,
    augment: str = "shift",
    images: int | None = None,
    seed: int = 0,
    folder: Path | None = None,
) -> tuple[Extractor, Path]:
    """lmsd-cnn for these data and where it is kept: `folder`, or the user's cache, by data and recipe."""
    train = data.split_set("train")
    name = "-".join(["lmsd-cnn", train.hash[:16], augment, str(images or "default"), str(seed)])
    kept = folder or cache_folder() / "extractors" / name
    if (kept / "lmsd-cnn.json").is_file():
        return load_extractor(kept), kept
    kind = cast(Literal["none", "shift", "shift_flip"], augment)
    held_out = data.split_set("val") if data.has("val") else None
    with Bar() as bar:
        extractor = train_extractor(
            train, held_out, augment=kind, images=images, seed=seed, data=train.hash, progress=bar.update
        )
    save_extractor(extractor, kept)
    return extractor, kept
