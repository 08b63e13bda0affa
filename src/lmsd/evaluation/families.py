"""Several families of features for one claim: what a run is tuned on is never all that judges it.

A distance in one net's features can be trained down (by FD as a loss, by a reward, by looking at it often
enough) while the images get no better; nets that share nothing do not follow. Beside the extractor that a run
is selected by stand one that never saw a label and one that never learned, `lmsd-ssl` and `random-conv` (and
DINOv2 where there is one). Each scores the same images, and a claim is what all of them say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import UserError
from lmsd.evaluation.catalog import CATALOG, kind_of
from lmsd.evaluation.distances import row_groups
from lmsd.evaluation.features import cached_features
from lmsd.evaluation.looks import Captions, Looks, glance, kinds_of, sentence
from lmsd.evaluation.measures import LEAST_PAIRS, measures
from lmsd.evaluation.scores import score_of
from lmsd.features.base import FeatureExtractor, ImageSet, captions_of
from lmsd.metrics import Score, compare, matched_halves
from lmsd.metrics.sliced import geometric_mean, sliced_ratio, whitening
from lmsd.sampling import Generate, Generation

WHITENED = 10_000
"""Training images, drawn once, on which the features of every family are whitened."""
JUDGE = ("fd", "kid_paired", "sw_ratio")
"""The score by which a family judges: the first of these that its record has."""


@dataclass(frozen=True)
class Prepared:
    """What a family knows of the real images: features of held-out [n,d] and of training ones [N,d]."""

    name: str
    real: Tensor
    train: Tensor


class Families:
    """Extractors beside an evaluation's own, and the training images that all features are whitened on.

    extractors: they, and `Looks` last; cache: folder for features of real images, by hash of data and
    extractor.
    """

    def __init__(
        self, beside: Sequence[FeatureExtractor], train: ImageSet, *, cache: Path | None = None
    ) -> None:
        self.beside, self.train, self.cache = tuple(beside), train, cache
        self.extractors: tuple[FeatureExtractor, ...] = (*beside, Looks())
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        self.rows: list[int] = order[:WHITENED].sort().values.tolist()

    def digests(self) -> str:
        """NAME=sha256 of every extractor, for the record."""
        return ", ".join(f"{each.name}={each.sha256}" for each in self.beside)

    def prepared(
        self, extractor: FeatureExtractor, held_out: ImageSet, rows: Sequence[int]
    ) -> list[Prepared]:
        """The evaluation's own family, then those beside it; every rank calls it and does its share."""
        found = []
        for each in (extractor, *self.extractors):
            real = cached_features(held_out, each, rows, cache=self.cache)[0]
            train = cached_features(self.train, each, self.rows, cache=self.cache)[0]
            found.append(Prepared(each.name, real, train))
        return found

    def keys(self, *, labels: bool) -> Sequence[int] | Sequence[str]:
        """Labels of the training images that are whitened on, or captions; all alike without any."""
        found = self.train.labels(self.rows) if labels else None
        if found is not None:
            numbers: list[int] = found.tolist()
            return numbers
        return captions_of(self.train, self.rows) or [""] * len(self.rows)


@dataclass(frozen=True)
class Judged:
    """What families say together: scores by full name, what was refused, what a glance tells, if any."""

    scores: dict[str, Score]
    notes: list[str]
    look: dict[str, Any] | None = None


def family_scores(
    families: Sequence[Prepared],
    fakes: Sequence[Sequence[Tensor]],
    captions: Captions,
    *,
    halvings: int | None = None,
) -> Judged:
    """All that features tell, but for kernel distances, and what a glance does.

    fakes: of every family, an array [n,d] a seed. The first family is the evaluation's own, whose other
    scores are there already: the ratio is all that is added. The last is of `Looks`.
    """
    keys = captions.held_out
    halves = matched_halves(keys, 0)
    if len(halves[0]) < LEAST_PAIRS:
        return Judged({}, [])
    groups = row_groups(len(keys), halves)
    found: dict[str, Score] = {}
    notes: list[str] = []
    ratios, kinds = [], []
    *judges, eye = zip(families, fakes, strict=True)
    for place, (family, made) in enumerate(judges):
        white = whitening(family.train)
        if place:
            own = measures(made, family.real, keys, halvings=halvings, kernel=False)
            found |= {f"{kind}[{family.name}]": score for kind, score in own.scores.items()}
            notes += [f"{family.name}: {note}" for note in own.notes]
        ratios.append(sliced_ratio(made, family.real, halves, groups, white))
        found[f"sw_ratio[{family.name}]"] = ratios[-1]
        kinds.append(kinds_of(made, family.real, family.train, captions))
    fewest = min(kinds, key=lambda score: score.interval.value)
    seen = glance(eye[1], eye[0].train, fewest, by_caption=captions.numbered()[2])
    look = {"named": seen.named, "spectrum": seen.spectrum}
    return Judged({"sw_families": geometric_mean(ratios)} | found | seen.scores, notes, look)


def families_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of a record by family and kind, the evaluation's own family first."""
    own = str(record.get("extractor"))
    found: dict[str, dict[str, Any]] = {own: {}}
    for name, score in record.get("scores", {}).items():
        kind, _, extractor = name.rstrip("]").partition("[")
        if extractor or CATALOG.get(kind_of(name)) is not None:
            found.setdefault(extractor or own, {})[kind] = score
    return {name: scores for name, scores in found.items() if scores}


def distances_said(record: Mapping[str, Any], split: str) -> list[str]:
    """How far every family of features sees generated images from real ones; what the run was tuned on."""
    found = families_of(record)
    scored = {name: own["sw_ratio"] for name, own in found.items() if "sw_ratio" in own}
    tuned = record.get("setup", {}).get("tuned_on")
    said = [] if tuned is None else [f"The run was tuned on {tuned}: a claim rests on the other families."]
    if len(scored) < 2:
        again = f"`lmsd evaluate run=RUN split={split}` adds the others"
        alone = f"Scored by one family of features alone ({next(iter(found), 'none')}): {again}."
        return [alone, *said] if found else said
    mean = record["scores"]["sw_families"]
    each = ", ".join(f"{score['value']:.2f} by {name}" for name, score in scored.items())
    ends = f"95 % interval {mean['low']:.2f} to {mean['high']:.2f}"
    seen = [name for name, score in scored.items() if score["low"] > 1.0]
    who = {0: "none tells them apart", len(scored): "all tell them apart"}
    told = who.get(len(seen), f"only {' and '.join(seen)} told them apart")
    distance = f"Generated images lie {mean['value']:.2f} × as far from real ones as real ones do ({ends}"
    look = record.get("look")
    off = [] if look is None else [sentence(look["named"])]
    return [f"{distance}; {each}): {told}.", *off, *said]


def verdict_of(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """What the families say of a record against another of the same rows: which is better, if all agree.

    Each judges by its own distance at 5 %. "Better" is a claim that all of them must reject at that level,
    so that it holds at it without any correction (Berger 1982). None where they share no distance.
    """
    ours, theirs = families_of(one), families_of(other)
    votes: dict[str, int] = {}
    for name in ours:
        other = theirs.get(name, {})
        kinds = [kind for kind in JUDGE if kind in ours[name] and _paired(ours[name][kind], other.get(kind))]
        if kinds:
            found = compare(score_of(ours[name][kinds[0]]), score_of(other[kinds[0]]))
            votes[name] = int(math.copysign(1, found.difference.value)) if found.different else 0
    return told(votes) if votes else None


def _paired(one: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    """Whether two scores have values on the same groups of rows."""
    return other is not None and 1 < len(one.get("parts", ())) == len(other.get("parts", ()))


def told(votes: Mapping[str, int], *, less: str = "better", more: str = "worse") -> str:
    """In words what families say whose distances fell (−1), rose (1) or did not move beyond chance (0)."""
    moved = {-1: "smaller", 0: "not told apart", 1: "larger"}
    kinds = set(votes.values())
    if len(votes) > 1 and len(kinds) == 1:
        (vote,) = kinds
        word = {-1: less, 0: "not told apart", 1: more}[vote]
        return f"{word}, and all {len(votes)} families agree"
    said = ", ".join(f"{moved[vote]} by {name}" for name, vote in votes.items())
    if len(votes) == 1:
        return f"{said} alone, which is no claim: that takes a second family"
    return f"neither {less} nor {more}, for the families do not agree: {said}"


def refuse_trained_on(generate: Generate, extractors: Sequence[FeatureExtractor]) -> None:
    """Raise UserError if the codec of what makes the images was trained on features of one of these."""
    features = generate.record().get("codec_features") if isinstance(generate, Generation) else None
    for extractor in extractors:
        if features == extractor.sha256:
            raise UserError(
                f"{extractor.name} trained the codec of this run, so scores in its features would flatter: "
                "take another extractor"
            )
