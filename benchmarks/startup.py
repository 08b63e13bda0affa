"""CPU seconds until the command line answers: help, a whole configuration, a typo, a dry sweep.

    python benchmarks/startup.py [repeats=5]

The median of `repeats` runs each, interleaved, beside python's own start and importing hydra, most of it, and
the ratio to the latter. Modules are compiled beforehand, in a first round that does not count, as they are in
an installation: PYTHONDONTWRITEBYTECODE would have ours, and ours alone, compiled again by every run.
"""

import os
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
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for turn in range(repeats + 1):
        for name, words in COMMANDS.items():
            before = spent()
            subprocess.run([sys.executable, *words], capture_output=True, check=False, env=environment)
            taken[name] += [spent() - before] * (turn > 0)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, times in taken.items():
        ratio = f"{medians[name] / medians['import hydra']:5.2f} x import hydra"
        print(f"{name:24}{medians[name]:6.3f} s CPU  {ratio}  (least {min(times):.3f}, n={repeats})")


if __name__ == "__main__":
    main(int(sys.argv[1].partition("=")[2]) if len(sys.argv) > 1 else 5)
