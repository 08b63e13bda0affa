"""The source `shapes`: random scenes of `lmsd.data.builders.shapes`, drawn for each split on its own."""

from collections.abc import Iterator

import numpy as np

from lmsd.data.builders.options import BuildOptions
from lmsd.data.builders.shapes import class_names, misread, random_scene, render
from lmsd.data.builders.source import Defaults, Raw, Source
from lmsd.data.shards import SPLITS
from lmsd.errors import UserError


def shapes_source(options: BuildOptions) -> Source:
    """Scenes at image_size (default 16) in the options' counts; `holdout` pairs appear in test alone.

    Scene i of a split comes from a generator keyed by (seed, split, i): a longer set begins with the shorter.
    A share `mismatch` of the training captions has one wrong word, drawn from (seed, 0, i, 1).
    Scenes that differ by less than about a tenth of a pixel (correlation 0.999) are near duplicates.
    """
    unknown = [pair for pair in options.drawing.holdout if pair not in class_names()]
    if unknown:
        raise UserError(
            f"holdout names {unknown[0]!r}; a pair is a color and a shape, like {class_names()[0]!r}"
        )
    if len(set(options.drawing.holdout)) == len(class_names()):
        raise UserError("holdout names every pair of color and shape; leave some to train on")
    size = options.pictures.image_size or 16
    counts = (options.drawing.train_count, options.drawing.val_count, options.drawing.test_count)

    def draw() -> Iterator[Raw]:
        for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
            holdout = () if split == "test" else options.drawing.holdout
            for index in range(count):
                scene = random_scene(np.random.default_rng((options.drawing.seed, number, index)), holdout)
                told = scene
                if split == "train" and options.drawing.mismatch:
                    rng = np.random.default_rng((options.drawing.seed, number, index, 1))
                    told = misread(scene, rng, holdout) if rng.random() < options.drawing.mismatch else scene
                yield Raw(f"{split} {index:06d}", render(scene, size), told.caption(), scene.label, split)

    return Source(
        name="shapes",
        samples=draw(),
        total=sum(counts),
        defaults=Defaults(image_size=size, channels=3, similarity=0.999, kinship=None, val=0.0, test=0.0),
        classes=class_names(),
    )
