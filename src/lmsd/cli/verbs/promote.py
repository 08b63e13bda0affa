"""`lmsd promote`: the run that is served changes only for one that is better, by paired intervals on val."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lmsd.cli.config import options
from lmsd.cli.runs import store
from lmsd.errors import Number, Seed, UserError
from lmsd.evaluation import pointer
from lmsd.evaluation.pointer import Promoted
from lmsd.evaluation.records import Record

ELSE = ("interval", "image_guidance", "autoguidance", "adapters")
"""What a record has only where it differs from what is usual."""
KEPT = 3
"""Exit code where the incumbent stays."""

HELP = """lmsd promote RUN [option=value ...]      take the promoted run's place, if this one is better
lmsd promote back                        go back to the one before

  RUN                   last, an id or a folder       checkpoint=FILE   default: its newest
  score=fd              what it must be better in; fd[lmsd-ssl], sw_families, right, ... are others
  seeds=[0,1,2]         of the images                 n=                of val; default: the whole split
  first=true            begin: nothing is promoted yet, or what was is gone, so nothing is compared

Both are scored on val with the same prompts and seeds, each sampled as it is by itself. The run is promoted
if the 95 % interval of the difference lies on the better side, no other family of features, nor the share of
right prompts, is worse by more than 2 % with 95 % confidence or missing, and copies of the training set are
not flagged. Where the two are not told apart the incumbent stays; to try other seeds is to draw again.

outputs/promoted.json names the promoted run. Exit codes: 0 promoted, 3 the incumbent stays.
"""


@dataclass(frozen=True, kw_only=True)
class PromoteOptions:
    """Options of `lmsd promote`; see HELP."""

    run: str
    checkpoint: str | None = None
    score: str = "fd"
    seeds: tuple[Seed, ...] = (0, 1, 2)
    n: Annotated[int, Number(2)] | None = None
    first: bool = False


def main(arguments: list[str]) -> int:
    """Promote, or say why not."""
    if arguments[:1] == ["back"]:
        return back(arguments[1:])
    chosen = read(arguments)
    folder = store.find_folder(chosen.run)
    challenger = Promoted.of(folder, checkpoint_of(folder, chosen.checkpoint))
    if store.state(folder) == "running":
        raise UserError(
            f"{folder} is being trained, which deletes older checkpoints: promote it when it is done"
        )
    incumbent, history = pointer.read()
    if chosen.first:
        if incumbent is not None and incumbent.whole():
            raise UserError(
                f"{incumbent.run} is promoted already: leave first=true out, and the better one stays"
            )
        print(f"{pointer.point(challenger, history)}: {challenger.run} {challenger.checkpoint}")
        return 0
    if incumbent is None:
        raise UserError(f"nothing is promoted yet: begin with lmsd promote {chosen.run} first=true")
    if incumbent == challenger:
        raise UserError(f"{challenger.run} {challenger.checkpoint} is promoted already: name another run")
    return judged(challenger, incumbent, chosen)


def read(words: list[str]) -> PromoteOptions:
    """The options; the first word may be the run alone."""
    named = [word if "=" in word and not Path(word).exists() else f"run={word}" for word in words[:1]]
    return options.read(PromoteOptions, [*named, *words[1:]], verb="promote")


def back(words: Sequence[str]) -> int:
    """Point to the newest model before the promoted one that is whole."""
    if words:
        raise UserError(f"lmsd promote back takes no more words, and '{words[0]}' is one")
    now, history = pointer.read()
    if now is None or not history:
        raise UserError("there is nothing to go back to: no run was promoted before this one")
    place = next((place for place in reversed(range(len(history))) if history[place].whole()), None)
    if place is None:
        raise UserError(
            f"there is nothing to go back to: all that was promoted before {now.run} is gone, damaged or "
            f"another one by now: {'it stays' if now.whole() else 'begin with lmsd promote RUN first=true'}"
        )
    for each in reversed(history[place + 1 :]):
        print(f"passed over: {each.run} {each.checkpoint}, which is gone, damaged or another one by now")
    before = history[place]
    print(f"{pointer.point(before, history[:place])}: {before.run} {before.checkpoint}, as before {now.run}")
    return 0


def judged(challenger: Promoted, incumbent: Promoted, chosen: PromoteOptions) -> int:
    """Score both where that is still to be done, compare, and point to the better one."""
    from lmsd.evaluation.promotion import decide

    incumbent.file()
    theirs, own = (scored(each, chosen) for each in (incumbent, challenger))
    found = decide(own, theirs, score=chosen.score)
    print(f"{challenger.run} against {incumbent.run}: val, n={own['n']}, seeds {own['seeds']}, paired")
    print(*(f"  {row}" for row in found.differences), sep="\n")
    print(*(f"note: {note}\n" for note in found.notes), sep="", end="")
    print(found.why)
    if not found.promoted:
        return KEPT
    now, history = pointer.read()
    if now != incumbent:
        raise UserError("another run was promoted meanwhile: compare with that one, lmsd promote again")
    print(pointer.point(challenger, [*history, incumbent]))
    return 0


def checkpoint_of(folder: Path, name: str | None) -> Path:
    """The named checkpoint of a run, or its newest that is whole."""
    from lmsd.checkpoints import find

    return find(folder / "checkpoints" if name is None else store.checkpoint_at(folder, name))


def scored(each: Promoted, chosen: PromoteOptions) -> Record:
    """The record of a checkpoint on val, at its own settings and the asked seeds; made if there is none."""
    from lmsd.cli.config.settings import Combinations
    from lmsd.cli.verbs import evaluate

    found = known(each, chosen)
    if found is None:
        sampling = Combinations(run=str(each.folder), checkpoint=each.checkpoint)
        words = evaluate.EvaluateOptions(sampling=sampling, split="val", seeds=chosen.seeds, n=chosen.n)
        print(f"scoring {each.run} {each.checkpoint} on val")
        with evaluate.ranks():
            evaluate.evaluate(each.folder, words)
        found = known(each, chosen)
    if found is None:
        raise UserError(f"{each.folder} was scored, and no record of it is in {each.folder / 'eval' / 'val'}")
    return found


def known(each: Promoted, chosen: PromoteOptions) -> Record | None:
    """The newest record of a checkpoint as it samples by itself: younger than its file, of this version."""
    from lmsd import __version__
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.trained import opened
    from lmsd.cli.config.settings import SamplingOptions
    from lmsd.evaluation.records import records_by_age

    model, generate = opened(each.folder, SamplingOptions(run=each.run, checkpoint=each.checkpoint))
    own = {name: value for name, value in generate.record().items() if name != "nfe"}
    wanted = {**own, "ema": model.ema, "checkpoint": each.checkpoint, "version": __version__, "options": None}
    n = chosen.n or len(shard_set(store.config_of(each.folder)).split_set("val"))
    written = each.file().stat().st_mtime
    for path, record in reversed(records_by_age(each.folder, "val").items()):
        setup = record["setup"]
        alike = all(setup.get(name) == value for name, value in wanted.items())
        alike &= all((name in setup) == (name in own) for name in ELSE)
        alike &= "families" in setup
        if (
            alike
            and (record["n"], record["seeds"]) == (n, list(chosen.seeds))
            and path.stat().st_mtime >= written
        ):
            return record
    return None
