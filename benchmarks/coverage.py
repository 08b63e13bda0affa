"""Do intervals at nominal 95 % hold the truth in 93 to 97 % of simulated experiments?

    python benchmarks/coverage.py [--trials 2000] [--many]

Every experiment draws its own low-dimensional samples from a fixed seed. The truth is known in closed form
(FD of two Gaussians, the kernel's moments, a mean); for precision, recall, density and coverage, whose
values depend on n, it is their expected value at this n, taken as the mean over all experiments. Prints n,
trials and the share covered for each and exits with 1 where one leaves the band; results:
benchmarks/results/coverage.json. --many: those four in 64 independent features, n=1000, which have no band:
thirds of the rows show too little of their spread there.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from lmsd.metrics import (
    Interval,
    Memorization,
    Score,
    clustered_share,
    compare,
    divided,
    divided_share,
    frechet_from_statistics,
    frechet_infinity,
    jackknife_groups,
    kernel_distance,
    kernel_distance_by_rows,
    manifolds,
    mean_interval,
    memorization,
    stretched,
)

LOW, HIGH = 0.93, 0.97
WIDE = ("precision",)
"""Its spread falls faster than as 1/n where nearly every sample is precise: wide, never narrow."""
RESULTS = Path(__file__).parent / "results" / "coverage.json"
Experiment = Callable[[int], Interval]


def normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def gaussians(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """N(0, I) and N(0.5, 1.2² I) in d dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return normal(n, d, generator), 0.5 + 1.2 * normal(n, d, generator)


def fd_infinity(seed: int) -> Interval:
    return frechet_infinity(*gaussians(400, 3, seed))


def kid(seed: int) -> Interval:
    return kernel_distance(*gaussians(400, 8, seed))


def kid_by_rows(seed: int) -> Interval:
    """Two generation seeds, and prompts that real and generated share."""
    generator = torch.Generator().manual_seed(seed)
    prompt = normal(400, 8, generator)
    real = 0.6 * prompt + 0.8 * normal(400, 8, generator)
    fakes = [0.5 + 0.72 * prompt + 0.96 * normal(400, 8, generator) for _ in range(2)]
    return kernel_distance_by_rows(fakes, real, jackknife_groups(400))[1].interval


def prompted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real samples and those of two generators that miss a part, for the same prompts."""
    generator = torch.Generator().manual_seed(seed)
    prompt, one, other, real = normal(1600, 2, generator).chunk(4)
    return 0.6 * prompt + 0.8 * real, 0.3 + 0.5 * prompt + 0.6 * one, 0.6 * prompt + 0.7 * other


@cache
def neighborhoods(seed: int) -> dict[str, Score]:
    """Precision, recall, density and coverage of the first generator."""
    real, fake, _ = prompted(seed)
    return divided_scores(fake, real)


def divided_scores(fake: Tensor, real: Tensor) -> dict[str, Score]:
    """The four scores of two arrays, as an evaluation gives them."""
    found = manifolds(fake, real)
    scores = {}
    for name in ("precision", "recall", "density", "coverage"):
        whole, *parts = (getattr(each, name) for each in found)
        if name == "density":
            ends = divided(whole, parts)
        else:
            parts = stretched(whole, parts)
            ends = divided_share(whole, parts, len(real))
        scores[name] = Score(ends, tuple(parts), "thirds")
    return scores


def neighborhood(name: str, seed: int) -> Interval:
    return neighborhoods(seed)[name].interval


@cache
def trained() -> Tensor:
    """A training set, the same in all experiments: what lies near it is about this one."""
    return normal(1000, 8, torch.Generator().manual_seed(2**40))


@cache
def copying(seed: int) -> Memorization:
    """Held-out samples and two seeds of a model of less variance, 3 % of its samples copies."""
    generator = torch.Generator().manual_seed(seed)
    prompt, real = normal(800, 8, generator).chunk(2)
    fakes = [0.9 * (0.6 * prompt + 0.8 * normal(400, 8, generator)) for _ in range(2)]
    for fake in fakes:
        stolen = torch.rand(400, 1, generator=generator) < 0.03
        fake.copy_(torch.where(stolen, trained()[torch.randint(1000, (400,), generator=generator)], fake))
    return memorization(fakes, trained(), 0.6 * prompt + 0.8 * real)


def near(name: str, seed: int) -> Interval:
    found: Interval = getattr(copying(seed).near, name)
    return found


@cache
def many(seed: int) -> dict[str, Score]:
    """The four scores of a perfect model in 64 independent features."""
    return divided_scores(*normal(2000, 64, torch.Generator().manual_seed(seed)).chunk(2))


def right(seed: int) -> Interval:
    """Share of right answers, three for each prompt, prompts of different difficulty."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(200, 1, generator=generator).sqrt()
    return clustered_share(torch.rand(200, 3, generator=generator) < chance)


def clip(seed: int) -> Interval:
    """CLIP score: a clamped cosine, three for each prompt."""
    generator = torch.Generator().manual_seed(seed)
    cosine = 0.1 * normal(200, 1, generator) + 0.1 * normal(200, 3, generator)
    return mean_interval(2.5 * cosine.clamp(min=0.0))


def difference(seed: int) -> Interval:
    """The difference of two models' coverage on the same rows, as `compare` gives it."""
    real, _, fake = prompted(seed)
    return compare(neighborhoods(seed)["coverage"], divided_scores(fake, real)["coverage"]).difference


def third_moment(mean: Tensor, cov: Tensor) -> Tensor:
    """E xxx of a Gaussian."""
    cube = torch.einsum("i,j,k->ijk", mean, mean, mean)
    mixed = torch.einsum("i,jk->ijk", mean, cov)
    return cube + mixed + mixed.permute(1, 0, 2) + mixed.permute(1, 2, 0)


def mean_kernel(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> float:
    """E (xᵀy/d + 1)³ for independent Gaussians x and y, from their raw moments."""
    (mp, cp), (mq, cq) = p, q
    d = len(mp)
    second = ((cp + torch.outer(mp, mp)) * (cq + torch.outer(mq, mq))).sum() / d**2
    third = (third_moment(mp, cp) * third_moment(mq, cq)).sum() / d**3
    return float(1 + 3 * (mp @ mq) / d + 3 * second + third)


def true_kid(shift: float, scale: float) -> float:
    p = torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    q = p[0] + shift, p[1] * scale**2
    return mean_kernel(p, p) + mean_kernel(q, q) - 2 * mean_kernel(p, q)


def true_fd() -> float:
    zero, one = torch.zeros(3), torch.eye(3)
    return frechet_from_statistics(zero, one, zero + 0.5, 1.2**2 * one)


EXPERIMENTS: dict[str, tuple[Experiment, float | None, int]] = {
    "FD∞": (fd_infinity, true_fd(), 400),
    "KID": (kid, true_kid(0.5, 1.2), 400),
    "KID by rows, 2 seeds": (kid_by_rows, true_kid(0.5, 1.2), 400),
    **{
        name: (partial(neighborhood, name), None, 400)
        for name in ("precision", "recall", "density", "coverage")
    },
    "neighbor ratio": (partial(near, "ratio"), None, 400),
    "neighbor ratio at 5 %": (partial(near, "low"), None, 400),
    "closer": (partial(near, "closer"), None, 400),
    "C_T": (lambda seed: copying(seed).c_t, None, 400),
    "copies": (lambda seed: copying(seed).copies, None, 400),
    "right, 3 seeds": (right, 2 / 3, 200),
    "CLIP score, 3 seeds": (clip, 2.5 * math.sqrt(0.02 / (2 * math.pi)), 200),
    "difference of coverage": (difference, None, 400),
}
"""Experiment, truth (None: the mean over all) and n."""
MANY: dict[str, tuple[Experiment, float | None, int]] = {
    f"{name}, 64 features": (lambda seed, name=name: many(seed)[name].interval, None, 1000)  # type: ignore[misc]
    for name in ("precision", "recall", "density", "coverage")
}


def covered(name: str, trials: int) -> dict[str, float]:
    """Truth, mean value, mean half-width, and the share of the trials whose interval holds the truth."""
    experiment, truth, n = (EXPERIMENTS | MANY)[name]
    found = [experiment(seed) for seed in range(trials)]
    mean = sum(each.value for each in found) / trials
    center = mean if truth is None else truth
    return {
        "n": n,
        "truth": center,
        "mean": mean,
        "half_width": sum(each.high - each.low for each in found) / trials / 2,
        "covered": sum(each.low <= center <= each.high for each in found) / trials,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--many", action="store_true")
    options = parser.parse_args()
    trials, began = options.trials, time.process_time()
    content = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    content["many" if options.many else "low"] = about = {
        "experiments": trials, "seeds": f"0 to {trials - 1}", "level": 0.95, "cpu_seconds": 0, "found": {},
    }  # fmt: skip
    found: dict[str, dict[str, float]] = {}
    for name in MANY if options.many else EXPERIMENTS:
        found[name] = {key: float(f"{value:.5g}") for key, value in covered(name, trials).items()}
        print(f"{name:24} {trials} experiments: {found[name]['covered']:.2%}", flush=True)
        about |= {"cpu_seconds": round(time.process_time() - began), "found": found}
        RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0 if options.many else int(not all(within(name, each["covered"]) for name, each in found.items()))


def within(name: str, share: float) -> bool:
    """Whether intervals hold the truth as often as they should; those of WIDE may do so more often."""
    return LOW <= share <= (1.0 if name in WIDE else HIGH)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
