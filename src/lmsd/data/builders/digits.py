"""Scikit-learn's handwritten digits: 1,797 real 8x8 scans of 43 writers (UCI ML repository, test part)."""

import numpy as np

from lmsd.data.builders.source import Defaults, Raw, Source
from lmsd.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits_source() -> Source:
    """Grey 8x8 digits captioned "a handwritten seven"; UserError when scikit-learn is not installed.

    The two most similar digits correlate at 0.9942, so at 0.995 none is taken for a copy of another.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the source digits needs scikit-learn: pip install 'lmsd[digits]'") from error
    loaded = load_digits()
    pictures = np.round(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
    samples = [
        Raw(
            f"digit {index:04d}",
            picture,
            f"a handwritten {WORDS[label]}",
            int(label),
            fields={"cls": int(label)},
        )
        for index, (picture, label) in enumerate(zip(pictures, loaded.target, strict=True))
    ]
    return Source(
        name="digits",
        samples=samples,
        total=len(samples),
        defaults=Defaults(image_size=8, channels=1, similarity=0.995, kinship=0.98, val=0.175, test=0.28),
        classes=list(WORDS),
        fields=frozenset({"cls"}),
    )
