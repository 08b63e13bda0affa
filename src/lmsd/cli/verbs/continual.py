"""`lmsd train continual=[A, B, C]`: tasks one after the other, and what each run can do of every task.

    FOLDER/KEEP/task-1 ... task-T     a run each, from the averaged weights of the one before
    FOLDER/plain, FOLDER/joint        continual.beside=: with nothing that keeps (the floor), and all tasks at
                                      once, for as long as all take together (the ceiling)
    FOLDER/CONTINUAL.txt, .json       the matrix of scores, average, forgetting and forward transfer

Task 1 is trained once. Runs that are done are not trained again, so the same command goes on where it ended;
other tasks or words are refused by the runs that there are.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lmsd.checkpoints import OUTPUTS
from lmsd.cli.config import options
from lmsd.cli.config.compose import load
from lmsd.cli.runs import store
from lmsd.errors import Measure, UserError
from lmsd.files import write_text

if TYPE_CHECKING:
    from lmsd.evaluation import Scores
    from lmsd.metrics.intervals import Interval
    from lmsd.sampling import Model

Begin: TypeAlias = Callable[[list[str]], int]
PREFIX = "continual"
WORDS = (f"{PREFIX}=", f"{PREFIX}.")
"""What the words of lmsd train that name tasks begin with."""
OF_METHODS = ("objective", "recipe", "discriminator")
"""Groups whose words are for the first task: what keeps is objective=continual with its own."""
TAKEN = ("data.shards", "data.val", "run_dir", "resume", "extend", "init_from")
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The option continual=: shards of each task."""

    continual: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """The options continual.NAME=.

    keep: what keeps the old from the second task on, weight: how strongly; beside: what it is compared with.
    """

    keep: Literal["replay", "ewc", "rank1", "l2"] = "replay"
    weight: Measure = 1.0
    beside: tuple[Literal["plain", "joint"], ...] = ()


def main(words: Sequence[str], begin: Begin) -> int:
    """Train every task in turn, score all on val, and say what was kept; begin: trains one run."""
    tasks, keeping, given = split(words)
    from lmsd.cli.build.prompts import quoted

    base = load([*given, f"data.shards={quoted(tasks[0])}"])
    check(tasks, given, base)
    check_data(tasks, base)
    folder = Path(base.run_dir or OUTPUTS / PREFIX / base.name)
    runs = Arms(begin, folder, tasks, given, base).trained(keeping)
    scores = {arm: scored(made, tasks, deepcopy(base)) for arm, made in runs.items()}
    found = {kind: matrices(scores, kind) for kind in kinds(scores)}
    said = "\n".join(told(matrix, kind) for kind, matrix in found.items())
    plain = {
        kind: {arm: [[asdict(cell) for cell in row] for row in rows] for arm, rows in each.items()}
        for kind, each in found.items()
    }
    write_text(folder / "CONTINUAL.json", json.dumps({"tasks": tasks, **plain}, indent=1) + "\n")
    write_text(folder / "CONTINUAL.txt", said + "\n")
    print(f"{said}\n{folder / 'CONTINUAL.txt'}")
    return 0


def split(words: Sequence[str]) -> tuple[tuple[str, ...], Keeping, list[str]]:
    """Shards of the tasks, what keeps, and the words of every run."""
    own = [word for word in words if word.startswith(f"{PREFIX}.")]
    named = [word for word in words if word.startswith(f"{PREFIX}=")]
    if not named:
        raise UserError(f"{own[0]} is of tasks in turn: name their shards, continual=[A, B, C]")
    tasks = options.read(Tasks, named, verb="train").continual
    keeping = options.read(Keeping, own, verb="train", prefix=f"{PREFIX}.")
    return tasks, keeping, [word for word in words if not word.startswith(WORDS)]


def check(tasks: Sequence[str], given: Sequence[str], config: Any) -> None:
    """Raise UserError for what does not go together, before anything is trained."""
    taken = [word for word in given if word.partition("=")[0] in TAKEN and not word.startswith("run_dir=")]
    if taken:
        raise UserError(f"{taken[0]}: continual= sets it for every task: leave it out")
    if len(tasks) < 2:
        raise UserError("continual= needs two tasks or more: continual=[A, B]")
    if config.devices not in (1, "auto") or config.num_nodes != 1:
        raise UserError("continual= trains on one device: train the tasks by hand, each init_from= the last")
    if config.objective._target_.endswith(".Continual"):
        raise UserError("continual= brings objective=continual itself: name what the first task learns by")
    if config.dry:
        raise UserError("debug=dry builds one run: leave continual= out, and give data.shards= of a task")


def check_data(tasks: Sequence[str], config: Any) -> None:
    """Raise UserError for shards that a later task or the scores would refuse, before anything is trained."""
    from lmsd.cli.build.experiment import shard_set

    every = deepcopy(config)
    every.data.shards = list(tasks)
    shard_set(every)
    for shards in tasks:
        every.data.shards = shards
        data = shard_set(every)
        if not data.has("val"):
            raise UserError(f"{shards} has no val split to score on")
        if not data.index("train").captions:
            raise UserError(f"{shards} has no captions, of which own images are drawn to keep what it taught")


@dataclass(frozen=True)
class Arms:
    """The runs of a sequence of tasks. begin: trains one; given: the words of all; config: of the first."""

    begin: Begin
    folder: Path
    tasks: Sequence[str]
    given: Sequence[str]
    config: Any

    def trained(self, keeping: Keeping) -> dict[str, list[Path]]:
        """The runs of every arm, one a task; joint training's one run stands for all."""
        given = [word for word in self.given if not word.startswith("run_dir=")]
        first = self._play("task-1", given, self.tasks[:1])
        found: dict[str, list[Path]] = {keeping.keep: self._kept(first, given, keeping)}
        if "plain" in keeping.beside:
            found["plain"] = [first]
            for number, shards in enumerate(self.tasks[1:], 2):
                words = [*given, self._start(found["plain"][-1])]
                found["plain"].append(self._play(f"plain/task-{number}", words, [shards]))
        if "joint" in keeping.beside:
            words = [word for word in given if not word.startswith("images=")]
            words += [f"images={self.config.images * len(self.tasks)}"]
            found["joint"] = [self._play("joint", words, self.tasks)] * len(self.tasks)
        return found

    def _kept(self, first: Path, given: Sequence[str], keeping: Keeping) -> list[Path]:
        """The runs that keep what was learned before."""
        from lmsd.cli.build.prompts import option, prompts_of

        shared = [word for word in given if not of_method(word)]
        shared += ["objective=continual", f"objective.keep={keeping.keep}"]
        shared += [f"objective.weight={keeping.weight:g}"]
        made = [first]
        for number, shards in enumerate(self.tasks[1:], 2):
            known = {text for run in made for text in prompts_of(store.config_of(run), run.name)}
            own = [option(sorted(known)), self._start(made[-1])]
            made.append(self._play(f"{keeping.keep}/task-{number}", [*shared, *own], [shards]))
        return made

    def _start(self, run: Path) -> str:
        from lmsd.cli.build.prompts import quoted

        return f"init_from={quoted(f'{run}@ema' if self.config.optim.ema else str(run))}"

    def _play(self, name: str, words: Sequence[str], tasks: Sequence[str]) -> Path:
        """A run, trained to its end unless it is.

        Raises UserError where it ended before, and for one that is there and learned otherwise.
        """
        from lmsd.cli.build.prompts import quoted

        folder, shards = self.folder / name, tasks[0] if len(tasks) == 1 else list(tasks)
        if (folder / "config.yaml").is_file() and (was := store.config_of(folder).data.shards) != shards:
            raise UserError(
                f"{folder} learned {was}, and this command gives it {shards}: repeat the tasks of before, or "
                "begin others elsewhere, run_dir=FOLDER"
            )
        named = quoted(tasks[0]) if len(tasks) == 1 else f"[{','.join(map(quoted, tasks))}]"
        self.begin([*words, f"data.shards={named}", f"run_dir={quoted(str(folder))}", "resume=auto"])
        if store.status(folder).get("state") != "done":
            raise UserError(f"{folder} ended before its end: the same command goes on with it")
        return folder


def of_method(word: str) -> bool:
    """Whether a word configures the method of the first task."""
    name = word.lstrip("+~").partition("=")[0]
    group = name.partition("@")[0].partition(".")[0]
    return group in OF_METHODS or name.startswith(("optim.discriminator", "optimizer@optim.discriminator"))


def scored(runs: Sequence[Path], tasks: Sequence[str], config: Any) -> "list[list[Scores]]":
    """The matrix [T + 1, T]: val scores of every task, untrained and after each task, by one classifier.

    config: of the first run, whose data are changed.
    """
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.extractors import extractor_of
    from lmsd.cli.build.trained import opened
    from lmsd.cli.build.validate import checker
    from lmsd.cli.config.settings import SamplingOptions
    from lmsd.evaluation import Evaluator

    config.data.shards = list(tasks)
    extractor = extractor_of(config.evaluate.extractor, shard_set(config))
    models = [opened(run, SamplingOptions(run=str(run)))[0] for run in runs]
    models.insert(0, untrained(models[0]))
    scorers = []
    for shards in tasks:
        config.data.shards = shards
        split = shard_set(config).split_set("val", real=True)
        n = min(config.evaluate.n or len(split), len(split))
        scorers.append(Evaluator(split, extractor, n=n, checker=checker(config.evaluate.checker)))
    return [
        [scorer(model.generation(), seeds=SEEDS, split="val", ema=model.ema) for scorer in scorers]
        for model in models
    ]


def untrained(model: "Model") -> "Model":
    """The same model before it learned anything: its tokenizer, and weights as they are drawn."""
    import torch

    from lmsd.spec import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = dict(build(model.spec).named_parameters())
    generator = deepcopy(model.generator)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter.copy_(drawn.get(name, parameter))
    return replace(model, generator=generator)


def kinds(found: "Mapping[str, Sequence[Sequence[Scores]]]") -> list[str]:
    """What every cell has of right prompts, FD and paired KID."""
    cells = [cell for matrix in found.values() for row in matrix for cell in row]
    every = [kind for kind in ("right", "fd", "kid_paired") if all(_of(cell, kind) for cell in cells)]
    if not every:
        raise UserError("val is too small for a score: give every task more val images")
    return every


def matrices(
    found: "Mapping[str, Sequence[Sequence[Scores]]]", kind: str
) -> "dict[str, list[list[Interval]]]":
    """Every arm's matrix of one score."""
    return {
        arm: [[cell for scores in row if (cell := _of(scores, kind))] for row in matrix]
        for arm, matrix in found.items()
    }


def _of(scores: "Scores", kind: str) -> "Interval | None":
    found = (score.interval for name, score in scores.scores.items() if name.partition("[")[0] == kind)
    return next(found, None)


def told(found: "Mapping[str, Sequence[Sequence[Interval]]]", kind: str) -> str:
    """Every matrix with its intervals, and what follows from it."""
    from lmsd.evaluation.tasks import learned

    lines = [f"{kind} on val, a column a task, seeds {', '.join(map(str, SEEDS))}, 95 % intervals"]
    for arm, matrix in found.items():
        one = learned([[[cell.value for cell in row] for row in matrix]], higher=kind == "right")
        more = f", forgetting {one.forgetting.value:.3g}, forward transfer {one.transfer.value:.3g}"
        lines.append(f"{arm}: average {one.average.value:.3g}{more if arm != 'joint' else ''}")
        for number, row in enumerate(matrix):
            when = f"after task {number}" if number else "untrained"
            if arm != "joint" or number in (0, len(matrix) - 1):
                lines.append(f"  {when:14}" + "   ".join(f"{cell!s:20}" for cell in row).rstrip())
    return "\n".join(lines)
