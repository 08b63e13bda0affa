"""What a person would see in a set of images at a glance: a grid, the colors, how many kinds a caption has.

Each image gives a few numbers, and their means over generated images are held against those over (10,000)
training images:

    steps     D(c) = mean of log((x_{c+1} − x_c)² + δ²), δ three levels, at every place c of both axes
    spectrum  power of the brightness at every frequency, along an axis and over all directions
    color     the 95th percentile of max − min of an image's channels

A grid of p pixels, of whatever sign in each image, raises D at some of the p places that c mod p tells apart.
Of L(c) = D(c) − D_train(c), less its trend, the part that repeats after p pixels has the mean square e_p, the
jackknife's variance taken off; the period is the least p with 0.7 of the largest e_p. Where that part of D is
smaller than that of D_train there is no grid: images that were stored as JPEG have one of 8 pixels, which a
model need not have.

Kinds are 8 clusters of a caption's training images in each family of features; H is the entropy of the shares
that generated (or as many held-out) images have of them, its mean over captions taken:

    kinds = exp(H(generated) − H(held out)),    1 for a perfect model; the smallest of all families counts.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from lmsd.arguments import explained
from lmsd.evaluation.charts import Curve, draw
from lmsd.features.base import Speechless, in_range
from lmsd.metrics import GROUPS, Score, jackknife

PERIODS = (2, 4, 8, 16)
KINDS, LEAST = 8, 64
"""Clusters of a caption, and the training images that it must have."""
GRID, SATURATED, FADED, FEW = 0.03, 1.09, 0.91, 0.87
"""From where on a glance tells: root mean square of L's period; ratios of color; ratio of kinds."""
_SURE, _FEW = 4.0, 16
"""How far a grid's mean square lies above its variance; the rows that a caption must have."""
_VERSION = b"looks 1"
_EPS = 1e-6
_SMALL = 3 / 127.5
"""Three levels: a step that is just not seen."""


class Looks(Speechless):
    """Images → what a glance sees of each, [n, 2 (S − 1) + 2 (S/2 + 1) + 1] for images of S pixels a side."""

    kind = "looks"
    name = "looks"
    resize = None
    reference = False
    exclusive = False
    sha256 = hashlib.sha256(_VERSION).hexdigest()

    def __init__(self) -> None:
        self.net: nn.Module = nn.Identity()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n,C,S,S] (`in_range`) → (numbers [n,k], logits [n,0]), on the CPU."""
        x = in_range(images).cpu()
        brightness = x.mean(dim=1)
        columns, rows = (_steps(x).mean(dim=(1, 2)), _steps(x.mT).mean(dim=(1, 2)))
        centered = brightness - brightness.mean(dim=(1, 2), keepdim=True)
        power = torch.fft.rfft2(centered, norm="ortho").abs().square()
        color = (x.amax(dim=1) - x.amin(dim=1)).flatten(1).quantile(0.95, dim=1)
        found = torch.cat([columns, rows, power.mean(dim=1), _radial(power), color[:, None]], dim=1)
        return found, found[:, :0]


def _steps(x: Tensor) -> Tensor:
    """How far each pixel is from the next in its row, log(d² + δ²) [n,C,H,W−1]."""
    return torch.log((x[..., 1:] - x[..., :-1]).square() + _SMALL**2)


def _radial(power: Tensor) -> Tensor:
    """Mean power [n, S/2 + 1] of the frequencies [n,S,S/2 + 1] of every whole length."""
    side, half = power.shape[1:]
    down = torch.fft.fftfreq(side, 1 / side)
    squares = down[:, None].square() + torch.arange(half)[None].square()
    length = squares.sqrt().round().long().clamp(max=half - 1)
    found = power.new_zeros(len(power), half).index_add_(1, length.flatten(), power.flatten(1))
    result: Tensor = found / length.flatten().bincount(minlength=half)
    return result


@dataclass(frozen=True)
class Glance:
    """Scores that a glance gives, the spectrum of generated and of real images, and what is off, in words."""

    scores: dict[str, Score]
    spectrum: dict[str, list[list[float]]]
    named: list[str]


@explained
def glance(fakes: Sequence[Tensor], train: Tensor, kinds: Score, *, by_caption: bool = True) -> Glance:
    """What `Looks` shows of generated images, an array [n,k] a seed, against training images [N,k].

    kinds: of `kinds_of`; by_caption: whether it is of single captions.
    """
    fake = torch.stack([each.double() for each in fakes]).mean(dim=0)
    side = (train.shape[1] + 1) // 3
    groups = torch.arange(len(fake)) % GROUPS
    total = fake.sum(dim=0)
    without = torch.stack(
        [(total - fake[groups == g].sum(dim=0)) / int((groups != g).sum()) for g in range(GROUPS)]
    )
    real, mean = train.double().mean(dim=0), fake.mean(dim=0)
    color = _quotient(mean[-1], without[:, -1], real[-1])
    period, height = _grid(mean, without, real, side)
    half = side // 2 + 1
    start = 2 * (side - 1)
    spectrum = {
        name: [each[start + place * half : start + (place + 1) * half].tolist() for each in (mean, real)]
        for place, name in enumerate(("axis", "radial"))
    }
    scores = {"grid": height} | ({} if color is None else {"color": color})
    scores["kinds"] = kinds
    return Glance(scores, spectrum, _named(period, scores, by_caption))


def _quotient(value: Tensor, without: Tensor, real: Tensor) -> Score | None:
    """A mean over that of real images; None where these have none (gray ones have no color)."""
    if not float(real) > _EPS:
        return None
    parts = (without / real).tolist()
    return Score(jackknife(float(value / real), parts), tuple(parts))


def _grid(mean: Tensor, without: Tensor, real: Tensor, side: int) -> tuple[int | None, Score]:
    """The period of a grid, None for none, and how high it is: root mean square of the part of L with it."""

    def repeated(numbers: Tensor) -> dict[int, Tensor]:
        lines = _flat(numbers[: 2 * (side - 1)].view(2, side - 1))
        return {period: _periodic(lines, period) for period in PERIODS if 4 * period <= side}

    whole, usual = repeated(mean), repeated(real)
    parts = [{p: part - usual[p] for p, part in repeated(each).items()} for each in without]
    found = {}
    for period, own in whole.items():
        spread = torch.stack([part[period] for part in parts]).var(dim=0, unbiased=False) * (GROUPS - 1)
        noise = float(spread.mean())
        if own.square().sum() > usual[period].square().sum():  # less of what real images have is no grid
            found[period] = (float((own - usual[period]).square().mean()) - noise, noise)
    most = max((energy for energy, _ in found.values()), default=0.0)
    sure = [p for p, (energy, noise) in found.items() if energy >= max(0.7 * most, _SURE * noise)]
    if not sure:
        return None, Score(jackknife(0.0, [0.0] * GROUPS), (0.0,) * GROUPS)
    least = min(sure)
    heights = tuple(float(each[least].square().mean().sqrt()) for each in parts)
    return least, Score(jackknife(math.sqrt(found[least][0]), heights), heights)


def _flat(lines: Tensor) -> Tensor:
    """Lines [2,n] less their trend, a running mean over 17 places."""
    width = min(17, 2 * ((lines.shape[1] - 1) // 2) + 1)
    padded = torch.nn.functional.pad(lines[:, None], (width // 2, width // 2), mode="replicate")
    return lines - torch.nn.functional.avg_pool1d(padded, width, stride=1)[:, 0]


def _periodic(lines: Tensor, period: int) -> Tensor:
    """The mean of lines [2,n] at each place of a period, [2,period], less the mean of all.

    An eighth of the places at each end is left out: borders are a matter of their own.
    """
    place = torch.arange(lines.shape[1])
    border = len(place) // 8
    inside = place[border : len(place) - border]
    means = torch.stack(
        [lines[:, inside[inside % period == each]].mean(dim=1) for each in range(period)], dim=1
    )
    return means - means.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class Captions:
    """What captions (or labels) rows have: held-out ones [n] and training ones [N]."""

    held_out: Sequence[int] | Sequence[str]
    train: Sequence[int] | Sequence[str]

    def numbered(self) -> tuple[Tensor, Tensor, bool]:
        """The captions of both as numbers, −1 for what has fewer than 64 training images or 16 rows.

        All are one where none has as many, which the last tells: False.
        """
        own, other = Counter(self.held_out), Counter(self.train)
        known = [key for key in own if other[key] >= LEAST and own[key] >= _FEW]
        place = {key: number for number, key in enumerate(known)}
        held_out, train = (
            torch.tensor([place.get(key, -1) if known else 0 for key in keys])
            for keys in (self.held_out, self.train)
        )
        return held_out, train, bool(known)


@explained
def kinds_of(fakes: Sequence[Tensor], real: Tensor, train: Tensor, captions: Captions) -> Score:
    """Kinds in a caption (module text) of features: generated, held-out [n,d], training [N,d]."""
    own, other, _ = captions.numbered()
    places = torch.full((1 + len(fakes), len(own)), -1)
    for number in range(int(own.max()) + 1):
        mine = train[other == number].double().numpy()
        centers = torch.from_numpy(kmeans2(mine, KINDS, minit="++", seed=0)[0])
        rows = own == number
        for place, each in enumerate((real, *fakes)):
            places[place, rows] = torch.cdist(each[rows].double(), centers).argmin(dim=1)

    def ratio(kept: Tensor) -> float:
        found = [_entropy(each[kept], own[kept]) for each in places]
        return math.exp(sum(found[1:]) / len(fakes) - found[0])

    groups = torch.arange(len(own)) % GROUPS
    without = [ratio(groups != group) for group in range(GROUPS)]
    value = ratio(torch.ones(len(own), dtype=torch.bool))
    return Score(jackknife(value, without, scale="log"), tuple(without), "log jackknife")


def _entropy(places: Tensor, captions: Tensor) -> float:
    """Mean over captions of the entropy of the kinds [n] of their rows, nats; caption −1: left out."""
    known = captions >= 0
    table = torch.zeros(int(captions.max()) + 1, KINDS, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    table.index_put_((captions[known], places[known]), one, accumulate=True)
    table = table[table.sum(dim=1) > 0]
    shares = table / table.sum(dim=1, keepdim=True)
    return float(-torch.special.xlogy(shares, shares).sum(dim=1).mean())


def _named(period: int | None, scores: dict[str, Score], by_caption: bool) -> list[str]:
    """What is off, in words: far enough to be seen and beyond the interval."""
    named = []
    if period is not None and scores["grid"].interval.value >= GRID:
        named.append(f"a grid of {period} pixels")
    color = scores["color"].interval if "color" in scores else None
    if color is not None and color.value >= SATURATED and color.low > 1.0:
        named.append("over-saturated")
    if color is not None and color.value <= FADED and color.high < 1.0:
        named.append("faded")
    if scores["kinds"].interval.value <= FEW and scores["kinds"].interval.high < 1.0:
        named.append("few kinds in a caption" if by_caption else "few kinds of images")
    return named


def sentence(named: Sequence[str]) -> str:
    """What a glance tells, as the verdict says it."""
    if not named:
        return "At a glance nothing is off: no grid, and colors and kinds in a caption as in real images."
    return f"What is off at a glance: {', '.join(named)}."


def spectra(look: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Titles and charts: power at every frequency, of generated and of real images."""
    titles = {"axis": "Spectrum along an axis: a grid is a peak", "radial": "Spectrum over all directions"}
    charts = []
    for name, (made, real) in ({} if look is None else look["spectrum"]).items():
        x = [float(place) for place in range(1, len(made))]
        curves = [Curve("generated", x, made[1:]), Curve("real", x, real[1:], dashed=True)]
        svg = draw(curves, anchor=f"spectrum {name}", over="cycles an image")
        charts.append((titles[name], svg))
    return charts
