"""`lmsd plan` against what happens: memory, full-size layouts, machines that fail.

    python benchmarks/plan.py memory CIFAR10 EMOJI WORK    the plan's bytes against the CPU allocator's events
    python benchmarks/plan.py layouts WORK                 SDXL, SD3-medium, Flux-dev, configurations alone
    python benchmarks/plan.py failures                     the share that trains against a simulation

memory: `lmsd train` for five batches in a process of its own, under torch's profiler with profile_memory; the
peak of all that was allocated and not yet freed is compared with the sum of the plan's kinds. CIFAR10, EMOJI:
folders of shards (digits are built). Each part exits with 1 where a figure is missed: 10 % of the bytes, the
exact number of weights, 60 seconds of CPU and 2 GiB, one point of the share.
"""

import contextlib
import io
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "models"))

NEAR, SECONDS, ROOM, POINT = 0.10, 60.0, 2 * 2**30, 0.01
QUICK = ["evaluate.n=0", "logger=none", "checkpoint_async=false", "optim.warmup_images=0", "source=null"]
GAME = ["objective.warmup=0.4", "objective.head_start=0.2"]
DIT = [
    "experiment=cifar10",
    "net=dit_label",
    "conditioner=label",
    "conditioner.classes=10",
    "objective=denoising",
]


def cases(cifar10: str, emoji: str, work: Path) -> dict[str, list[str]]:
    """What is trained, by name: the words of `lmsd train`."""
    return {
        "digits": ["experiment=digits", f"data.shards={work}/digits", "images=320", *GAME, *QUICK],
        "cifar10": ["experiment=cifar10", f"data.shards={cifar10}", "images=160", *GAME, *QUICK],
        "emoji": ["experiment=emoji", f"data.shards={emoji}", "images=80", "batch_size=16", *GAME, *QUICK],
        "DiT": [
            *[
                *DIT,
                f"data.shards={cifar10}",
                "net.layers=9",
                "net.heads=12",
                "net.head_dim=64",
                "net.patch=2",
            ],
            *["images=12", "batch_size=4", "threads=1", *QUICK],
        ],
    }


def allocated(words: list[str], folder: Path) -> int:
    """The peak of the allocator's events over a training, in bytes; in this process."""
    from torch.profiler import ProfilerActivity, profile

    from lmsd.cli import run

    quiet = io.StringIO()
    profiled = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with profiled as profiler, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        if run(["train", *words, f"run_dir={folder}"]):
            raise SystemExit("lmsd train did not end well")
    live = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def planned(words: list[str]) -> dict[str, int]:
    """The plan's bytes by kind."""
    from lmsd.cli.config.compose import load
    from lmsd.cli.verbs.plan import planned, settled

    return planned(settled(load(words, run=True)))[0].memory()


def memory(cifar10: str, emoji: str, work: Path) -> bool:
    """Plan and allocator, each case with and without checkpointing."""
    if not (work / "digits").exists():
        command = [sys.executable, "-m", "lmsd.cli", "data", "build", "digits", f"out={work}/digits"]
        subprocess.run(command, check=True, capture_output=True)
    good = True
    print(
        f"{'':28}{'planned':>10}{'allocated':>11}{'ratio':>8}  MB; of the plan: weights, averages, optimizer,"
    )
    print(f"{'':57}  gradients, activations")
    for name, words in cases(cifar10, emoji, work).items():
        for recomputing in (False, True):
            told = [*words, f"checkpointing={str(recomputing).lower()}"]
            run = work / f"{name}-{recomputing}-{time.time():.0f}"
            command = [sys.executable, "-W", "ignore", __file__, "allocated", str(run), *told]
            child = subprocess.run(command, check=True, capture_output=True, text=True)
            found, kinds = int(child.stdout.split()[-1]), planned(told)
            whole = sum(kinds.values())
            good &= abs(whole / found - 1) <= NEAR
            parts = ", ".join(f"{kinds[kind] / 1e6:.1f}" for kind in list(kinds)[:-1])
            label = f"{name}{', checkpointing' * recomputing}"
            print(
                f"{label:28}{whole / 1e6:>10.1f}{found / 1e6:>11.1f}{whole / found:>8.3f}  {parts}",
                flush=True,
            )
    return good


def layouts(work: Path) -> bool:
    """Full-size folders: weights of the nets, seconds and memory of the planning itself."""
    from full_pipelines import LAYOUTS, WEIGHTS, write

    good = True
    for name in LAYOUTS:
        folder = work / name
        if not folder.exists():
            write(folder, name)
        command = [sys.executable, "-W", "ignore", __file__, "layout", str(folder)]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        weights, seconds, room = (float(word) for word in child.stdout.split()[-3:])
        good &= int(weights) == WEIGHTS[name] and seconds < SECONDS and room < ROOM
        print(
            f"{name:8}{int(weights):>16,} weights{seconds:>8.1f} s of CPU{room / 2**30:>8.2f} GiB", flush=True
        )
    return good


def layout(folder: str) -> None:
    """Plan one of them, all its weights trained; prints weights, CPU seconds and the peak of this process."""
    from lmsd.cli.config.compose import load
    from lmsd.cli.verbs.plan import planned, settled

    words = ["experiment=pipeline_full", f"generator.path={folder}", "data.image_size=1024", "batch_size=4"]
    config = load([*words, "precision=bf16-mixed", f"data.shards={folder}/none"], run=True)
    plan, _ = planned(settled(config))
    weights = sum(plan.meant.parts["generator.net"])
    print(weights, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def simulated(nodes: int, rate: float, save: float, restart: float, interval: float, *, seed: int) -> float:
    """The share of thirty days that trains on machines that fail `rate` times a day each."""
    draw, end, now, trained = random.Random(seed), 30 * 86_400.0, 0.0, 0.0
    between = 86_400 / (nodes * rate)
    failure = draw.expovariate(1 / between)
    while now < end:
        saved = now + interval + save
        if saved <= failure:
            now, trained = saved, trained + interval
            continue
        now = failure + restart
        failure += draw.expovariate(1 / between)
        while failure < now:  # another one before the run goes on
            now = failure + restart
            failure += draw.expovariate(1 / between)
    return trained / now


def failures() -> bool:
    """1,000 machines, 30 days, 20 seeds, at Daly's interval, which is better than others."""
    from lmsd.engine.failures import Failing

    good = True
    for rate, save, restart in ((0.002, 60.0, 300.0), (0.005, 30.0, 300.0), (0.02, 120.0, 600.0)):
        failing = Failing(between=86_400 / (1_000 * rate), save=save, restart=restart)
        interval = failing.daly()
        shares = [simulated(1_000, rate, save, restart, interval, seed=seed) for seed in range(20)]
        mean, told = statistics.fmean(shares), failing.share(interval)
        good &= abs(mean - told) <= POINT
        others = [failing.share(interval * factor) for factor in (0.5, 0.8, 1.25, 2.0)]
        good &= all(other <= told for other in others)
        print(f"{rate} a day, save {save:.0f} s, restart {restart:.0f} s: every {interval / 60:.1f} min, "
              f"planned {told:.4f}, simulated {mean:.4f}, n = 20")  # fmt: skip
    return good


def main() -> int:
    """One part, by its name."""
    part, *rest = sys.argv[1:] or ["-h"]
    if part == "memory":
        good = memory(rest[0], rest[1], Path(rest[2]))
    elif part == "layouts":
        good = layouts(Path(rest[0]))
    elif part == "failures":
        good = failures()
    elif part == "allocated":
        print(allocated(rest[1:], Path(rest[0])))
        return 0
    elif part == "layout":
        layout(rest[0])
        return 0
    else:
        print(__doc__)
        return 0
    print("pass" if good else "FAIL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
