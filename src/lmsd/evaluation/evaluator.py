"""Held-out scores: generate from a split's captions, extract features, compare with the split's images.

Sample i of seed s is a function of (s, row i of the split): its noise comes from Rng(s, position=i), and its
prompt is row i's caption. Rows are taken in a fixed random order, so that n of N are not the first shard, and
in fixed chunks, so that who generates which chunk has no influence.

    fd      = mean_s FD(F_s, R)                        F_s, R [n,d]: generated, real
    floor   = mean_h FD(R[a_h], R[b_h])                (a_h, b_h): random label-matched halves of the n rows
    matched = mean_{h,s} ½ FD(F_s[a_h], R[b_h]) + ½ FD(F_s[b_h], R[a_h])
    ratio   = matched / floor                          same n, same labels: 1 where p_model = p_data

Intervals of distances are a jackknife over 20 groups of rows, each row with its real image and all of its
generated ones: they cover the draw of the held-out set, of the prompts and of the noise together. The spread
over generation seeds is reported beside them. With several processes each makes whole chunks, by number, and
the scores are the same as with one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import Metric

import lmsd
from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG
from lmsd.evaluation.families import Families, family_scores, refuse_trained_on
from lmsd.evaluation.features import Mirrored, cached_features, same_set, save_features
from lmsd.evaluation.foreign import Foreign, as_levels, scored, taken
from lmsd.evaluation.grid import save_grid, save_images
from lmsd.evaluation.looks import Captions
from lmsd.evaluation.measures import alignment, alike, class_scores, clip_distance, drawn, measures
from lmsd.evaluation.names import full_name, published
from lmsd.evaluation.overlap import Overlap
from lmsd.evaluation.scores import Scalar, Scores
from lmsd.evaluation.slices import rows_by_slice, sliced
from lmsd.features.base import FeatureExtractor, ImageSet, captions_of, in_range
from lmsd.metrics import Memorization, Score, matched_rows, memorization, prompts_score
from lmsd.ranks import by_chunks, by_first, rank_and_world
from lmsd.rng import Rng
from lmsd.sampling import Generate, Generation
from lmsd.types import Batch, Progress, levels

Checker = Callable[[Tensor, Sequence[str]], Tensor]
"""(images [k,C,H,W] in [-1,1], captions) → bool [k]: does the image show what the caption says?"""


@dataclass(frozen=True)
class Made:
    """What is kept of the images of one seed: features [n,d], logits [n,classes], right [n].

    images: uint8 [n,C,H,W], for others' metrics alone; beside: features of the families beside the
    extractor's.
    """

    features: Tensor
    logits: Tensor
    right: Tensor | None
    images: Tensor | None = None
    beside: tuple[Tensor, ...] = ()


class Evaluator:
    """Scores for any number of models on one split; what belongs to the real images is computed once.

    held_out: the split; n: how many of its rows (None: all); train: the training split, for the search of
    copies and the train-vs-held-out floor (None: neither); checker: an exact reader of images in place of the
    extractor's classes; chunk: images made at a time; halvings: random halves behind floor and ratio (None:
    8, or 1 for many features); cache: folder for the features of real images, by hash of data and extractor;
    shared: how many held-out images the training set holds, for the notes (None: not looked for; those with a
    training image's features are noted); mirrored: whether training mirrors images, so that a mirrored
    training image is one. Raises UserError where held_out is train itself.
    """

    def __init__(
        self,
        held_out: ImageSet,
        extractor: FeatureExtractor,
        *,
        n: int | None = None,
        train: ImageSet | None = None,
        checker: Checker | None = None,
        chunk: int = 250,
        halvings: int | None = None,
        cache: Path | None = None,
        shared: Overlap | None = None,
        mirrored: bool = False,
    ) -> None:
        total = len(held_out)
        if train is not None and shared is None and same_set(held_out, train):
            raise UserError(
                "held_out and train are one data set, whose scores flatter and hide copies: give a held-out "
                "split, or train=None to score training images as such"
            )
        if n is not None and not 2 <= n <= total:
            raise UserError(
                f"n={n} prompts of a split of {total}: give 2 to {total}; seeds= gives more images"
            )
        self.held_out, self.extractor, self.train, self.checker = held_out, extractor, train, checker
        self.n, self.chunk, self.halvings, self.cache = n or total, chunk, halvings, cache
        self.shared, self.mirrored = shared, mirrored
        self.rows = drawn(total, self.n)
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
        keep_images: Path | None = None,
        keep_features: Path | None = None,
        metrics: Mapping[str, Metric] | None = None,
        families: Families | None = None,
    ) -> Scores:
        """Scores of `generate` over every prompt and seed; every rank calls it, and gets them.

        split, ema: what the record calls them; setup: more for the record (checkpoint, images seen, commit).
        keep_images: a folder for every image, as seed_S/ROW.png; keep_features: a safetensors file. metrics:
        of torchmetrics, by the names of their scores (`lmsd.evaluation.foreign`), for which the images of all
        seeds are held as uint8. families: others that score the same images. Raises UserError for a metric of
        pairs, and for one that does not take them.
        """
        foreign = taken(metrics or {}, self._shape, self.captions)
        if not seeds or len(set(seeds)) != len(seeds):
            raise UserError(f"seeds={list(seeds)}: give at least one, each once")
        count = len(seeds)
        beside = () if families is None else families.extractors
        refuse_trained_on(generate, [self.extractor, *beside])
        made = [
            self._made(generate, seed, number, count, progress, keep_images, bool(foreign), beside)
            for number, seed in enumerate(seeds)
        ]
        real, training = self._real, self._training
        record = self._record(generate, split, ema) | dict(setup or {})
        if keep_features is not None and rank_and_world()[0] == 0:
            kept = {f"seed_{seed}": each.features for seed, each in zip(seeds, made, strict=True)}
            save_features(keep_features, kept | {"real": real.features, "rows": torch.tensor(self.rows)})
        cut = self._cut(generate)
        scores = by_first(lambda: self._scores(made, real, training, tuple(seeds), record, cut))
        if families is not None:
            scores = self._judged(scores, families, made)
        return by_first(lambda: self._with_foreign(scores, foreign, made))

    def _judged(self, scores: Scores, families: Families, made: Sequence[Made]) -> Scores:
        """Scores with those of every family, and what a glance tells."""
        known = families.prepared(self.extractor, self.held_out, self.rows)
        fakes = [list(column) for column in zip(*((m.features, *m.beside) for m in made), strict=True)]
        captions = Captions(self._keys, families.keys(labels=self.labels is not None))
        found = by_first(lambda: family_scores(known, fakes, captions, halvings=self.halvings))
        more = scores.with_more(found.scores, found.notes, {"families": families.digests()})
        return replace(more, look=found.look)

    def _with_foreign(self, scores: Scores, foreign: Sequence[Foreign], made: Sequence[Made]) -> Scores:
        """Scores with those of others' metrics, by their own names."""
        if not foreign:
            return scores
        chunks = range(0, self.n, self.chunk)
        real = [as_levels(self.held_out.images(self.rows[at : at + self.chunk])) for at in chunks]
        own = scored(foreign, [each.images for each in made], real, self.captions, self.chunk)
        return scores.with_more(own)

    def _cut(self, generate: Generate) -> list[str]:
        """What to say of captions that the generator, or the extractor of texts, reads only in part."""
        captions = self.captions or []
        readers = {f"the captions' extractor {self.extractor.name}": self.extractor.cut(captions)}
        if isinstance(generate, Generation):
            readers["the generator"] = generate.generator.conditioner.cut(captions)
        return [
            f"{count:,} of {self.n:,} captions are longer than the context of {who}, and cut"
            for who, count in readers.items()
            if count
        ]

    def _scores(
        self,
        made: Sequence[Made],
        real: Made,
        training: Tensor | None,
        seeds: tuple[int, ...],
        setup: dict[str, Scalar],
        cut: Sequence[str],
    ) -> Scores:
        fakes = [each.features for each in made]
        rows, refused = (None, None) if training is None else self._matched
        beside = None if training is None or rows is None else training[rows]
        found = measures(fakes, real.features, self._keys, training=beside, halvings=self.halvings)
        scores, notes = dict(found.scores), [*found.notes, *([] if refused is None else [refused])]
        if self.extractor.exclusive and self.n >= CATALOG["class_score"].least:
            scores |= class_scores([each.logits for each in made], real.logits)
        if self._texts is not None and self.n >= 2:
            scores |= alignment(fakes, real.features, self._texts)
        if self.extractor.kind == "clip" and "kid" in scores:
            scores |= clip_distance(fakes, real.features, self._keys, training=beside)
        protocol = published(self.extractor, setup["split"], self.n)
        named = {full_name(kind, self.extractor.name, protocol): score for kind, score in scores.items()}
        told = [each.right for each in made if each.right is not None]
        hits = torch.stack(told, dim=1) if told else None
        copied = None if training is None else memorization(fakes, training, real.features)
        leak, shared = self._leak(copied, str(setup["split"]))
        return Scores(
            extractor=self.extractor.name,
            n=self.n,
            seeds=seeds,
            scores=named | _rights(hits, real),
            slices=sliced(
                fakes, real.features, hits, self._slices, extractor=self.extractor.name, real_right=real.right
            ),
            memorization=copied,
            notes=(*notes, *cut, *leak),
            setup=setup | {"in_training_set": shared},
        )

    def _leak(self, copied: Memorization | None, split: str) -> tuple[list[str], int | None]:
        """What to say of held-out images that were trained on, and how many they are; None: nobody looked."""
        shared = self.shared
        if shared is None and copied is not None:
            shared = Overlap(exact=copied.twins, near=copied.twins, of=self.n)
        said = [] if shared is None else [shared.note()]
        if split == "train":
            said.append("split=train: the model has seen these images, its scores here flatter")
        return [note for note in said if note], None if shared is None else shared.near

    def _made(
        self,
        generate: Generate,
        seed: int,
        done: int,
        seeds: int,
        progress: Progress | None,
        keep: Path | None,
        images_too: bool,
        beside: Sequence[FeatureExtractor],
    ) -> Made:
        """One seed's n images, each kept as features only (and as a file, if asked)."""

        def work(part: slice) -> Made:
            batch = self.prompts(part)
            images = quantized(generate(batch, Rng(seed, batch.position)))
            found, logits = self.extractor(images)
            if keep is not None:
                save_images(images, batch.position.tolist(), keep / f"seed_{seed}")
            if progress is not None and rank_and_world()[0] == 0:
                progress(done * self.n + part.stop, seeds * self.n, "sampling")
            kept = as_levels(images) if images_too else None
            others = tuple(each(images)[0] for each in beside)
            return Made(found, logits, self._right(images, logits, part), kept, others)

        return _joined(by_chunks(self.n, self.chunk, work))

    def prompts(self, part: slice | Sequence[int]) -> Batch:
        """Captions and labels of a chunk, or of chosen places; x is black and only tells the shape."""
        places = range(self.n)[part] if isinstance(part, slice) else part
        chosen = list(places)
        return Batch(
            x=torch.full((len(chosen), *self._shape), -1.0),
            position=torch.tensor([self.rows[place] for place in chosen]),
            text=None if self.captions is None else [self.captions[place] for place in chosen],
            label=None if self.labels is None else self.labels[chosen],
        )

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.held_out.images(self.rows[:1]).shape[1:])

    @cached_property
    def _keys(self) -> list[int] | list[str]:
        return alike(self.labels, self.captions, self.n)

    @cached_property
    def _slices(self) -> dict[str, Tensor]:
        return rows_by_slice(None if self.labels is None else self.labels.tolist(), self.captions)

    @cached_property
    def _real(self) -> Made:
        """Features of the held-out images, and whether each shows what its own caption says."""
        features, logits = cached_features(self.held_out, self.extractor, self.rows, cache=self.cache)
        if self.checker is None:
            return Made(features, logits, self._right(None, logits, slice(0, self.n)))

        def work(part: slice) -> Tensor | None:
            return self._right(self.held_out.images(self.rows[part]), logits[part], part)

        right = [each for each in by_chunks(self.n, self.chunk, work) if each is not None]
        return Made(features, logits, torch.cat(right))

    @cached_property
    def _training(self) -> Tensor | None:
        """Features of every training image, then of each of them mirrored if training mirrors any."""
        if self.train is None:
            return None
        sets = [self.train, Mirrored(self.train)] if self.mirrored else [self.train]
        rows = range(len(self.train))
        return torch.cat([cached_features(each, self.extractor, rows, cache=self.cache)[0] for each in sets])

    @cached_property
    def _matched(self) -> tuple[Tensor | None, str | None]:
        """Training rows with the labels of the held-out ones, or None and why there are none."""
        assert self.train is not None
        everything = range(len(self.train))
        labels = self.train.labels(everything) if self.labels is not None else None
        captions = captions_of(self.train, everything) if self.captions is not None else None
        keys: Sequence[int] | Sequence[str] = [""] * len(everything)
        if labels is not None:
            keys = labels.tolist()
        elif captions is not None and self.labels is None:
            keys = captions
        try:
            return matched_rows(self._keys, keys, 0), None
        except UserError as error:
            return None, f"no floor of training images: {error}"

    @cached_property
    def _texts(self) -> Tensor | None:
        """The captions' embeddings, each caption read once: equal ones have equal rows."""
        if self.captions is None:
            return None
        rows = {caption: row for row, caption in enumerate(dict.fromkeys(self.captions))}
        texts = self.extractor.texts(list(rows))
        return None if texts is None else texts[[rows[caption] for caption in self.captions]]

    def _right(self, images: Tensor | None, logits: Tensor, part: slice) -> Tensor | None:
        captions = None if self.captions is None else self.captions[part]
        labels = None if self.labels is None else self.labels[part]
        if self.checker is not None and images is not None:
            if captions is None:
                raise UserError("a checker reads captions, and the held-out set has none")
            return torch.as_tensor(self.checker(images, captions)).bool()
        if labels is None and captions is None:
            return None
        return self.extractor.right(logits, labels, captions)

    def closest(self, generate: Generate, scores: Scores, path: Path) -> Path | None:
        """A picture of the most copy-like samples, made again, each with its nearest training image.

        None without any. For rank 0 alone.
        """
        if scores.memorization is None or self.train is None:
            return None
        images: list[Tensor] = []
        captions: list[str] = []
        for number, row, source in scores.memorization.pairs:
            batch = self.prompts([row])
            made = quantized(generate(batch, Rng(scores.seeds[number], batch.position)))
            turned, source = divmod(source, len(self.train))
            beside = Mirrored(self.train) if turned else self.train
            images += [made[0], beside.images([source])[0]]
            captions.append(f"seed {scores.seeds[number]}, row {self.rows[row]}")
            captions.append(f"training {source}" + (", mirrored" if turned else ""))
        return save_grid(images, captions, path, columns=8, tile=64)

    def _record(self, generate: Generate, split: str, ema: str) -> dict[str, Scalar]:
        """Settings that every number stands with."""
        made: dict[str, Scalar] = {}
        if isinstance(generate, Generation):
            made, tau = dict(generate.record()), vars(generate.sampler).get("tau")
            made |= {} if tau is None else {"tau": float(tau)}
        return {
            "split": split,
            "ema": ema,
            **made,
            "data": self.held_out.hash,
            "extractor_sha256": self.extractor.sha256,
            "resize": self.extractor.resize,
            "reference": f"{self.n} images of {split}",
            "right_by": "checker" if self.checker is not None else self.extractor.name,
            "version": lmsd.__version__,
        }


def quantized(images: Tensor) -> Tensor:
    """Images clamped to [-1,1], on the 256 levels that real images have. Raises UserError for NaN."""
    return in_range(levels(in_range(images.clamp(-1.0, 1.0))))


def _rights(hits: Tensor | None, real: Made) -> dict[str, Score]:
    found = {} if hits is None else {"right": prompts_score(hits, share=True)}
    if real.right is not None:
        found["right_real"] = prompts_score(real.right[:, None], share=True)
    return found


def _joined(parts: Sequence[Made]) -> Made:
    right = [part.right for part in parts if part.right is not None]
    images = [part.images for part in parts if part.images is not None]
    return Made(
        torch.cat([part.features for part in parts]),
        torch.cat([part.logits for part in parts]),
        torch.cat(right) if right else None,
        torch.cat(images) if images else None,
        tuple(torch.cat(column) for column in zip(*(part.beside for part in parts), strict=True)),
    )
