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
    has a line of its own in text; title: of its chart, where its name says too little; least: images below
    which it is left out; extractors: those that give it, where not all do.
    """

    meaning: str
    better: Direction | None = None
    share: bool = False
    line: bool = False
    title: str | None = None
    least: int = 2
    extractors: tuple[str, ...] = ()


PAIRED = 80
"""Images whose label-matched pairs are just enough for the intervals of distances."""
LOCAL = 400
"""Images from which neighborhoods of five are local enough to tell precision from recall."""
CANDIDATES = 100
"""Captions among which R-precision looks for an image's own."""
PROTOCOL = 50_000
"""Generated and training images that bare `fid` and `is` stand on, as published figures do."""
FEATURES: Mapping[str, int] = {"lmsd-cnn": 64, "lmsd-ssl": 64, "random-conv": 96, "inception": 2048}
"""How many features an extractor has; Fréchet distances take twice as many images."""

CATALOG: Mapping[str, Kind] = {
    "sw_families": Kind(
        "how far generated images lie from real ones over how far real ones do: geometric mean over the "
        "families of sw_ratio; 1 for a perfect model",
        "min",
        line=True,
        least=PAIRED,
    ),
    "sw_ratio": Kind(
        "sliced Wasserstein distance to one real half over that of the other half, features whitened; 1 for "
        "a perfect model",
        "min",
        line=True,
        least=PAIRED,
    ),
    "grid": Kind("how high a grid of some pixels stands in the images' steps; 0: none", line=True),
    "color": Kind("strength of colors over training images'; 1 for a perfect model", line=True),
    "kinds": Kind("kinds of images in a caption over held-out ones'; 1 for a perfect model", line=True),
    "fd": Kind(
        "Fréchet distance of generated and held-out images, same captions, same n; 0: the same moments",
        "min",
        line=True,
        least=PAIRED,
    ),
    "fid": Kind(
        "Fréchet distance by the published protocol: Inception-v3, against the training images", line=True
    ),
    "fd_infinity": Kind(
        "the same without its bias in n: extrapolated to infinitely many samples",
        "min",
        line=True,
        least=PAIRED,
    ),
    "fd_matched": Kind(
        "the same with half of n: generated from one half's captions, against the other half",
        "min",
        least=PAIRED,
    ),
    "fd_floor": Kind("the same between the two real halves: what a perfect model would get"),
    "fd_ratio": Kind("matched over floor: 1 is a perfect model", "min", least=PAIRED),
    "kid": Kind(
        "kernel distance, the usual estimate; below 0 where captions are shared, as here",
        "min",
        line=True,
        least=PAIRED,
    ),
    "kid_paired": Kind(
        "the same without each image against that of its own caption: 0 for a perfect model, at any n",
        "min",
        line=True,
        least=PAIRED,
    ),
    "cmmd": Kind(
        "kernel distance of CLIP embeddings, times 1000, the usual estimate",
        "min",
        line=True,
        least=PAIRED,
        extractors=("clip",),
    ),
    "cmmd_paired": Kind(
        "the same without each image against that of its own caption",
        "min",
        line=True,
        least=PAIRED,
        extractors=("clip",),
    ),
    "precision": Kind(
        "generated images inside the real ones' neighborhoods (k = 5)",
        "max",
        share=True,
        line=True,
        least=LOCAL,
    ),
    "recall": Kind(
        "real images inside the generated ones' neighborhoods", "max", share=True, line=True, least=LOCAL
    ),
    "density": Kind(
        "how many real neighborhoods a generated image lies in, over k; 1 for a perfect model",
        "max",
        line=True,
        least=LOCAL,
    ),
    "coverage": Kind(
        "real images with a generated one in their neighborhood", "max", share=True, line=True, least=LOCAL
    ),
    "class_score": Kind(
        "the Inception Score's formula with this classifier: sure of each, spread over all",
        "max",
        line=True,
        least=20,
        extractors=("lmsd-cnn", "inception"),
    ),
    "is": Kind(
        "Inception Score by the published protocol",
        "max",
        line=True,
        least=PROTOCOL,
        extractors=("inception",),
    ),
    "clip_score": Kind("agreement of image and caption, 2.5 × cosine", "max", extractors=("clip",)),
    "r_precision": Kind(
        "images nearer to their own caption than to 99 others",
        "max",
        share=True,
        least=CANDIDATES,
        extractors=("clip",),
    ),
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
