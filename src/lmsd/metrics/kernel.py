"""Kernel distances: the squared maximum mean discrepancy, without bias at any n, with its own variance.

    MMD²(p, q) = E k(x,x') + E k(y,y') − 2 E k(x,y)                   (Gretton et al. 2012, Lemma 6)

KID takes k(x,y) = (xᵀy/d + 1)³ (Bińkowski et al. 2018, §4); CMMD takes k(x,y) = exp(−|x−y|²/2σ²), σ = 10, on
CLIP embeddings of unit length, and prints it times 1000 (Jayasumana et al. 2024, §5).

The estimate is a U-statistic, whose Hoeffding decomposition has two orders, orthogonal to each other:

    Var = 4/n Var a + 4/m Var b + 2/(n(n−1)) E k̄_xx² + 2/(m(m−1)) E k̄_yy² + 4/(nm) E k̄_xy²

with a(x) = E k(x,X) − E k(x,Y), b(y) = E k(y,Y) − E k(y,X) and k̄ the kernel less its conditional means. Every
term is estimated without bias from row sums and the sum of squares of the kernel matrices, which are made in
strips. Where p = q the first order vanishes and the second carries the interval.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from scipy.stats import norm
from torch import Tensor

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.metrics.frechet import Features, as_features, of_one_width
from lmsd.metrics.intervals import GROUPS, Interval, Score, upper

Kernel: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x [n,d], y [m,d]) → k(x_i, y_j) [n,m]."""

_CELLS = 1 << 23
"""Kernel values held at once (64 MiB of float64)."""


@explained
def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel (xᵀy/d + 1)³."""
    return (x @ y.T / x.shape[1] + 1.0).pow_(3)


@explained
def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """CMMD's kernel exp(−|x−y|²/200)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2.0 * (x @ y.T)
    return squares.clamp_(min=0.0).div_(-200.0).exp_()


@explained
def kernel_distance(
    x: Features, y: Features, *, kernel: Kernel = polynomial, level: float = 0.95
) -> Interval:
    """Unbiased MMD² of two independent samples [n,d] and [m,d], with its interval (module formulas): KID.

    May be negative, as an unbiased estimate of 0 must be. Raises UserError for fewer than four rows.
    """
    a, b = _pair(x, y)
    xx, yy, xy = _sums(a, a, kernel), _sums(b, b, kernel), _sums(a, b, kernel)
    n, m = len(a), len(b)
    value = xx.total / (n * (n - 1)) + yy.total / (m * (m - 1)) - 2.0 * xy.total / (n * m)
    first = 4.0 * _first_order(xx, xy.rows, xy) / n + 4.0 * _first_order(yy, xy.columns, xy.turned()) / m
    second = 2.0 * _within(xx) / (n * (n - 1)) + 2.0 * _within(yy) / (m * (m - 1))
    return _interval(value, first + second + 4.0 * _between(xy) / (n * m), level)


@explained
def clip_mmd(x: Features, y: Features) -> Interval:
    """CMMD of two arrays of CLIP embeddings [n,d] and [m,d], which are set to unit length, times 1000."""
    a, b = (unit_rows(each, name) for each, name in ((x, "x"), (y, "y")))
    found = kernel_distance(a, b, kernel=gaussian)
    return Interval(1000 * found.value, 1000 * found.low, 1000 * found.high, found.level)


@explained
def unit_rows(x: Features, name: str = "features") -> Tensor:
    """`x` as float64 [n,d] with rows of length 1."""
    array = as_features(x, name)
    return array / array.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)


@explained
def kernel_distance_by_rows(
    fakes: Sequence[Tensor], real: Tensor, groups: Tensor, *, kernel: Kernel = polynomial
) -> tuple[Score, Score]:
    """MMD² where row i of the real array and of every fake one [n,d] share a prompt: usual and paired.

    Usual is `kernel_distance`'s value, mean over the seeds. A real image and its own prompt's sample are not
    independent, so its k(r_i,f_i) pull it down by (2/n) [E k(r_i,f_i) − E k(r_i,f_j)]. Paired leaves them
    out: h(i,j) = k(r_i,r_j) + mean_s [k(f_i,f_j) − k(r_i,f_j) − k(f_i,r_j)], i ≠ j, has no bias. With
    c(i,j) the last two kernels and d(i) = k(r_i,f_i), usual is the same with h + (c(i,j) − d(i) − d(j))/n.
    Both have Var = 2/(n(n−1)) [2(n−2) ζ₁ + ζ₂], ζ₁ = Var E[h|i], ζ₂ = Var h, and values without each group.
    groups: int64 [n], 0 to 19. Raises UserError where the arrays' shapes differ.
    """
    r, fs = as_features(real, "real"), [as_features(fake, "fake") for fake in fakes]
    if not fs or any(f.shape != r.shape for f in fs) or len(r) < 4:
        shapes = [list(f.shape) for f in fs]
        raise UserError(f"fake arrays {shapes} and the real one {list(r.shape)} must be alike, n ≥ 4")
    n, usual, paired = len(r), _Rows(len(r), len(fs)), _Rows(len(r), len(fs))
    member = torch.nn.functional.one_hot(groups, GROUPS).double()
    parts = torch.arange(n).split(max(1, _CELLS // n))
    alone = [torch.cat([kernel(r[part], f[part]).diagonal() for part in parts]) for f in fs]
    for part in parts:
        alike = kernel(r[part], r)
        strips = torch.zeros(2, len(part), n, dtype=torch.float64)
        for seed, f in enumerate(fs):
            over, under = kernel(r[part], f), kernel(f[part], r)
            one = alike + kernel(f[part], f) - over - under
            one[torch.arange(len(part)), part] = 0.0
            paired.add(strips[1], one, seed)
            two = one + over.add_(under).sub_(alone[seed][part][:, None]).sub_(alone[seed]).div_(n)
            two[torch.arange(len(part)), part] = 0.0
            usual.add(strips[0], two, seed)
        usual.close(strips[0], part, member, groups)
        paired.close(strips[1], part, member, groups)
    return usual.score(groups), paired.score(groups)


class _Rows:
    """What a one-sample U-statistic of n rows needs of its kernel's matrix, strip by strip."""

    def __init__(self, rows: int, seeds: int) -> None:
        self.seeds = seeds
        self.rows, self.own = torch.zeros(2, rows, dtype=torch.float64)
        self.squares, self.by_seed = 0.0, torch.zeros(seeds, dtype=torch.float64)

    def add(self, strip: Tensor, one: Tensor, seed: int) -> None:
        """One seed's values into the strip of their mean."""
        self.by_seed[seed] += one.sum()
        strip += one / self.seeds

    def close(self, strip: Tensor, part: Tensor, member: Tensor, groups: Tensor) -> None:
        """Sums of a strip that has all seeds."""
        self.rows[part] = strip.sum(dim=1)
        self.squares += float(strip.square().sum())
        self.own[part] = (strip @ member)[torch.arange(len(part)), groups[part]]

    def score(self, groups: Tensor) -> Score:
        """The mean over i ≠ j, its interval, its values without each group and of each seed."""
        rows, squares, n = self.rows, self.squares, len(self.rows)
        pairs, total = n * (n - 1), float(rows.sum())
        triples = (float(rows.square().sum()) - squares) / (pairs * (n - 2))
        squared = _squared_mean(rows, squares)
        variance = 2.0 / pairs * (2 * (n - 2) * max(triples - squared, 0.0) + squares / pairs - squared)
        both = torch.stack([rows, self.own])
        sums = torch.zeros(2, GROUPS, dtype=torch.float64).index_add_(1, groups, both)
        left = n - groups.bincount(minlength=GROUPS)
        without = (total - 2.0 * sums[0] + sums[1]) / (left * (left - 1))
        seeds = tuple((self.by_seed / pairs).tolist())
        return Score(_interval(total / pairs, variance, 0.95), tuple(without.tolist()), "jackknife", seeds)


@dataclass(frozen=True)
class _Sums:
    """Row sums, column sums and sum of squares of a kernel matrix; of one set with itself, i ≠ j only."""

    rows: Tensor
    columns: Tensor
    squares: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())

    def turned(self) -> "_Sums":
        return _Sums(self.columns, self.rows, self.squares)


def _pair(x: Features, y: Features) -> tuple[Tensor, Tensor]:
    a, b = of_one_width(x, y)
    if min(len(a), len(b)) < 4:
        raise UserError(f"{len(a)} and {len(b)} rows are too few for a kernel distance with interval: 4 each")
    return a, b


def _sums(a: Tensor, b: Tensor, kernel: Kernel) -> _Sums:
    rows, columns, squares = [], torch.zeros(len(b), dtype=a.dtype, device=a.device), 0.0
    for part in torch.arange(len(a)).split(max(1, _CELLS // len(b))):
        strip = kernel(a[part], b)
        if a is b:
            strip[torch.arange(len(part)), part] = 0.0
        rows.append(strip.sum(dim=1))
        columns += strip.sum(dim=0)
        squares += float(strip.square().sum())
    return _Sums(torch.cat(rows), columns, squares)


def _squared_mean(rows: Tensor, squares: float) -> float:
    """(E k)² without bias: the mean of k(x_1,x_2) k(x_3,x_4) over four different rows."""
    n = len(rows)
    four = n * (n - 1) * (n - 2) * (n - 3)
    return (float(rows.sum()) ** 2 - 4.0 * float(rows.square().sum()) + 2.0 * squares) / four


def _squared_cross_mean(xy: _Sums) -> float:
    """(E k(x,y))² without bias."""
    n, m = len(xy.rows), len(xy.columns)
    once = float(xy.rows.square().sum()) + float(xy.columns.square().sum()) - xy.squares
    return (xy.total**2 - once) / (n * (n - 1) * m * (m - 1))


def _first_order(own: _Sums, cross: Tensor, xy: _Sums) -> float:
    """Var a, a(x) = E k(x,X) − E k(x,Y): own sums of x, and the sums of k(x,·) over y; xy seen from x."""
    n, m = len(own.rows), len(xy.columns)
    within = (float(own.rows.square().sum()) - own.squares) / (n * (n - 1) * (n - 2))
    across = (float(cross.square().sum()) - xy.squares) / (n * m * (m - 1))
    both = float((own.rows * cross).sum())
    product = (own.total * xy.total - 2.0 * both) / (n * (n - 1) * (n - 2) * m)
    mixed = both / (n * (n - 1) * m) - product
    variance = within - _squared_mean(own.rows, own.squares) + across - _squared_cross_mean(xy) - 2.0 * mixed
    return max(variance, 0.0)


def _within(xx: _Sums) -> float:
    """E k̄_xx²."""
    n = len(xx.rows)
    triples = (float(xx.rows.square().sum()) - xx.squares) / (n * (n - 1) * (n - 2))
    return xx.squares / (n * (n - 1)) - 2.0 * triples + _squared_mean(xx.rows, xx.squares)


def _between(xy: _Sums) -> float:
    """E k̄_xy²."""
    n, m = len(xy.rows), len(xy.columns)
    by_x = (float(xy.rows.square().sum()) - xy.squares) / (n * m * (m - 1))
    by_y = (float(xy.columns.square().sum()) - xy.squares) / (n * m * (n - 1))
    return xy.squares / (n * m) - by_x - by_y + _squared_cross_mean(xy)


def _interval(value: float, variance: float, level: float) -> Interval:
    """Normal on the scale of the root, (√v ± h/2√v)² = v ± h + h²/4v, where v is clear of 0 (v > h).

    MMD² is a squared length, whose spread grows with it: on its own scale it would miss to one side.
    """
    half = float(norm.ppf(upper(level))) * math.sqrt(max(variance, 0.0))
    shift = half * half / (4.0 * max(value, half)) if half else 0.0
    return Interval(value, value - half + shift, value + half + shift, level)
