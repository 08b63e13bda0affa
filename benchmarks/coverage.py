"""Do intervals at nominal 95 % hold the truth in 93 to 97 % of simulated experiments?

    python benchmarks/coverage.py [--trials 2000]

Every experiment draws its own low-dimensional samples from a fixed seed; the truth is known in closed form
(FD of two Gaussians, the kernel's moments, a mean) or, for shares that depend on nearest neighbors, the mean
over all experiments, which is the expected value at this n. Prints n, trials and the share covered for each
method and exits with 1 where one leaves the band. The jackknife of shares that depend on nearest neighbors is
wide on purpose (`lmsd.metrics.intervals`): there only the lower edge counts.
"""

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from lmsd.metrics import (
    Interval,
    Score,
    clustered_share,
    compare,
    frechet_from_statistics,
    frechet_infinity,
    jackknife,
    jackknife_groups,
    kernel_distance,
    kernel_distance_by_rows,
    manifolds,
    mean_interval,
)

LOW, HIGH = 0.93, 0.97
WIDE = ("coverage", "difference of coverage")
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
    return kernel_distance_by_rows(fakes, real, jackknife_groups(400)).interval


def covered_share(fake: Tensor, real: Tensor, groups: Tensor) -> Score:
    whole, *without = (each.coverage for each in manifolds(fake, real, groups, k=3))
    return Score(jackknife(whole, without), tuple(without))


def share_covered(seed: int) -> Interval:
    """Coverage (the metric) of a generator that misses a part."""
    generator = torch.Generator().manual_seed(seed)
    real, fake = normal(400, 2, generator), normal(400, 2, generator) * 0.8 + 0.3
    return covered_share(fake, real, jackknife_groups(400, seed=seed)).interval


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
    generator = torch.Generator().manual_seed(seed)
    real, noise = normal(400, 2, generator), normal(400, 2, generator)
    groups = jackknife_groups(400, seed=seed)
    one, other = (covered_share(fake, real, groups) for fake in (0.9 * noise, 0.7 * noise + 0.4))
    return compare(one, other).difference


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
    "coverage": (share_covered, None, 400),
    "right, 3 seeds": (right, 2 / 3, 200),
    "CLIP score, 3 seeds": (clip, None, 200),
    "difference of coverage": (difference, None, 400),
}
"""Experiment, truth (None: the mean over all) and n."""


def covered(name: str, trials: int) -> float:
    """Share of the trials whose interval holds the truth."""
    experiment, truth, _ = EXPERIMENTS[name]
    found = [experiment(seed) for seed in range(trials)]
    center = sum(each.value for each in found) / trials if truth is None else truth
    return sum(each.low <= center <= each.high for each in found) / trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    shares = {}
    for name, (_, _, n) in EXPERIMENTS.items():
        shares[name] = covered(name, trials)
        print(
            f"{name:24} n={n}  {trials} experiments, seeds 0 to {trials - 1}: {shares[name]:.2%}", flush=True
        )
    return int(not all(within(name, share) for name, share in shares.items()))


def within(name: str, share: float) -> bool:
    """Whether a method covers what it should."""
    return LOW <= share <= (1.0 if name in WIDE else HIGH)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
