"""The article's objective as it is written, with the other sign, and LMSD beside it, on digits.

    python benchmarks/article.py           every arm, 100,000 images, three seeds; results/article.json
    python benchmarks/article.py game      lmsd with and without L_KL in the game, the experiment's 400,000

Every arm has the same data, generator, number of images and steps (4). Scores are on test, at the end: FD and
the share of prompts whose digit is right. What D makes of images is measured as well: `energy_real` and
`energy_fake` are L_rec(x, D(x)) on val, `matching` is D's second term.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LMSD = [sys.executable, "-m", "lmsd.cli"]
SEEDS = 3
WRITTEN = ["objective=article", "sampler=ancestral"]
ARMS: dict[str, list[str]] = {
    "as written": WRITTEN,
    "sign=energy": [*WRITTEN, "objective.game.sign=energy"],
    "as written, kl=0": [*WRITTEN, "objective.game.kl=0"],
    "sign=energy, kl=0": [*WRITTEN, "objective.game.sign=energy", "objective.game.kl=0"],
    "predict=previous": [
        "objective=article", "objective.game.predict=previous", "generator.prediction=x0", "sampler=direct"
    ],
    "L_KL alone": ["objective.warmup=1", "objective.head_start=0"],
    "lmsd": [],
    "lmsd, L_KL 0.1 in the game": ["objective.game.anchor.kind=mse_kl", "objective.game.anchor.weight=0.1"],
    "lmsd, L_KL 1 in the game": ["objective.game.anchor.kind=mse_kl"],
}  # fmt: skip
LOGS = (
    "discriminator/reconstruction",
    "discriminator/matching",
    "generator/matching",
    "generator/kl",
    "discriminator/grad_norm",
)


def main(arguments: list[str]) -> int:
    """Train and score every arm with every seed; the record is written after each."""
    game = arguments == ["game"]
    arms = {name: ARMS[name] for name in ("lmsd", "lmsd, L_KL 1 in the game")} if game else ARMS
    images, rows = 400_000 if game else 100_000, list[dict[str, Any]]()
    results = HERE / "results" / ("article_game.json" if game else "article.json")
    with tempfile.TemporaryDirectory() as place:
        for seed in range(SEEDS):
            for arm, words in arms.items():
                folder = Path(place) / f"{len(rows)}"
                rows.append({"arm": arm, "seed": seed, **trained([*words, f"images={images}"], seed, folder)})
                print(json.dumps(rows[-1]), flush=True)
                record = {"images": images, "arms": arms, "rows": rows}
                results.write_text(json.dumps(record, indent=1) + "\n")
                if seed == 0 and not game:
                    keep(folder, arm)
    print(table(rows))
    return 0


def trained(words: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """One run's scores on test, and the last line of its training metrics."""
    own = ["experiment=digits", f"seed={seed}", f"run_dir={folder}", "evaluate.n=200"]
    own += ["log_every=5000", "checkpoint_every=1000000000", "evaluate.every=0", *words]
    subprocess.run([*LMSD, "train", *own], check=True, capture_output=True)
    score = ["evaluate", f"run={folder}", "split=test", "seeds=[0,1,2]"]
    subprocess.run([*LMSD, *score], check=True, capture_output=True)
    record = json.loads((folder / "eval" / "test" / "metrics.json").read_text())
    found: dict[str, Any] = {
        "n": record["n"],
        "seconds": json.loads((folder / "status.json").read_text())["seconds"],
    }
    for name, value in record["scores"].items():
        short = name.split("[")[0]
        if short in ("fd", "right"):
            found[short] = value["value"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in (
        *LOGS,
        "discriminator/energy_real_val",
        "discriminator/energy_fake_val",
        "discriminator/accuracy_val",
    ):
        values = [line[name] for line in lines if name in line]
        if values:
            found[name] = values[-1]
    return found


def keep(folder: Path, arm: str) -> None:
    """The last sample grid, for the picture."""
    grids = sorted((folder / "samples").glob("*.png"))
    if grids:
        target = HERE / "results" / "article"
        target.mkdir(exist_ok=True)
        name = "".join(char if char.isalnum() else "_" for char in arm)
        (target / f"{name}.png").write_bytes(grids[-1].read_bytes())


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and range over the seeds."""
    lines = ["| arm | FD | digit right |", "|---|---|---|"]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        cells = []
        for name, scale in (("fd", 1.0), ("right", 100.0)):
            values = [scale * row[name] for row in own if name in row]
            if values:
                cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
