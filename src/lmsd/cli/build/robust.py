"""`lmsd evaluate robustness=true`: the curves of a run's robustness, beside its scores."""

from pathlib import Path

from lmsd.evaluation import Evaluator
from lmsd.evaluation.robustness import robustness, subject, told, write
from lmsd.ranks import rank_and_world
from lmsd.sampling import Generation

MOST = 512
"""Held-out rows that are disturbed."""


def disturb(
    folder: Path, generate: Generation, scorer: Evaluator, split: str, *, seed: int, on: bool
) -> list[str]:
    """Measure, write eval/SPLIT/robustness/curves.json, return the curves as text, if on; rank 0 alone."""
    if not on or rank_and_world()[0] != 0:
        return []
    one = subject(scorer, generate, n=MOST, seed=seed)
    sweeps = robustness(one)
    record = {**generate.record(), "n": len(one.batch), "seed": seed, "extractor": scorer.extractor.name}
    write(folder / "eval" / split, sweeps, {**record, "split": split})
    return [told(sweeps)]
