"""Every metric of this package as a `torchmetrics.Metric`, for collections and anybody's LightningModule.

    metric = FrechetDistance(feature=extractor)      # or without, and features [b,d] in place of images
    metric.update(images, real=True); metric.update(made, real=False); metric.compute()

States are float64 rows with their places, gathered from all ranks and put in order of (seed, position) before
anything is computed: the result depends neither on the number of ranks nor on who saw what. Where an estimate
and its interval need sums alone (`shares.Share`), sums are kept. Without positions rows are numbered in turn.

`compute` gives the value; `scores` gives every score that the same rows tell, with intervals. Row i of real
and generated ones belong together (a caption in common) where their positions are the same.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.alignment import clip_scores, r_precision
from lmsd.metrics.frechet import frechet_distance
from lmsd.metrics.inception import inception_score_by_seed, inception_scores
from lmsd.metrics.infinity import frechet_by_rows, frechet_infinity
from lmsd.metrics.intervals import GROUPS, Interval, Score, jackknife_groups, prompts_score
from lmsd.metrics.kernel import gaussian, kernel_distance, kernel_distance_by_rows, polynomial, unit_rows
from lmsd.metrics.manifold import manifold, manifold_by_rows
from lmsd.metrics.neighbors import Memorization, memorization

Feature = Callable[[Tensor], Tensor]
"""What a metric is given → rows [b,d]."""

_REAL = -1


class Rows(Metric):
    """Base: rows of real and of generated samples, the latter by seed.

    feature: makes rows of what `update` gets (None: they are rows); sync: whether `compute` and `scores` put
    the rows of all ranks together.
    """

    is_differentiable = False
    full_state_update = True  # `forward` would number the rows of every batch from 0
    higher_is_better: bool | None = False
    kind = ""
    rows: list[Tensor]
    places: list[Tensor]

    def __init__(self, *, feature: Feature | None = None, sync: bool = True) -> None:
        super().__init__(sync_on_compute=sync)
        self.feature = feature
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("places", default=[], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)

    @explained
    def update(  # type: ignore[override]
        self, x: Tensor, real: bool = False, *, position: Tensor | None = None, seed: int = 0
    ) -> None:
        """Take in rows [b,d], or what `feature` makes rows of; position int64 [b]; seed: of generated."""
        self._take(x if self.feature is None else self.feature(x), real, position, seed)

    def _take(self, rows: Tensor, real: bool, position: Tensor | None, seed: int) -> None:
        if rows.ndim != 2 or rows.is_complex():
            raise UserError(f"{type(self).__name__}: rows are real numbers [b,d], not {list(rows.shape)}")
        stream = _REAL if real else seed
        if position is None:
            before = sum(int((place[:, 0] == stream).sum()) for place in self.places)
            position = torch.arange(before, before + len(rows))
        place = torch.stack([torch.full_like(position, stream), position], dim=1)
        self.rows.append(rows.detach().double())
        self.places.append(place.to(rows.device))

    @explained
    def compute(self) -> Tensor:
        """The value, float64."""
        return torch.tensor(self._value(*self._arrays()[:2]), dtype=torch.float64)

    @explained
    def scores(self, groups: Tensor | None = None) -> dict[str, Score]:
        """Every score by name, with its interval; groups [n]: of the jackknife, by position; None: drawn."""
        fakes, real, paired = self._of_all()
        return self._scores(fakes, real, groups, paired)

    def _of_all(self) -> tuple[list[Tensor], Tensor, bool]:
        """`_arrays` of all ranks."""
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._arrays()

    def _arrays(self) -> tuple[list[Tensor], Tensor, bool]:
        """Generated rows of every seed, real ones, in order; whether all of them have the same positions."""
        if not len(self.rows):
            raise UserError(f"{type(self).__name__} has seen nothing: call update before compute")
        rows, places = (dim_zero_cat(state).cpu() for state in (self.rows, self.places))
        order = places[:, 1].argsort(stable=True)
        order = order[places[order, 0].argsort(stable=True)]
        rows, places = rows[order], places[order]
        streams, counts = places[:, 0].unique_consecutive(return_counts=True)
        found = dict(zip(streams.tolist(), rows.split(counts.tolist()), strict=True))
        at = [each.tolist() for each in places[:, 1].split(counts.tolist())]
        real = found.pop(_REAL, rows[:0])
        if not found:
            raise UserError(f"{type(self).__name__} has seen real rows alone: update it with generated ones")
        return list(found.values()), real, all(each == at[0] for each in at)

    @abstractmethod
    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        """The estimate alone."""

    @abstractmethod
    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        """Every score."""


def _bare(value: float, by_seed: Sequence[float] = ()) -> Score:
    """A value without interval."""
    return Score(Interval(value, math.nan, math.nan), by_seed=tuple(by_seed))


class FrechetDistance(Rows):
    """FD (`frechet_distance`), mean over the seeds; `scores` has fd and fd_infinity."""

    kind = "fd"

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        return fmean(frechet_distance(fake, real) for fake in fakes)

    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        own = jackknife_groups(len(fakes[0])) if groups is None else groups
        others = None if paired else jackknife_groups(len(real), seed=1)
        fd, infinity = frechet_by_rows(fakes, real, own, others)
        return {"fd": fd, "fd_infinity": infinity}


class FrechetInfinity(FrechetDistance):
    """FD without its bias in n."""

    kind = "fd_infinity"

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        return fmean(frechet_infinity(fake, real).value for fake in fakes)


class KernelDistance(Rows):
    """KID, the usual estimate over all rows; `scores` has kid and, where rows belong together, kid_paired."""

    kind = "kid"
    scale = 1.0
    kernel = staticmethod(polynomial)

    def _ready(self, rows: Tensor) -> Tensor:
        return rows

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        theirs = self._ready(real)
        found = [kernel_distance(self._ready(fake), theirs, kernel=self.kernel).value for fake in fakes]
        return self.scale * fmean(found)

    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        name, fakes, real = (
            self.kind.removesuffix("_paired"),
            [self._ready(f) for f in fakes],
            self._ready(real),
        )
        if not paired:
            found = [kernel_distance(fake, real, kernel=self.kernel) for fake in fakes]
            alone = Score(found[0], by_seed=(found[0].value,))
            mean = _bare(fmean(each.value for each in found), [each.value for each in found])
            return {name: _scaled(alone if len(found) == 1 else mean, self.scale)}
        own = torch.arange(len(real)) % GROUPS if groups is None else groups
        usual, without = kernel_distance_by_rows(fakes, real, own, kernel=self.kernel)
        return {name: _scaled(usual, self.scale), f"{name}_paired": _scaled(without, self.scale)}


class PairedKernelDistance(KernelDistance):
    """KID without each image against that of its own caption: unbiased where rows belong together."""

    kind = "kid_paired"

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        if any(fake.shape != real.shape for fake in fakes):
            raise UserError(f"{self.kind} wants real and generated rows of the same positions")
        return self._scores(fakes, real, None, True)[self.kind].interval.value


class CLIPMMD(KernelDistance):
    """CMMD of CLIP embeddings (`clip_mmd`), times 1000; `scores` has cmmd and cmmd_paired."""

    kind = "cmmd"
    scale = 1000.0
    kernel = staticmethod(gaussian)

    def _ready(self, rows: Tensor) -> Tensor:
        return unit_rows(rows)


class PairedCLIPMMD(PairedKernelDistance, CLIPMMD):
    """CMMD without each image against that of its own caption."""

    kind = "cmmd_paired"


def _scaled(score: Score, by: float) -> Score:
    """The same in another unit."""
    if by == 1.0:
        return score
    ends = score.interval
    interval = Interval(by * ends.value, by * ends.low, by * ends.high, ends.level)
    parts, by_seed = (tuple(by * value for value in values) for values in (score.parts, score.by_seed))
    return Score(interval, parts, score.method, by_seed)


class Precision(Rows):
    """Of `manifold`; `scores` has all four. k: neighbors."""

    kind = "precision"
    higher_is_better = True

    def __init__(self, *, k: int = 5, feature: Feature | None = None, sync: bool = True) -> None:
        super().__init__(feature=feature, sync=sync)
        self.k = k

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        return fmean(float(vars(manifold(fake, real, k=self.k))[self.kind]) for fake in fakes)

    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        if paired:
            return manifold_by_rows(fakes, real, k=self.k)
        found = [vars(manifold(fake, real, k=self.k)) for fake in fakes]
        return {
            name: _bare(fmean(each[name] for each in found), [e[name] for e in found]) for name in found[0]
        }


class Recall(Precision):
    """Of `manifold`."""

    kind = "recall"


class Density(Precision):
    """Of `manifold`."""

    kind = "density"


class Coverage(Precision):
    """Of `manifold`."""

    kind = "coverage"


class InceptionScore(Rows):
    """`inception_score` of logits, real ones left out; splits: parts in order of position."""

    kind = "class_score"
    higher_is_better = True

    def __init__(self, *, splits: int = 10, feature: Feature | None = None, sync: bool = True) -> None:
        super().__init__(feature=feature, sync=sync)
        self.splits = splits

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        return fmean(fmean(inception_scores(fake, splits=self.splits)) for fake in fakes)

    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        return {self.kind: inception_score_by_seed(fakes, splits=self.splits)}


class CLIPScore(Rows):
    """`clip_scores` of embeddings of images and their captions, both [b,d]; real images are left out."""

    kind = "clip_score"
    higher_is_better = True

    @explained
    def update(  # type: ignore[override]
        self,
        x: Tensor,
        texts: Tensor,
        real: bool = False,
        *,
        position: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Take in images (their rows, or what `feature` makes rows of) and the captions' rows."""
        rows = x if self.feature is None else self.feature(x)
        if rows.shape != texts.shape:
            raise UserError(f"images {list(rows.shape)} and texts {list(texts.shape)} must be alike")
        self._take(torch.cat([rows.double(), texts.to(rows.device).double()], dim=1), real, position, seed)

    def _of(self, both: Tensor) -> Tensor:
        return clip_scores(*both.chunk(2, dim=1))

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        return float(torch.stack([self._of(fake).double() for fake in fakes]).mean())

    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        values = torch.stack([self._of(fake) for fake in fakes], dim=1)
        return {self.kind: prompts_score(values, share=values.dtype == torch.bool)}


class RPrecision(CLIPScore):
    """`r_precision` among so many captions, drawn by `draw`."""

    kind = "r_precision"

    def __init__(
        self, *, candidates: int = 100, draw: int = 0, feature: Feature | None = None, sync: bool = True
    ) -> None:
        super().__init__(feature=feature, sync=sync)
        self.candidates, self.draw = candidates, draw

    def _of(self, both: Tensor) -> Tensor:
        return r_precision(*both.chunk(2, dim=1), candidates=self.candidates, seed=self.draw)


class NeighborRatio(Rows):
    """Distance to the nearest row of `train` [N,d], generated over held-out (real) ones, of the medians.

    `found` has the tests for copies too.
    """

    kind = "neighbor_ratio"
    higher_is_better: bool | None = True

    def __init__(self, train: Tensor, *, feature: Feature | None = None, sync: bool = True) -> None:
        super().__init__(feature=feature, sync=sync)
        self.train_rows = train.detach().double().cpu()

    def found(self) -> Memorization:
        """`memorization` of all rows."""
        fakes, real, _ = self._of_all()
        return memorization(fakes, self.train_rows, real)

    def _value(self, fakes: list[Tensor], real: Tensor) -> float:
        return self._scores(fakes, real, None, False)[self.kind].interval.value

    def _scores(
        self, fakes: list[Tensor], real: Tensor, groups: Tensor | None, paired: bool
    ) -> dict[str, Score]:
        found = memorization(fakes, self.train_rows, real)
        named = {"neighbor_ratio": found.near.ratio, "copies": found.copies, "c_t": found.c_t}
        return {name: Score(interval) for name, interval in named.items()}


class Copies(NeighborRatio):
    """The share of generated rows that lie on single rows of `train`."""

    kind = "copies"
    higher_is_better = False


class CT(NeighborRatio):
    """C_T: below −3, generated rows lie nearer to `train` than held-out ones, all over."""

    kind = "c_t"
    higher_is_better = None
