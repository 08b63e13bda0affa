"""Confidence intervals by methods that are right for what they stand beside.

Fréchet distance: drawing rows with replacement adds the duplicates' bias to a statistic that is itself biased
in n, so a bootstrap's interval lies above the truth. The delete-a-group jackknife draws nothing twice: with G
disjoint groups of rows and θ_(g) the statistic without group g,

    v = (G−1)/G Σ_g (θ_(g) − θ̄)²,    interval θ ± t_{G−1} √v        (Shao and Tu 1995, §2.3)

The bias C/n is common to all θ_(g) and cancels in v: the interval is for the expected value *at this n*, over
fresh samples of the model and of the data, and makes no claim on n → ∞. On Gaussians its half-width is right
where the two differ and up to 1.5 times too wide where they are equal (FD is then of second order): wide,
never narrow.

Shares of right answers: Wilson's interval (Wilson 1927), which keeps its level at 0 and 1.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.stats import norm, t
from torch import Tensor

from lmsd.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval: low ≤ truth ≤ high at `level`."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def jackknife_groups(rows: int, *, groups: int = 20, seed: int = 0) -> Tensor:
    """Group [rows] of each row, 0 to groups − 1, of equal size but for one, drawn by `seed`."""
    if rows < 2 * groups:
        raise UserError(f"{rows} samples are too few for {groups} jackknife groups: use n ≥ {2 * groups}")
    result = torch.empty(rows, dtype=torch.int64)
    result[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))] = torch.arange(rows) % groups
    return result


def jackknife(
    value: float, without: Sequence[float], *, level: float = 0.95, scale: Literal["linear", "log"] = "linear"
) -> Interval:
    """Delete-a-group jackknife interval of a statistic ≥ 0 (module formula), the lower end cut at 0.

    value: of all rows; without: of all rows but those of group g, for every g; scale: "log" takes the formula
    on the logarithms and the exponential of its ends, for quotients, whose denominators are noisy too.
    """
    values = torch.tensor([value, *without], dtype=torch.float64)
    center, *rest = (values.log() if scale == "log" else values).tolist()
    groups = len(rest)
    spread = math.sqrt((groups - 1) * statistics.pvariance(rest))
    half = float(t.ppf(0.5 + level / 2, groups - 1)) * spread
    if scale == "log":
        return Interval(value, math.exp(center - half), math.exp(center + half), level)
    return Interval(value, max(value - half, 0.0), value + half, level)


def wilson(hits: int, trials: int, *, level: float = 0.95) -> Interval:
    """Interval of the probability behind `hits` of `trials`.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n); conservative where the trials' chances differ.
    """
    if not 0 <= hits <= trials or trials == 0:
        raise UserError(f"{hits} hits of {trials} trials is no share")
    z, p = float(norm.ppf(0.5 + level / 2)), hits / trials
    center = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (center - half) / scale, (center + half) / scale
    # At 0 and at n hits the ends are 0 and 1 exactly, which rounding misses.
    return Interval(p, 0.0 if hits == 0 else low, 1.0 if hits == trials else high, level)
