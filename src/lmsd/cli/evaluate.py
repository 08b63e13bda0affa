"""`lmsd evaluate`: scores of a run on held-out data, with n, seeds, intervals and floor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmsd.cli import options, runs
from lmsd.errors import UserError

HELP = """lmsd evaluate run=RUN [option=value ...]

  run=last|ID|FOLDER    split=test|val|train    n= (default: the whole split)    seeds=[0,1,2]
  steps= guidance= sampler=      default: the run's own
  ema=ema|raw|HALFLIFE  checkpoint=FILE
  shards=SHARDS         held-out shards that lie elsewhere

Writes RUN/eval/SPLIT/metrics.json and the report. Numbers of different n, extractors or splits do not
compare.
"""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `lmsd evaluate`; see HELP."""

    run: str
    split: Literal["test", "val", "train"] = "test"
    n: int | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    ema: str = "ema"
    checkpoint: str | None = None
    shards: str | None = None


def main(arguments: list[str]) -> int:
    """Evaluate, print the scores and the report's path."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0 if arguments else 2
    chosen = options.read(EvaluateOptions, arguments, verb="evaluate")
    folder = runs.find(chosen.run)
    print(evaluate(folder, chosen))
    from lmsd.evaluation.report import write_report

    print(f"Report: {write_report(folder)}")
    return 0


def evaluate(folder: Path, chosen: EvaluateOptions) -> str:
    """Score a run on a split, write the record, and return it as text."""
    from lmsd.cli.build import data_module
    from lmsd.cli.data import Bar
    from lmsd.cli.trained import open_run
    from lmsd.cli.validate import evaluator

    trained = open_run(
        folder,
        ema=chosen.ema,
        checkpoint=chosen.checkpoint,
        steps=chosen.steps,
        guidance=chosen.guidance,
        sampler=chosen.sampler,
    )
    config = trained.config
    if chosen.shards is not None:
        if chosen.split == "train":
            raise UserError("shards= names held-out shards; choose split=val or split=test")
        config.data[chosen.split] = chosen.shards
    scorer = evaluator(config, data_module(config), chosen.split, n=chosen.n)
    with Bar() as bar:
        scores = scorer(
            trained.generate,
            seeds=list(chosen.seeds),
            split=chosen.split,
            ema=trained.ema,
            setup={"checkpoint": trained.checkpoint.name, "run": folder.name},
            progress=lambda done, total: bar.update(done, total, "sampling"),
        )
    scores.write(folder)
    return str(scores)
