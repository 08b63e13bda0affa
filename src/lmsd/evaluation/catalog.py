"""Every score that an evaluation may give, one row each: text, report and sweep make their tables of it.

A score of real images is called NAME_floor, NAME_train, NAME_real or NAME_shuffled (`BESIDE`) and has a row
only where it is shown in a line of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["min", "max"]


@dataclass(frozen=True)
class Kind:
    """One score.

    meaning: in words; better: less or more of it, None where it ranks nothing; share: shown in percent; line:
    has a line of its own in text; title: of its chart, where its name says too little.
    """

    meaning: str
    better: Direction | None = None
    share: bool = False
    line: bool = False
    title: str | None = None


CATALOG: Mapping[str, Kind] = {
    "sw_families": Kind(
        "how far generated images lie from real ones over how far real ones do: geometric mean over the "
        "families of sw_ratio; 1 for a perfect model",
        "min",
        line=True,
    ),
    "sw_ratio": Kind(
        "sliced Wasserstein distance to one real half over that of the other half, features whitened; 1 for "
        "a perfect model",
        "min",
        line=True,
    ),
    "fd": Kind(
        "Fréchet distance of generated and held-out images, same captions, same n; 0: the same moments",
        "min",
        line=True,
    ),
    "fid": Kind(
        "Fréchet distance by the published protocol: Inception-v3, against the training images", line=True
    ),
    "fd_infinity": Kind(
        "the same without its bias in n: extrapolated to infinitely many samples", "min", line=True
    ),
    "fd_matched": Kind(
        "the same with half of n: generated from one half's captions, against the other half", "min"
    ),
    "fd_floor": Kind("the same between the two real halves: what a perfect model would get"),
    "fd_ratio": Kind("matched over floor: 1 is a perfect model", "min"),
    "kid": Kind(
        "kernel distance, the usual estimate; below 0 where captions are shared, as here", "min", line=True
    ),
    "kid_paired": Kind(
        "the same without each image against that of its own caption: 0 for a perfect model, at any n",
        "min",
        line=True,
    ),
    "cmmd": Kind("kernel distance of CLIP embeddings, times 1000, the usual estimate", "min", line=True),
    "cmmd_paired": Kind("the same without each image against that of its own caption", "min", line=True),
    "precision": Kind(
        "generated images inside the real ones' neighborhoods (k = 5)", "max", share=True, line=True
    ),
    "recall": Kind("real images inside the generated ones' neighborhoods", "max", share=True, line=True),
    "density": Kind(
        "how many real neighborhoods a generated image lies in, over k; 1 for a perfect model",
        "max",
        line=True,
    ),
    "coverage": Kind("real images with a generated one in their neighborhood", "max", share=True, line=True),
    "class_score": Kind(
        "the Inception Score's formula with this classifier: sure of each, spread over all", "max", line=True
    ),
    "is": Kind("Inception Score by the published protocol", "max", line=True),
    "clip_score": Kind("agreement of image and caption, 2.5 × cosine", "max"),
    "r_precision": Kind("images nearer to their own caption than to 99 others", "max", share=True),
    "right": Kind(
        "generated images that show what the prompt asks for",
        "max",
        share=True,
        title="Share of prompts right",
    ),
    "right_real": Kind("held-out real images that show what their own caption says", share=True),
    "neighbor_ratio": Kind(
        "distance to the nearest training image, generated over held-out",
        "max",
        title="Distance to the nearest training image, over held-out's",
    ),
    "copies": Kind("generated images that lie on single training images", "min", share=True),
}

BESIDE: Mapping[str, str] = {
    "floor": "real halves (n/2)",
    "train": "training images",
    "real": "real images",
    "shuffled": "wrong captions",
}
"""Endings of the names of scores of real images, and what those are of."""


def kind_of(name: str) -> str:
    """The kind of a full name: kid[lmsd-cnn@ab12] → kid."""
    return name.partition("[")[0]


def is_share(kind: str) -> bool:
    """Whether a kind, or the one that it stands beside, is shown in percent."""
    found = CATALOG.get(kind) or CATALOG.get(kind.rpartition("_")[0])
    return found is not None and found.share
