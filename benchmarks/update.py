"""A new color arrives: what `lmsd update` gains and loses, beside joint training.

    python benchmarks/update.py 0 1 2             three seeds
    python benchmarks/update.py 0 --short         a twentieth of the updates, to try it

Shapes without blue first, then blue alone; right prompts by the exact reader on test of both. Every line of
benchmarks/results/update.jsonl is a cell.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ledger import Ledger, run, scores

PARTS = {"old": "not ('blue' in caption)", "new": "'blue' in caption"}
IMAGES = 150_000


def right(folder: Path, shards: str) -> list[float]:
    """Right prompts on test, with their interval."""
    own = {"size": 16, "channels": 3, "reads": "shapes", "split": "test", "seeds": (0, 1)}
    return scores(folder, shards, **own)["scores"]["right"]  # type: ignore[no-any-return]


def cell_of(seed: int, *, work: Path, images: int) -> dict[str, Any]:
    """Old and new prompts before, after an update, and after joint training for as long as both."""
    old, new = f"{work}/old", f"{work}/new"
    common = ["experiment=shapes", f"seed={seed}", "evaluate.n=0", "logger=none", "objective=denoising"]
    before, after, joint = (work / f"{name}-{seed}" for name in ("before", "after", "joint"))
    run("train", *common, f"data.shards={old}", f"images={images}", f"run_dir={before}")
    run("update", f"run={before}", f"data.shards={new}", f"images={images // 3}", f"run_dir={after}")
    whole = f"data.shards=[{old},{new}]"
    run("train", *common, whole, f"images={images + images // 3}", f"run_dir={joint}")
    sides = {"before": before, "after": after, "joint": joint}
    return {side: {part: right(folder, f"{work}/{part}") for part in PARTS} for side, folder in sides.items()}


def main(words: list[str]) -> None:
    short = "--short" in words
    seeds = [int(word) for word in words if word != "--short"]
    ledger = Ledger("update")
    with tempfile.TemporaryDirectory() as work:
        for part, where in PARTS.items():
            run("data", "build", "shapes", f"out={work}/{part}", "image_size=16", f'where="{where}"')
        for seed in seeds:
            images = IMAGES // 20 if short else IMAGES
            cell = f"shapes {seed}" + " short" * short
            ledger.cell(cell, partial(cell_of, seed, work=Path(work), images=images))


if __name__ == "__main__":
    main(sys.argv[1:])
