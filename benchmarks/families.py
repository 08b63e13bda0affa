"""What do the families of features see? Eight damages planted in real images, and real images alone.

    python benchmarks/families.py digits shapes         which are built
    python benchmarks/families.py cifar10=SHARDS        whose extractors learn from 60,000 images here

The "generated" images are other real ones of the same classes (or captions), damaged or not: what an honest
score must see, and what it must not. A family sees a set where one of its scores lies beyond the 99.9 %
interval of what real images have, one-sided, from the same jackknife as the 95 % one that is printed:

    sw_ratio, fd_ratio above 1; copies flagged (p < 0.001; looked for in real images and in copied ones);
    right, the classifier's, below real images'; few kinds: in real images, half of classes, repeated ones

A glance (`lmsd.evaluation.looks`) is no family, and stands beside them. Every damage is drawn five times at
each of three strengths, real images 20 times. The table says how often each saw it. Results go to
benchmarks/results/families.json.
"""

import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import betabinom
from scipy.stats import t as student
from torch import Tensor

from lmsd.cli.build.extractors import find_or_train
from lmsd.data.builders import BuildOptions, Preparation, build
from lmsd.data.shardset import ShardSet
from lmsd.evaluation.distances import distances, row_groups
from lmsd.evaluation.looks import Captions, Looks, glance, kinds_of
from lmsd.features.base import FeatureExtractor, captions_of
from lmsd.features.random_conv import RandomExtractor
from lmsd.metrics import FALSE_ALARM, GROUPS, Score, jackknife, matched_halves, nearest, wilson
from lmsd.metrics.matching import matched_rows
from lmsd.metrics.sliced import sliced_ratio, whitening
from lmsd.types import levels, scale

HERE = Path(__file__).resolve().parent
DRAWS, REDRAWS, TRAIN = 5, 20, 5_000
LEVEL = 0.999
COARSE = 4
"""How many times as strong grid and noise are on digits, whose 17 levels are 16 apart."""
SETS = {"digits": (8, 1, 240), "shapes": (16, 3, 512), "cifar10": (32, 3, 512)}
"""Size of the images, channels, n."""
STRENGTHS: Mapping[str, tuple[float, float, float]] = {
    "grid of 4 pixels, height in levels": (8, 12, 16),
    "contrast, factor": (1.15, 1.3, 1.6),
    "blur, σ in pixels": (0.5, 0.7, 1.0),
    "noise, σ in levels": (8, 12, 16),
    "half of the classes shown as others, share": (0.5, 0.75, 1.0),
    "40 images repeated, share": (0.5, 0.75, 1.0),
    "captions swapped, share": (0.1, 0.3, 1.0),
    "training images copied, share": (0.1, 0.3, 1.0),
}


ALIKE = Score(jackknife(1.0, [1.0] * GROUPS))
"""Kinds where none are counted."""


@dataclass(frozen=True)
class Data:
    """Held-out and training images of a set, uint8, with a number for each one's class or caption.

    known, trained: features of both in every family; logits: the classifier's, of the held-out ones.
    """

    name: str
    n: int
    held: Tensor
    keys: Tensor
    labels: Tensor | None
    captions: list[str] | None
    train_keys: Tensor
    extractors: tuple[FeatureExtractor, ...]
    known: list[Tensor]
    trained: list[Tensor]
    logits: Tensor

    def right(self, logits: Tensor, asked: Tensor) -> Tensor | None:
        """Whether images of these logits show what these rows' captions ask for."""
        captions = None if self.captions is None else [self.captions[row] for row in asked.tolist()]
        labels = None if self.labels is None else self.labels[asked]
        return self.extractors[0].right(logits, labels, captions)


def opened(name: str, shards: str, size: int, channels: int, n: int) -> Data:
    """A set with the features of all its images in three families."""
    data = ShardSet(shards, image_size=size, channels=channels)
    images = 60_000 if name == "cifar10" else None
    extractors = (
        find_or_train(data, images=images)[0],
        find_or_train(data, kind="lmsd-ssl", images=images)[0],
        RandomExtractor(channels),
        Looks(),
    )
    held, labels, captions = gathered(data, ("val", "test"), 6_000)
    train, own_labels, own_captions = gathered(data, ("train",), TRAIN)
    names: list[Any] = captions if labels is None else labels.tolist()  # type: ignore[assignment]
    own_names: list[Any] = own_captions if own_labels is None else own_labels.tolist()  # type: ignore[assignment]
    places = {key: number for number, key in enumerate(sorted({*names, *own_names}))}
    keys, own_keys = (torch.tensor([places[key] for key in each]) for each in (names, own_names))
    known = [each(scale(held)) for each in extractors]
    trained = [each(scale(train))[0] for each in extractors]
    features = [each[0] for each in known]
    return Data(name, n, held, keys, labels, captions, own_keys, extractors, features, trained, known[0][1])


def gathered(
    data: ShardSet, splits: Sequence[Any], most: int
) -> tuple[Tensor, Tensor | None, list[str] | None]:
    """Images uint8 of some splits, at most so many of each, their classes and captions."""
    images, labels, captions = [], list[Tensor | None](), list[str]()
    for split in splits:
        own = data.split_set(split)
        rows = range(min(len(own), most))
        images.append(levels(own.images(rows)))
        labels.append(own.labels(rows))
        captions += captions_of(own, rows) or []
    told = [each for each in labels if each is not None]
    return torch.cat(images), torch.cat(told) if told else None, captions or None


@dataclass(frozen=True)
class Made:
    """A "generated" set: its features in every family, and which images are right (None: nobody looks)."""

    features: list[Tensor]
    right: Tensor | None


def drawn(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of n real images, and of other ones of the same keys."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.held), generator=generator)
    real = order[: data.n]
    rest = order[data.n :]
    picked = matched_rows(data.keys[real].tolist(), data.keys[rest].tolist(), seed)
    return real, rest[picked]


def damaged(data: Data, what: str, strength: float, real: Tensor, fake: Tensor, seed: int) -> Made:
    """The set with a damage."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    kind, keys = what.split()[0], data.keys[real]
    n = len(fake)
    hit = torch.rand(n, generator=generator) < strength
    if kind in PIXELS:
        images = PIXELS[kind](data.held[fake].float(), strength, generator)
        found = [each(scale(images.round().clamp(0, 255).to(torch.uint8))) for each in data.extractors]
        return Made([each[0] for each in found], data.right(found[0][1], real))
    if kind == "training":
        rows = matched_rows(keys.tolist(), data.train_keys.tolist(), seed)
        pairs = zip(data.trained, data.known, strict=True)
        return Made([torch.where(hit[:, None], own[rows], old[fake]) for own, old in pairs], None)
    rows = fake.clone()
    if kind == "half":
        lost = keys % 2 == 1
        others = fake[~lost]
        rows = torch.where(lost & hit, others[torch.randint(len(others), (n,), generator=generator)], fake)
    elif kind == "40":
        forty = fake[torch.randperm(n, generator=generator)[:40]]
        same = torch.stack([_of(forty, data.keys, key, generator) for key in keys.tolist()])
        rows = torch.where(hit, same, fake)
    elif kind == "captions":
        turned = hit.nonzero()[:, 0]
        rows[turned] = fake[turned.roll(1)]
    return honest(data, real, rows)


def honest(data: Data, real: Tensor, rows: Tensor) -> Made:
    """Real images of these rows, asked for with the captions of others."""
    return Made([each[rows] for each in data.known], data.right(data.logits[rows], real))


def _of(rows: Tensor, keys: Tensor, key: int, generator: torch.Generator) -> Tensor:
    """One of some rows, of this key where any has it."""
    own = rows[keys[rows] == key]
    own = own if len(own) else rows
    return own[int(torch.randint(len(own), (1,), generator=generator))]


def _grid(x: Tensor, height: float, generator: torch.Generator) -> Tensor:
    at = torch.arange(x.shape[-1]) % 4 == 0
    edge = (at[:, None] | at[None]).float()
    return x + height * (edge - edge.mean())


def _blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    flat = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (3, 3, 3, 3), mode="reflect")
    return F.conv2d(F.conv2d(flat, kernel[None, None, :, None]), kernel[None, None, None]).view_as(x)


PIXELS: Mapping[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    "grid": _grid,
    "contrast,": lambda x, factor, _: (x - 127.5) * factor + 127.5,
    "blur,": _blur,
    "noise,": lambda x, sigma, generator: x + sigma * torch.randn(x.shape, generator=generator),
}


def seen(data: Data, real: Tensor, made: Made, *, copies: bool, few: bool) -> list[list[str]]:
    """The scores of each family that lie beyond what real images have; copies, few: what is looked for."""
    halves = matched_halves(data.keys[real].tolist(), 0)
    groups = row_groups(len(real), halves)
    found = []
    captions = Captions(data.keys[real].tolist(), data.train_keys.tolist())
    kinds = []
    for place, (known, trained) in enumerate(zip(data.known[:-1], data.trained[:-1], strict=True)):
        fakes, own = [made.features[place]], known[real]
        ratio = sliced_ratio(fakes, own, halves, groups, whitening(trained))
        scores = {"sw_ratio": ratio}
        if len(real) >= 2 * own.shape[1]:
            scores["fd_ratio"] = distances(fakes, own, halves, groups, halvings=2).ratio
        found.append([kind for kind, score in scores.items() if beyond(score)])
        if few:
            kinds.append(kinds_of(fakes, own, trained, captions))
        if copies and copied(fakes[0], trained, own):
            found[-1].append("copies")
    theirs = data.right(data.logits[real], real)
    if made.right is not None and theirs is not None and short(made.right, theirs):
        found[0].append("right")
    fewest = min(kinds, key=lambda score: score.interval.value, default=ALIKE)
    return [*found, glance([made.features[-1]], data.trained[-1], fewest).named]


def copied(fake: Tensor, train: Tensor, real: Tensor) -> bool:
    """Whether the test for copies (`lmsd.metrics.neighbors`) rejects."""
    ours, theirs = (nearest(each, train, k=5)[0] for each in (fake, real))
    likeness, own = (each[:, 0] / each[:, -1] for each in (ours, theirs))
    r, m = max(1, round(0.01 * len(own))), len(own)
    hits = int((likeness < own.sort().values[r - 1]).sum())
    return bool(betabinom.sf(hits - 1, len(likeness), r, m - r + 1) < FALSE_ALARM)


def beyond(score: Score) -> bool:
    """Whether a quotient lies above 1 at the level, by its jackknife in logarithms."""
    logs = torch.tensor(score.parts, dtype=torch.float64).log()
    error = math.sqrt((GROUPS - 1) * float(logs.var(unbiased=False)))
    return math.log(score.interval.value) > float(student.ppf(LEVEL, GROUPS - 1)) * error


def short(right: Tensor, real: Tensor) -> bool:
    """Whether the share of right answers lies below that of real images."""
    level = 2 * LEVEL - 1
    made, theirs = (wilson(int(each.sum()), len(each), level=level) for each in (right, real))
    gap = math.hypot(made.high - made.value, theirs.value - theirs.low)
    return theirs.value - made.value > gap


def table(data: Data) -> dict[str, object]:
    """How often each family saw what."""
    names = [*(each.kind for each in data.extractors[:-1]), "a glance"]
    rows: dict[str, object] = {}
    print(f"\n{data.name}, n = {data.n}\n\n| | strength | {' | '.join(names)} | any |\n|---|---|{'---|' * 5}")
    coarse = COARSE if data.name == "digits" else 1
    for what, base in {"real images": (0.0,), **STRENGTHS}.items():
        strengths = [each * coarse if "levels" in what else each for each in base]
        for strength in strengths:
            draws = DRAWS if strength else REDRAWS
            found = []
            for seed in range(draws):
                real, fake = drawn(data, seed)
                made = (
                    damaged(data, what, strength, real, fake, seed) if strength else honest(data, real, fake)
                )
                found.append(
                    seen(
                        data,
                        real,
                        made,
                        copies=what.startswith(("real", "training")),
                        few=what.startswith(("real", "half", "40")),
                    )
                )
            counts = [sum(bool(each[place]) for each in found) for place in range(len(names))]
            whole = sum(any(each) for each in found)
            by = sorted({word for each in found for own in each for word in own})
            rows[f"{what}: {strength:g}"] = {
                "draws": draws, **dict(zip(names, counts, strict=True)), "any": whole, "by": by,
            }  # fmt: skip
            told = " | ".join(f"{count}" for count in [*counts, whole])
            print(f"| {what} | {strength:g} | {told} of {draws} ({', '.join(by)}) |", flush=True)
    return rows


def main(arguments: list[str]) -> int:
    """Tables of the data sets that are named."""
    places = {name: place for name, _, place in (word.partition("=") for word in arguments)}
    if not places:
        print(__doc__)
        return 2
    path = HERE / "results" / "families.json"
    with tempfile.TemporaryDirectory() as folder:
        for name, place in places.items():
            size, channels, n = SETS[name]
            shards = place or f"{folder}/{name}"
            if not place:
                build(
                    name,
                    Path(shards),
                    options=BuildOptions(pictures=Preparation(image_size=None if name == "digits" else size)),
                )
            data = opened(name, shards, size, channels, n)
            rows = table(data)
            found = json.loads(path.read_text()) if path.is_file() else {}
            found[name] = {"n": n, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
