"""Does the adversary pay? LMSD against the same generator trained by denoising alone, at equal wall time.

    python benchmarks/adversarial_gain.py tune digits     the trials of both sides: one seed, scored on val
    python benchmarks/adversarial_gain.py run digits      the winners: three seeds, scored once on test
    python benchmarks/adversarial_gain.py run shapes 6    the same with six

Both sides share the data, the generator's net, the batch size, the number of steps (4) and the machine; each
side has its own process, optimizer and schedule, chosen among its trials by FD on val; a trial sees
`trial_images`. Denoising gets as many images as fit into LMSD's wall time, warm start included: its speed is
measured just before. All wall times are printed, and FD at 50 steps of the denoiser beside the rest. Results
go to benchmarks/results/.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import t as student

HERE = Path(__file__).resolve().parent
LMSD = [sys.executable, "-m", "lmsd.cli"]
SEEDS = 3
SHORT = (0.04, 0.12)  # shares of a run that measure a speed: two, so that the start does not count


def main(arguments: list[str]) -> int:
    """Tune or run one data set."""
    if len(arguments) not in (2, 3) or arguments[0] not in ("tune", "run"):
        print(__doc__)
        return 2
    arms = json.loads((HERE / "adversarial_gain.json").read_text())[arguments[1]]
    if arguments[0] == "tune":
        return tune(arguments[1], arms)
    return run(arguments[1], arms, int(arguments[2]) if len(arguments) == 3 else SEEDS)


def train(data: str, overrides: list[str], folder: Path) -> float:
    """Train one run without scoring it and return its wall time in seconds."""
    words = [
        f"experiment={data}",
        "evaluate.n=0",
        f"run_dir={folder}",
        "checkpoint_every=1000000000",
        *overrides,
    ]
    subprocess.run([*LMSD, "train", *words], check=True, capture_output=True)
    status = json.loads((folder / "status.json").read_text())
    print(f"  {folder.name}: {status['images']:,} images in {status['seconds']:.0f} s", flush=True)
    return float(status["seconds"])


def score(folder: Path, split: str, steps: int) -> dict[str, Any]:
    """FD and right prompts of a run at a number of steps."""
    words = [f"run={folder}", f"split={split}", f"steps={steps}", "seeds=[0,1,2]"]
    subprocess.run([*LMSD, "evaluate", *words], check=True, capture_output=True)
    record: dict[str, Any] = json.loads((folder / "eval" / split / "metrics.json").read_text())
    scores = {
        name.split("[")[0]: {key: found[key] for key in ("value", "low", "high", "by_seed") if key in found}
        for name, found in record["scores"].items()
        if "value" in found
    }
    return {"n": record["n"], "extractor": record["extractor"], **scores}


def tune(data: str, arms: dict[str, Any]) -> int:
    """Run every trial of both sides once on val and log it."""
    log = HERE / "results" / f"adversarial_gain_{data}_trials.jsonl"
    log.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for side in ("lmsd", "denoising"):
            for number, trial in enumerate(arms["trials"][side]):
                folder = Path(place) / f"{side}-{number}"
                words = [*arms[f"{side}_base"], *trial, f"images={arms['trial_images']}"]
                seconds = train(data, words, folder)
                found = score(folder, "val", 4)
                line = {
                    "side": side,
                    "trial": trial,
                    "seconds": seconds,
                    "fd": found["fd"],
                    "right": found["right"],
                }
                print(f"  {side} {' '.join(trial)}: fd {found['fd']['value']:.3f}")
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return 0


def run(data: str, arms: dict[str, Any], seeds: int) -> int:
    """So many seeds of both winners, interleaved, at equal wall time; exit code 1 when LMSD loses."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for seed in range(seeds):
            lmsd = Path(place) / f"lmsd-{seed}"
            own = [*arms["lmsd_base"], *arms["lmsd"], f"images={arms['images']}", f"seed={seed}"]
            budget = train(data, own, lmsd)
            row: dict[str, Any] = {"seed": seed, "seconds": {"lmsd": budget}, "lmsd": score(lmsd, "test", 4)}
            words = [*arms["denoising_base"], *arms["denoising"], f"seed={seed}"]
            folder = Path(place) / f"denoising-{seed}"
            images = affordable(data, words, budget, arms["images"], folder)
            row["seconds"]["denoising"] = train(data, [*words, f"images={images}"], folder)
            row["denoising"], row["denoising_50"] = score(folder, "test", 4), score(folder, "test", 50)
            print(json.dumps(row), flush=True)
            rows.append(row)
    text, won = table(data, rows)
    print(text)
    results = HERE / "results" / f"adversarial_gain_{data}.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"arms": arms, "rows": rows, "won": won}, indent=1) + "\n")
    return 0 if won else 1


def affordable(data: str, words: list[str], seconds: float, images: int, folder: Path) -> int:
    """How many images a run sees in so many seconds, by the speed between two short ones."""
    counts = [round(share * images) for share in SHORT]
    short, longer = (
        train(data, [*words, f"images={n}", f"log_every={n // 10}"], folder.with_name(f"{folder.name}-{n}"))
        for n in counts
    )
    start = short - counts[0] * (longer - short) / (counts[1] - counts[0])
    return round((seconds - start) * (counts[1] - counts[0]) / (longer - short))


def table(data: str, rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """The comparison in Markdown, and whether LMSD's FD is lower beyond the paired 95 % interval."""
    first = rows[0]["lmsd"]
    lines = [
        f"{data}: FD on test, n={first['n']}, {first['extractor']}, three sampling seeds a run",
        "",
        "| seed | LMSD, 4 steps | denoising, 4 steps | denoising, 50 steps | floor | right | wall time, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        fd = {name: row[name]["fd"]["value"] for name in ("lmsd", "denoising", "denoising_50")}
        right = " / ".join(f"{row[name]['right']['value']:.3f}" for name in ("lmsd", "denoising"))
        seconds = " / ".join(f"{value:.0f}" for value in row["seconds"].values())
        values = " | ".join(f"{value:.3f}" for value in (*fd.values(), row["lmsd"]["fd_floor"]["value"]))
        lines.append(f"| {row['seed']} | {values} | {right} | {seconds} |")
    gains = [row["denoising"]["fd"]["value"] - row["lmsd"]["fd"]["value"] for row in rows]
    mean, half = statistics.mean(gains), interval(gains)
    verdict = "beyond" if mean - half > 0 else "not beyond"
    lines += ["", f"gain {mean:.3f} ± {half:.3f} (95 %, paired by {len(rows)} seeds): {verdict} the interval"]
    return "\n".join(lines), mean - half > 0


def interval(values: list[float]) -> float:
    """Half-width of the 95 % t-interval of a mean."""
    return float(student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
