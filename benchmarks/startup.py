"""CPU seconds until the command line answers: help, a whole configuration, a typo, a dry sweep.

    python benchmarks/startup.py [repeats=5]

The median of `repeats` runs each, interleaved, beside python's own start and importing hydra, most of it. The
aim is 0.5 s on a machine that does nothing else.
"""

import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "python": ["-c", "pass"],
    "import hydra": ["-c", "import hydra"],
    "lmsd --help": ["-m", "lmsd.cli", "--help"],
    "lmsd train --help": ["-m", "lmsd.cli", "train", "--help"],
    "lmsd train --cfg job": ["-m", "lmsd.cli", "train", "--cfg", "job"],
    "lmsd train nt=3": ["-m", "lmsd.cli", "train", "nt=3"],
    "lmsd sweep --dry-run": ["-m", "lmsd.cli", "sweep", "seed=1,2", "--dry-run"],
    "lmsd runs": ["-m", "lmsd.cli", "runs"],
    "lmsd doctor": ["-m", "lmsd.cli", "doctor"],
}


def spent() -> float:
    """CPU seconds of the children so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(repeats: int) -> None:
    """Time every command and print its median."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, words in COMMANDS.items():
            before = spent()
            subprocess.run([sys.executable, *words], capture_output=True, check=False)
            taken[name].append(spent() - before)
    for name, times in taken.items():
        print(f"{name:24}{statistics.median(times):6.2f} s CPU  (least {min(times):.2f}, n={repeats})")


if __name__ == "__main__":
    main(int(sys.argv[1].partition("=")[2]) if len(sys.argv) > 1 else 5)
