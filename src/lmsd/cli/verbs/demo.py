"""`lmsd demo`: the whole chain on handwritten digits, and whether it reached what it should.

Data, extractor, adversarial training, four-step samples from prompts, held-out scores. With --ablation the
same run again with the adversary off, both side by side.
"""

import json
import time
from pathlib import Path
from typing import Any

from lmsd.cli.runs import store
from lmsd.errors import UserError

DATA = Path("data/digits")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RIGHT, RATIO, PLAYED = 0.95, 1.3, 0.3
"""What the demo must reach: share of digits right, FD over the floor, share of updates with the adversary."""
ARMS: dict[str, list[str]] = {
    "adversary": [],
    "no adversary": ["objective.warmup=1.0", "objective.head_start=0", "name=digits-no-adversary"],
}

HELP = """lmsd demo [--ablation] [option=value ...]

Builds the digits data set, trains experiment=digits, samples ten prompts, scores the held-out prompts.
--ablation: the same run again with the adversary off, both side by side. Options are those of lmsd train.
"""


def main(arguments: list[str]) -> int:
    """Run the demo and say which of its figures it reached."""
    started = time.monotonic()
    ablation = "--ablation" in arguments
    words = [word for word in arguments if word != "--ablation"]
    check(words, ablation=ablation)
    if not (DATA / "manifest.json").is_file():
        from lmsd.cli.verbs import data

        data.main(["build", "digits", f"out={DATA}"])
    arms = {name: arm(words + extra) for name, extra in ARMS.items() if ablation or not extra}
    print(table(arms))
    first = arms["adversary"]
    missed = shortfalls(first)
    verdict = f"missed: {'; '.join(missed)}" if missed else "all figures reached"
    print(f"{verdict}; {time.monotonic() - started:.0f} s in all")
    print(f"Report: {first['folder'] / 'report.html'}")
    return 0


def check(words: list[str], *, ablation: bool) -> None:
    """Refuse wrong options of `lmsd train`, and those that a demo has no use for, before data are built."""
    from lmsd.cli.config.compose import load

    config = load(["experiment=digits", *words], run=True)
    if config.resume or config.dry:
        word = "resume=" if config.resume else "debug=dry"
        raise UserError(f"{word} makes no sense here: lmsd demo trains a run of its own, to its end")
    if ablation and config.run_dir:
        raise UserError(
            f"--ablation trains two runs, and run_dir={config.run_dir} is one folder: leave it out"
        )
    try:
        load(["experiment=digits", *words, *(ARMS["no adversary"] if ablation else [])])
    except UserError as error:
        raise UserError(
            f"--ablation trains it again with the adversary off, which these options do not allow ({error})"
        ) from error


def arm(overrides: list[str]) -> dict[str, Any]:
    """Train, sample and score one run; its folder, its test record and its status."""
    from lmsd.cli.config.compose import load
    from lmsd.cli.config.settings import Combinations, SamplingOptions
    from lmsd.cli.verbs import report
    from lmsd.cli.verbs.evaluate import EvaluateOptions, evaluate
    from lmsd.cli.verbs.sample import SampleOptions, sample
    from lmsd.cli.verbs.train import train

    overrides = ["experiment=digits", *overrides]
    config = load(overrides)
    folder = train(config, overrides=overrides)
    prompts = tuple(f"a handwritten {name}" for name in NAMES)
    sampling = SamplingOptions(run=str(folder))
    print(sample(SampleOptions(sampling=sampling, prompts=prompts, seeds=(0, 1, 2, 3))))
    evaluate(folder, EvaluateOptions(sampling=Combinations(run=str(folder)), split="test"))
    report.write(folder)
    return {
        "folder": folder,
        "record": json.loads((folder / "eval/test/metrics.json").read_text()),
        "status": store.status(folder),
        "played": played(folder, config.batch_size, config.objective.get("d_steps", 1)),
    }


def played(folder: Path, batch_size: int, d_steps: int) -> float:
    """Share of the generator's updates at which the adversary played too, from the counts in the log."""
    last = {key: value for line in store.scored(folder, '"images"') for key, value in line.items()}
    alone = last["images"] / batch_size - last.get("discriminator/updates", 0.0) / d_steps
    return float(1.0 - alone / last["generator/updates"])


def table(arms: dict[str, dict[str, Any]]) -> str:
    """Scores of the arms, one column each, with their intervals."""
    names = {name: scores(found) for name, found in arms.items()}
    rows = list(next(iter(names.values())))
    head = f"{'test split, four steps':34}" + "".join(f"{name:>26}" for name in arms)
    body = [f"{row:34}" + "".join(f"{found[row]:>26}" for found in names.values()) for row in rows]
    return "\n".join([head, *body])


def scores(found: dict[str, Any]) -> dict[str, str]:
    """The figures of one run as text."""
    record = found["record"]
    extractor, values = record["extractor"], record["scores"]
    near, (low, high) = values["neighbors"]["ratio"], values["neighbors"]["intervals"]["ratio"]

    def interval(name: str, scale: float = 1.0) -> str:
        value = values[name]
        return f"{scale * value['value']:.3g} [{scale * value['low']:.3g}, {scale * value['high']:.3g}]"

    return {
        f"digit right, % of {record['n'] * len(record['seeds'])} prompts": interval("right", 100.0),
        f"fd[{extractor}], n={record['n']}": interval(f"fd[{extractor}]"),
        "  of matched halves": interval(f"fd_matched[{extractor}]"),
        "  floor: two real halves": interval(f"fd_floor[{extractor}]"),
        "  ratio to the floor": interval(f"fd_ratio[{extractor}]"),
        "nearest training neighbor ratio": "–" if near is None else f"{near:.2f} [{low:.2f}, {high:.2f}]",
        "updates with the adversary, %": f"{100 * found['played']:.0f}",
        "images seen": f"{found['status']['images']:,}",
        "training, seconds": f"{found['status']['seconds']:.0f}",
    }


def shortfalls(found: dict[str, Any]) -> list[str]:
    """The figures that a run missed, in words."""
    values, extractor = found["record"]["scores"], found["record"]["extractor"]
    ratio = values[f"fd_ratio[{extractor}]"]["value"]
    checks = [
        (values["right"]["value"] >= RIGHT, f"digit right below {RIGHT:.0%}"),
        (ratio <= RATIO, f"FD above {RATIO} x the floor"),
        (found["played"] >= PLAYED, f"adversary in under {PLAYED:.0%} of the updates"),
    ]
    return [text for reached, text in checks if not reached]
