"""Images to train on, drawn from a generator: captions of the training law, then two filters.

    kept      p(asked | x̂) ≥ confidence        p: of the classifier; of all words of a caption, the least
              d₁(x̂) > q                         d₁: distance of features to the nearest training image;
                                                 q: a low quantile of the training images' own distances to
                                                 their nearest other one, below which an image is a copy

Sample j is a function of (seed, j): its caption and its noise do not depend on how many are drawn at once.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lmsd.errors import Share, UserError
from lmsd.evaluation.evaluator import quantized
from lmsd.features.base import FeatureExtractor, ImageSet, captions_of
from lmsd.features.cnn import Extractor
from lmsd.metrics.neighbors import nearest
from lmsd.rng import Rng
from lmsd.types import Batch, levels, scale

_CAPTION = 1  # a stream of random numbers beside the noise


class Law:
    """Captions and classes of a training set, to draw from.

    balanced: each class, or each distinct caption where there are no classes, as often as any other; else as
    they are. shape: of the images that will be asked for.
    """

    def __init__(self, train: ImageSet, *, balanced: bool, shape: Sequence[int]) -> None:
        rows = range(len(train))
        self.labels, self.captions, self.shape = train.labels(rows), captions_of(train, rows), tuple(shape)
        keys = self.captions if self.labels is None else self.labels.tolist()
        groups: dict[object, list[int]] = {}
        for row, key in enumerate(keys or [None] * len(train)):
            groups.setdefault(key if balanced else None, []).append(row)
        self.groups = list(groups.values())

    def batch(self, positions: Tensor, seed: int) -> Batch:
        """What the samples at these positions are to show; x is black and only tells the shape."""
        drawn = Rng(seed, positions, turn=_CAPTION).uniform((2,), "synthesis").double()
        groups = [self.groups[int(u * len(self.groups))] for u in drawn[:, 0].tolist()]
        rows = [own[int(u * len(own))] for own, u in zip(groups, drawn[:, 1].tolist(), strict=True)]
        return Batch(
            x=torch.full((len(rows), *self.shape), -1.0),
            position=positions,
            text=None if self.captions is None else [self.captions[row] for row in rows],
            label=None if self.labels is None else self.labels[rows],
        )


class Filters:
    """Which images are kept; see the module.

    extractor: of the features; train: the training images; classifier: whose confidence is asked for, None:
    nobody's; confidence: 0: any; near: the quantile, 0: any distance. Raises UserError for a confidence that
    nobody can tell.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        train: ImageSet,
        *,
        classifier: Extractor | None,
        confidence: Share,
        near: Share,
    ) -> None:
        if confidence and (classifier is None or classifier.recipe.target == "views"):
            raise UserError(
                f"confidence={confidence:g} is asked of {extractor.name}, which knows no classes: take "
                "confidence=0, or lmsd-cnn"
            )
        self.extractor, self.classifier, self.confidence = extractor, classifier, confidence
        rows = range(len(train))
        chunks = [extractor(train.images(rows[at : at + 500]))[0] for at in range(0, len(train), 500)]
        self.features = torch.cat(chunks)
        own = nearest(self.features, self.features, k=2)[0][:, 1] if near and len(train) > 1 else None
        self.threshold = -1.0 if own is None else float(own.double().quantile(near))

    def __call__(self, images: Tensor, batch: Batch) -> list[str]:
        """Of each image [n,C,H,W] of the batch: "kept", "unsure" or "copy"."""
        features = self.extractor(images)[0]
        sure = torch.ones(len(images), dtype=torch.bool)
        if self.confidence and self.classifier is not None:
            sure = confidences(self.classifier, self.classifier(images)[1], batch) >= self.confidence
        far = nearest(features, self.features)[0][:, 0] > self.threshold
        return [
            "unsure" if not s else "copy" if not f else "kept"
            for s, f in zip(sure.tolist(), far.tolist(), strict=True)
        ]


def confidences(extractor: Extractor, logits: Tensor, batch: Batch) -> Tensor:
    """The probability [n] that an image shows its class; of the words of a caption, the least."""
    target = extractor.target(batch.label, batch.text)
    if extractor.recipe.target == "label":
        return logits.softmax(1).gather(1, target[:, None])[:, 0]
    return torch.where(target > 0, logits, -logits).sigmoid().amin(1)


@dataclass
class Drawn:
    """What was drawn: images as uint8 [n,C,H,W] with captions and classes; told: verdicts on all tried."""

    images: Tensor
    text: list[str] | None
    labels: list[int] | None
    tried: int
    told: Counter[str] = field(default_factory=Counter)


def true_of(found: Drawn, *, reads: str, judged: str | None) -> Drawn:
    """Without captions and classes that the images were not made of and nobody has found in them.

    reads: what the generator was asked by, "text", "label" or "nothing"; judged: by what the classifier has
    filtered, "words" or "label", None where it has not.
    """
    text = found.text if reads == "text" or judged == "words" else None
    labels = found.labels if reads != "nothing" or judged == "label" else None
    return replace(found, text=text, labels=labels)


def synthesize(
    generate: Callable[[Batch, Rng], Tensor],
    law: Law,
    filters: Filters,
    *,
    n: int,
    seed: int = 0,
    chunk: int = 100,
    most: int = 50,
    progress: Callable[[int, int, str], None] | None = None,
) -> Drawn:
    """The first n samples that are kept, in the order of their positions.

    chunk: images drawn at a time; most: samples that may be drawn for each one that is wanted, on average.
    Raises UserError where that is not enough.
    """
    images: list[Tensor] = []
    text: list[str] = []
    labels: list[int] = []
    told: Counter[str] = Counter()
    for batch, made, verdicts in _rounds(generate, law, filters, seed, chunk):
        for row, verdict in enumerate(verdicts):
            told[verdict] += 1
            if verdict == "kept":
                images.append(made[row])
                text += [] if batch.text is None else [batch.text[row]]
                labels += [] if batch.label is None else [int(batch.label[row])]
            if len(images) == n:
                tried = told.total()
                own = (text or None, labels or None)
                return Drawn(torch.stack(images), *own, tried, told)
        if progress is not None:
            progress(len(images), n, "images")
        if told.total() >= most * n + chunk:
            raise UserError(
                f"of {told.total():,} images {told['kept']:,} passed ({told['unsure']:,} unsure, "
                f"{told['copy']:,} copies) and n={n:,} are wanted: lower confidence= or near=, or train "
                "longer"
            )
    raise AssertionError("rounds are endless")


def _rounds(
    generate: Callable[[Batch, Rng], Tensor], law: Law, filters: Filters, seed: int, chunk: int
) -> Iterator[tuple[Batch, Tensor, list[str]]]:
    """Batches, their images as uint8 and the verdicts on them, without end."""
    first = 0
    while True:
        batch = law.batch(torch.arange(first, first + chunk), seed)
        made = levels(quantized(generate(batch, Rng(seed, batch.position))))
        yield batch, made, filters(scale(made), batch)
        first += chunk
