"""Held-out scores: generate from a split's captions, extract features, compare with the split's images.

Sample i of seed s is a function of (s, row i of the split): its noise comes from Rng(s, position=i), and its
prompt is row i's caption. Rows are taken in a fixed random order, so that n of N are not the first shard, and
in fixed chunks, so that who generates which chunk has no influence.

    fd      = mean_s FD(F_s, R)                        F_s, R [n,d]: generated, real
    floor   = mean_h FD(R[a_h], R[b_h])                (a_h, b_h): random label-matched halves of the n rows
    matched = mean_{h,s} ½ FD(F_s[a_h], R[b_h]) + ½ FD(F_s[b_h], R[a_h])
    ratio   = matched / floor                          same n, same labels: 1 where p_model = p_data

Intervals are a jackknife over 20 groups of rows, each row with its real image and all of its generated ones:
they cover the draw of the held-out set, of the prompts and of the noise together.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import lmsd
from lmsd.errors import UserError
from lmsd.evaluation.distances import Distances, distances
from lmsd.evaluation.features import FeatureExtractor, cached_features
from lmsd.evaluation.generate import Generate, Generation
from lmsd.evaluation.scores import Scalar, Scores
from lmsd.metrics import (
    Interval,
    NeighborRatio,
    matched_halves,
    nearest_neighbor_ratio,
    wilson,
)
from lmsd.models.extractor import ImageSet, captions_of
from lmsd.rng import Rng
from lmsd.types import Batch

Checker = Callable[[Tensor, Sequence[str]], Tensor]
"""(images [k,C,H,W] in [-1,1], captions) → bool [k]: does the image show what the caption says?"""

Progress = Callable[[int, int], None]
"""(images made, images in all)."""


class Evaluator:
    """Scores for any number of models on one split; what belongs to the real images is computed once.

    held_out: the split; n: how many of its rows (None: all); train: the training split, for nearest neighbors
    (None: not measured); neighbors: the space they are sought in; checker: an exact reader of images in place
    of the extractor's classes; chunk: images made at a time; halvings: random halves behind floor and ratio;
    cache: folder for the features of real images, by hash of data and extractor.
    """

    def __init__(
        self,
        held_out: ImageSet,
        extractor: FeatureExtractor,
        *,
        n: int | None = None,
        train: ImageSet | None = None,
        neighbors: Literal["features", "pixels"] = "features",
        checker: Checker | None = None,
        chunk: int = 250,
        halvings: int = 8,
        cache: Path | None = None,
    ) -> None:
        total = len(held_out)
        if n is not None and not 2 <= n <= total:
            raise UserError(
                f"n={n} prompts of a split of {total}: give 2 to {total}, and more seeds for more"
            )
        self.held_out, self.extractor, self.train, self.checker = held_out, extractor, train, checker
        self.n, self.chunk, self.halvings, self.cache = n or total, chunk, halvings, cache
        self.space = neighbors
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        self.rows: list[int] = order[: self.n].tolist()
        self.labels = held_out.labels(self.rows)
        self.captions = captions_of(held_out, self.rows)

    def __call__(
        self,
        generate: Generate,
        *,
        seeds: Sequence[int] = (0,),
        split: str = "val",
        ema: str = "none",
        setup: Mapping[str, Scalar] | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Scores of `generate` over every prompt and seed.

        split, ema: what the record calls them; setup: more for the record (checkpoint, images seen, commit).
        """
        if not seeds or len(set(seeds)) != len(seeds):
            raise UserError(f"seeds={list(seeds)}: give at least one, each once")
        count = len(seeds)
        made = [self._generated(generate, seed, place, count, progress) for place, seed in enumerate(seeds)]
        fakes = [features for features, _, _ in made]
        hits = [right for _, right, _ in made if right is not None]
        distance = self._distances(fakes)
        real_right = self._real[1]
        return Scores(
            extractor=self.extractor.name,
            n=self.n,
            seeds=tuple(seeds),
            distances=distance,
            right=_share(hits),
            right_real=_share([] if real_right is None else [real_right]),
            neighbors=self._neighbors(torch.cat([near for _, _, near in made])),
            notes=self._notes(distance),
            setup=self._record(generate, split, ema) | dict(setup or {}),
        )

    def _generated(
        self, generate: Generate, seed: int, done: int, seeds: int, progress: Progress | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features [n,d], right [n] and what neighbors are sought by [n,·], of one seed's n images."""
        features: list[Tensor] = []
        right: list[Tensor] = []
        near: list[Tensor] = []
        for start in range(0, self.n, self.chunk):
            place = slice(start, min(start + self.chunk, self.n))
            batch = self._prompts(place)
            images = quantized(generate(batch, Rng(seed, batch.position)))
            found, logits = self.extractor(images)
            features.append(found)
            near.append(self._near(images, found))
            hit = self._right(images, logits, place)
            right += [] if hit is None else [hit]
            if progress is not None:
                progress(done * self.n + place.stop, seeds * self.n)
        return torch.cat(features), torch.cat(right) if right else None, torch.cat(near)

    def _prompts(self, place: slice) -> Batch:
        """Captions and labels of a chunk; x is black and only tells the shape."""
        position = torch.tensor(self.rows[place])
        return Batch(
            x=torch.full((len(position), *self._shape), -1.0),
            position=position,
            text=None if self.captions is None else self.captions[place],
            label=None if self.labels is None else self.labels[place],
        )

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.held_out.images(self.rows[:1]).shape[1:])

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor | None]:
        """Features [n,d] of the held-out images, and whether each shows what its own caption says."""
        features, logits = cached_features(self.held_out, self.extractor, self.rows, cache=self.cache)
        if self.checker is None:
            return features, self._right(None, logits, slice(0, self.n))
        parts = [slice(start, start + self.chunk) for start in range(0, self.n, self.chunk)]
        right = [self._right(self.held_out.images(self.rows[part]), logits[part], part) for part in parts]
        return features, torch.cat([part for part in right if part is not None])

    @cached_property
    def _training(self) -> tuple[Tensor, Tensor]:
        """What neighbors are sought by, of every training image and of the held-out ones."""
        assert self.train is not None
        everything = range(len(self.train))
        if self.space == "features":
            return cached_features(self.train, self.extractor, everything, cache=self.cache)[0], self._real[0]
        return self.train.images(everything).flatten(1), self.held_out.images(self.rows).flatten(1)

    def _near(self, images: Tensor, features: Tensor) -> Tensor:
        if self.train is None:
            return features[:, :0]
        return features if self.space == "features" else images.flatten(1)

    def _neighbors(self, generated: Tensor) -> NeighborRatio | None:
        return None if self.train is None else nearest_neighbor_ratio(generated, *self._training)

    def _right(self, images: Tensor | None, logits: Tensor, place: slice) -> Tensor | None:
        captions = None if self.captions is None else self.captions[place]
        labels = None if self.labels is None else self.labels[place]
        if self.checker is not None and images is not None:
            if captions is None:
                raise UserError("a checker reads captions, and the held-out set has none")
            return torch.as_tensor(self.checker(images, captions)).bool()
        return None if labels is None and captions is None else self.extractor.right(logits, labels, captions)

    def _distances(self, fakes: list[Tensor]) -> Distances | None:
        """FD and what stands beside it; None where n is too small for the features."""
        real = self._real[0]
        if self.n < 2 * real.shape[1]:
            return None
        labels = self.labels if self.labels is not None else self.captions
        keys = [""] * self.n if labels is None else labels
        return distances(fakes, real, matched_halves(keys, 0), halvings=self.halvings)

    def _notes(self, distance: Distances | None) -> tuple[str, ...]:
        least = 2 * self._real[0].shape[1]
        if distance is None:
            return (
                f"no fd[{self.extractor.name}]: n={self.n} is below {least}, twice the number of features",
            )
        return ()

    def _record(self, generate: Generate, split: str, ema: str) -> dict[str, Scalar]:
        """Settings that every number stands with."""
        made: dict[str, Scalar] = dict(generate.record()) if isinstance(generate, Generation) else {}
        return {
            "split": split,
            "ema": ema,
            **made,
            "data": getattr(self.held_out, "hash", None),
            "extractor_sha256": self.extractor.sha256,
            "neighbor_space": self.space if self.train is not None else None,
            "right_by": "checker" if self.checker is not None else self.extractor.name,
            "intervals": "jackknife over 20 groups of rows (right: Wilson), 95 %",
            "version": lmsd.__version__,
        }


def evaluate(
    generate: Generate,
    held_out: ImageSet,
    *,
    extractor: FeatureExtractor,
    n: int | None = None,
    seeds: Sequence[int] = (0,),
    train: ImageSet | None = None,
    checker: Checker | None = None,
    split: str = "val",
    ema: str = "none",
) -> Scores:
    """Scores of one model on one split: `Evaluator(held_out, extractor, ...)(generate, ...)`."""
    evaluator = Evaluator(held_out, extractor, n=n, train=train, checker=checker)
    return evaluator(generate, seeds=seeds, split=split, ema=ema)


def quantized(images: Tensor) -> Tensor:
    """Images in [-1,1] rounded to the 256 levels that real images have."""
    return images.clamp(-1.0, 1.0).add(1.0).mul_(127.5).round_().div_(127.5).sub_(1.0)


def _share(hits: list[Tensor]) -> Interval | None:
    if not hits:
        return None
    every = torch.cat(hits)
    return wilson(int(every.sum()), len(every))
