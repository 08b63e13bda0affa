"""FD at 2,048 features: our time over torchmetrics', on the same statistics, taking turns.

    python benchmarks/frechet.py [--rounds 5]

Two covariances of full rank in float64, one thread; CPU seconds, so that a busy machine does not matter. The
values must agree to 1e-9. Prints every round, the median ratio; exits with 1 where it is above 0.5.
"""

import argparse
import statistics
import sys
import time

import torch
from torchmetrics.image.fid import _compute_fid

from lmsd.metrics import frechet_from_statistics, gaussian_statistics

LIMIT, FEATURES, ROWS = 0.5, 2048, 3000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    y = 0.1 + 1.1 * torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    one, other = gaussian_statistics(x), gaussian_statistics(y)
    ratios = []
    for number in range(rounds):
        began = time.process_time()
        ours = frechet_from_statistics(*one, *other)
        middle = time.process_time()
        theirs = float(_compute_fid(*one, *other))
        ended = time.process_time()
        ratios.append((middle - began) / (ended - middle))
        print(
            f"round {number}: {middle - began:.2f} s, torchmetrics {ended - middle:.2f} s, values {ours:.9f} "
            f"{theirs:.9f}",
            flush=True,
        )
        if abs(ours - theirs) > 1e-9 * theirs:
            print("the values differ")
            return 1
    ratio = statistics.median(ratios)
    print(f"n={ROWS}, d={FEATURES}, seed 0, {rounds} rounds: median ratio {ratio:.3f} (limit {LIMIT})")
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
