"""Confidence intervals by methods that are right for what they stand beside.

Fréchet distance: drawing rows with replacement adds the duplicates' bias to a statistic that is itself biased
in n, so a bootstrap's interval lies above the truth. The delete-a-group jackknife draws nothing twice: with G
disjoint groups of rows and θ_(g) the statistic without group g,

    v = (G−1)/G Σ_g (θ_(g) − θ̄)²,    interval θ ± t_{G−1} √v        (Shao and Tu 1995, §2.3)

The bias C/n is common to all θ_(g) and cancels in v: the interval is for the expected value *at this n*, over
fresh samples of the model and of the data, and makes no claim on n → ∞. On Gaussians its half-width is right
where the two differ and up to 1.5 times too wide where they are equal (FD is then of second order): wide,
never narrow.

The same values give FD without its bias: with pseudo-values p_g = Gθ − (G−1) θ_(g),

    FD_∞ = mean_g p_g,   interval FD_∞ ± t_{G−1} sd(p)/√G                              (Quenouille 1956)

which is the intercept of the line through (1/n, θ) and (1/n', mean θ_(g)): Chong and Forsyth's extrapolation
with two points, the nearest ones.

Shares that depend on nearest neighbors (precision, recall, density, coverage): a bootstrap's duplicates are
neighbors at distance 0 (Abadie and Imbens 2008), and a jackknife counts an interaction of j rows j times.
Values on disjoint parts of the rows are independent, so that their variance s² is right at the parts' size.
That of all rows follows where n times it does not depend on n (Politis and Romano 1994), and a share p that
gets nearer to ½ with n, as coverage does, spreads more: from the thirds of D divisions, p̄ their mean share,

    v = ⅓ mean_D s² · max(1, p (1 − p) / p̄ (1 − p̄)),    interval p ± t_{2D} √v,

again for the expected value at this n, and never narrower than Wilson's of n independent trials. Density is
no share of rows: v = ⅓ mean_D s². (Smaller parts will not do: their balls are so large that all score alike.)

Shares of right answers: Wilson's interval (Wilson 1927), which keeps its level at 0 and 1, with the trials
counted as fewer where those of one prompt agree with each other (Kish's design effect).

Two models on the same rows and seeds: the groups' values of one less the other's, so that what prompts, real
images and noise have in common cancels; p by t_{G−1}.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from scipy.stats import norm, t
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError

GROUPS = 20
"""Groups of rows behind every jackknife and every set of batches."""

THIRDS, DIVISIONS = 3, 10
"""Parts of the rows, and random divisions into them, behind scores that depend on nearest neighbors."""

Method: TypeAlias = Literal["jackknife", "log jackknife", "batches", "thirds"]
"""What the parts of a score are: its values without each group (quotients compare in logarithms), its values
on each group alone, or those on the thirds of several divisions (a share's are `stretched`)."""


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval: low ≤ truth ≤ high at `level`; nan ends: there is none."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Score:
    """An interval and what a comparison needs.

    parts: the values that `method` takes from the groups of rows; by_seed: the value of each generation seed.
    """

    interval: Interval
    parts: tuple[float, ...] = ()
    method: Method = "jackknife"
    by_seed: tuple[float, ...] = ()

    @property
    def seed_sd(self) -> float | None:
        """Standard deviation over generation seeds; None for one seed."""
        return statistics.stdev(self.by_seed) if len(self.by_seed) > 1 else None


@explained
def jackknife_groups(rows: int, *, groups: int = GROUPS, seed: int = 0) -> Tensor:
    """Group [rows] of each row, 0 to groups − 1, of equal size but for one, drawn by `seed`."""
    if groups < 2 or rows < 2 * groups:
        raise UserError(
            f"{rows} samples are too few for {groups} jackknife groups, of which there are two or more: use "
            f"n ≥ {2 * max(groups, 2)}"
        )
    result = torch.empty(rows, dtype=torch.int64)
    result[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))] = torch.arange(rows) % groups
    return result


@explained
def jackknife(
    value: float, without: Sequence[float], *, level: float = 0.95, scale: Literal["linear", "log"] = "linear"
) -> Interval:
    """Delete-a-group jackknife interval of a statistic ≥ 0 (module formula), the lower end cut at 0.

    value: of all rows; without: of all rows but those of group g, for every g; scale: "log" takes the formula
    on the logarithms and the exponential of its ends, for quotients, whose denominators are noisy too.
    """
    values = torch.tensor([value, *without], dtype=torch.float64)
    center, *rest = (values.log() if scale == "log" else values).tolist()
    half = jackknife_half_width(rest, level=level)
    if scale == "log":
        return Interval(value, math.exp(center - half), math.exp(center + half), level)
    return Interval(value, max(value - half, 0.0), value + half, level)


@explained
def jackknife_half_width(without: Sequence[float], *, level: float = 0.95) -> float:
    """Student's t times √v of the jackknife (module formula), also for a statistic of any sign."""
    _several(without)
    return _quantile("jackknife", len(without), level) * _error(without, "jackknife")


def _several(values: Sequence[float]) -> None:
    if len(values) < 2:
        raise UserError(f"an interval needs the values of two groups or more, and there are {len(values)}")


@explained
def wilson(hits: int, trials: int, *, level: float = 0.95) -> Interval:
    """Interval of the probability behind `hits` of `trials`.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n); conservative where the trials' chances differ.
    """
    if not 0 <= hits <= trials or trials == 0:
        raise UserError(f"{hits} hits of {trials} trials is no share")
    return _wilson(hits / trials, trials, level)


def upper(level: float) -> float:
    """The probability below the upper end of an interval: 0.975 at a level of 0.95. Raises UserError."""
    if not 0 < level < 1:
        raise UserError(f"level={level} of an interval is a probability between 0 and 1, e.g. 0.95")
    return 0.5 + level / 2


def _wilson(p: float, trials: float, level: float) -> Interval:
    """Wilson's formula; the trials may be a fraction."""
    z = float(norm.ppf(upper(level)))
    center = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (center - half) / scale, (center + half) / scale
    # At 0 and at n hits the ends are 0 and 1 exactly, which rounding misses.
    return Interval(p, 0.0 if p == 0.0 else low, 1.0 if p == 1.0 else high, level)


@explained
def clustered_share(hits: Tensor, *, level: float = 0.95) -> Interval:
    """Wilson's interval of the mean of 0/1 [n,s], n independent prompts with s trials each.

    The number of trials is divided by the design effect, s Var(mean of a prompt) / (p (1−p)), between 1 and
    s; it is s where it cannot be known, all hits being equal.
    """
    if hits.ndim != 2 or not hits.numel():
        raise UserError(f"hits must be [prompts, trials], one or more of each, not {list(hits.shape)}")
    prompts, trials = hits.shape
    p = float(hits.double().mean())
    effect = float(trials)
    if prompts > 1 and 0.0 < p < 1.0:
        spread = float(hits.double().mean(dim=1).var())
        effect = min(max(trials * spread / (p * (1 - p)), 1.0), float(trials))
    total = prompts * trials
    return _wilson(p, total / effect, level)


@explained
def thirds(rows: int, *, seed: int = 0) -> list[Tensor]:
    """Rows [⌊n/3⌋] of each third of ten random divisions, one division after another, drawn by `seed`."""
    if rows < THIRDS:
        raise UserError(f"{rows} rows have no thirds: take {THIRDS} or more")
    generator = torch.Generator().manual_seed(seed)
    whole = rows // THIRDS * THIRDS
    divisions = [torch.randperm(rows, generator=generator)[:whole] for _ in range(DIVISIONS)]
    return [third for division in divisions for third in division.tensor_split(THIRDS)]


@explained
def divided(value: float, parts: Sequence[float], *, level: float = 0.95) -> Interval:
    """Interval θ ± t √v of a statistic ≥ 0 of all rows from its values on their `thirds`, v = ⅓ mean s²."""
    half = _quantile("thirds", len(parts), level) * _error(parts, "thirds")
    return Interval(value, max(value - half, 0.0), value + half, level)


@explained
def divided_share(share: float, parts: Sequence[float], rows: int, *, level: float = 0.95) -> Interval:
    """Interval of a share of `rows` from its `stretched` values on their thirds (module formula).

    Wilson's part counts at 0 and 1, where all thirds have one share.
    """
    found, least = divided(share, parts, level=level), _wilson(share, rows, level)
    return Interval(share, min(found.low, least.low), min(max(found.high, least.high), 1.0), level)


@explained
def stretched(share: float, parts: Sequence[float]) -> list[float]:
    """Shares on `thirds`, spread as all rows imply: by √(p (1 − p) / p̄ (1 − p̄)) where that is above 1."""
    mean = statistics.fmean(parts)
    alone = mean * (1 - mean)
    factor = math.sqrt(max(1.0, share * (1 - share) / alone)) if alone > 0 else 1.0
    return [mean + factor * (part - mean) for part in parts]


@explained
def mean_interval(values: Tensor, *, level: float = 0.95) -> Interval:
    """t-interval of the mean of values [n,s], n independent prompts (rows) with s values each."""
    if values.ndim != 2 or not values.shape[1]:
        raise UserError(f"values must be [prompts, trials], one trial or more, not {list(values.shape)}")
    rows = values.double().mean(dim=1)
    if len(rows) < 2:
        raise UserError("one prompt has no spread: the interval of a mean needs two or more")
    half = float(t.ppf(upper(level), len(rows) - 1)) * float(rows.std()) / math.sqrt(len(rows))
    mean = float(rows.mean())
    return Interval(mean, mean - half, mean + half, level)


@explained
def prompts_score(values: Tensor, *, share: bool) -> Score:
    """Mean of values [n,s], s for each of n prompts; 0/1 where it is a share. Groups: rows in turn."""
    rows = values.double()
    by_seed = tuple(rows.mean(dim=0).tolist())
    parts = tuple(
        float(part.mean()) for part in (rows[group::GROUPS] for group in range(GROUPS)) if len(part)
    )
    interval = clustered_share(values) if share else mean_interval(values)
    return Score(interval, parts, "batches", by_seed)


@explained
def batch_means(value: float, batches: Sequence[float], *, level: float = 0.95) -> Interval:
    """Interval of `value`, of all rows, from its values on disjoint batches of equal size (module text).

    One batch has no spread, and gives no interval: its ends are nan.
    """
    if len(batches) < 2:
        return Interval(value, math.nan, math.nan, level)
    half = float(t.ppf(upper(level), len(batches) - 1)) * _error(batches, "batches")
    return Interval(value, max(value - half, 0.0), value + half, level)


@explained
def extrapolated(value: float, without: Sequence[float], *, level: float = 0.95) -> Interval:
    """FD_∞: `value` without its 1/n bias, with its interval (module formula); may fall below 0."""
    _several(without)
    pseudo = [len(without) * value - (len(without) - 1) * other for other in without]
    center = statistics.fmean(pseudo)
    half = float(t.ppf(upper(level), len(pseudo) - 1)) * statistics.stdev(pseudo) / math.sqrt(len(pseudo))
    return Interval(center, center - half, center + half, level)


@dataclass(frozen=True)
class Comparison:
    """Two models' scores, first less second: the difference with its interval, and a two-sided p-value.

    A difference of logarithms (a quotient) where the score is one.
    """

    difference: Interval
    p: float

    @property
    def different(self) -> bool:
        """Whether the two can be told apart at 5 %."""
        return self.p < 0.05


@explained
def compare(one: Score, other: Score) -> Comparison:
    """Compare the scores of two models whose parts are of the same groups of rows (module text)."""
    if one.method != other.method or len(one.parts) != len(other.parts) or len(one.parts) < 2:
        raise UserError(
            f"scores with {len(one.parts)} and {len(other.parts)} groups ({one.method}, {other.method}) do "
            "not compare"
        )
    logarithmic = one.method == "log jackknife"
    (a, *parts_a), (b, *parts_b) = (
        [math.log(v) if logarithmic else v for v in (each.interval.value, *each.parts)]
        for each in (one, other)
    )
    gap = a - b
    gaps = [p - q for p, q in zip(parts_a, parts_b, strict=True)]
    error = _error(gaps, one.method)
    freedom = _freedom(one.method, len(parts_a))
    half = _quantile(one.method, len(parts_a), 0.95) * error
    p = 2.0 * float(t.sf(abs(gap) / error, freedom)) if error > 0 else float(gap == 0.0 or not any(gaps))
    return Comparison(Interval(gap, gap - half, gap + half), p)


def _freedom(method: Method, parts: int) -> int:
    """Degrees of freedom behind the error of so many parts; divisions count as independent."""
    return parts - parts // THIRDS if method == "thirds" else parts - 1


def _quantile(method: Method, parts: int, level: float) -> float:
    """Student's t at which an interval of this level ends."""
    return float(t.ppf(upper(level), _freedom(method, parts)))


def _error(parts: Sequence[float], method: Method) -> float:
    """Standard error that the groups' values give."""
    if method == "thirds":
        divisions = torch.tensor(parts, dtype=torch.float64).view(-1, THIRDS)
        return math.sqrt(float(divisions.var(dim=1).mean()) / THIRDS)
    spread = math.sqrt(statistics.pvariance(parts))
    return spread * math.sqrt(len(parts) - 1) if "jackknife" in method else spread / math.sqrt(len(parts) - 1)
