"""How far a run has learned its images by heart: one plot over time, its panels above one another.

gap       accuracy of D on training images − on held-out ones; 0 for a D that knows no image
augment   the strength p that answers it, where it adapts
copies    share of samples that lie on a training image
nearest   distance to the nearest training image, over that of held-out images; below 1: too near
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lmsd.evaluation.charts import Curve

Columns: TypeAlias = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""(images, values) by name."""

_GAP = ("discriminator/accuracy_train", "discriminator/accuracy_val")
_AUGMENT = "discriminator/augment"
_ENDS = ("low", "high")
_OVER_TIME = {
    "val/copies": "copies of training images, share of samples, 95 % interval",
    "val/neighbor_ratio": "nearest training image, held-out images: 1, 95 % interval",
}


def overfitting(columns: Columns) -> list[Curve]:
    """The panels of a run, from what it logged; none without a discriminator that was judged twice."""
    if any(name not in columns for name in _GAP) or len(columns[_GAP[0]][0]) < 2:
        return []
    on_train, on_val = (dict(zip(*columns[name], strict=True)) for name in _GAP)
    x = [images for images in on_train if images in on_val]
    found = [Curve("accuracy of D on training images − held-out", x, [on_train[i] - on_val[i] for i in x])]
    if _AUGMENT in columns:
        found.append(Curve("strength of the augmentation", *columns[_AUGMENT]))
    for name, title in _OVER_TIME.items():
        if name in columns:
            low, high = (columns[key][1] if (key := f"{name}/{end}") in columns else None for end in _ENDS)
            whole = low is not None and high is not None and len(low) == len(high) == len(columns[name][1])
            found.append(Curve(title, *columns[name], *((low, high) if whole else ())))
    return found
