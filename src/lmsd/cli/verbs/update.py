"""`lmsd update`: a run goes on learning from new shards, and says what it gained and what it lost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.files import write_text

if TYPE_CHECKING:
    from lmsd.evaluation import Scores

HELP = """lmsd update run=RUN data.shards=NEW [option=value ...]

  run=last|ID|FOLDER    what was trained; its averaged weights are where the new run begins
  data.shards=NEW       what is new, with val shards of its own
  images=50_000         how long; the run's own length by default
  objective.keep=replay|ewc|rank1|l2   objective.weight=1     what keeps the old (docs/learning.md)

All other options are those of lmsd train, and where none is given, those that the run was begun with. The
new run keeps near what the old one could, without old data: its own images of the old captions are trained
along. Then both are scored on the val shards of the old data and of the new, in the features of one
classifier of both, and UPDATE.txt in the new run's folder says what was gained and lost.
"""

OWN = ("objective", "recipe", "resume", "extend", "init_from", "run_dir", "images", "name", "discriminator")
"""Groups that the new run does not take over from the words that the old one was begun with."""
BELOW = ("optim.discriminator", "optim.clip", "optimizer@optim.discriminator")
DATA = ("data.shards", "data.val", "data.test", "data.weights")
PROMPTS = 256
"""Captions of the old data that are kept, at most."""
SEEDS = (0, 1, 2)


def main(arguments: list[str]) -> int:
    """Train on the new shards, score before and after, and say the difference."""
    named = [word.partition("=")[2] for word in arguments if word.startswith("run=")]
    given = [word for word in arguments if not word.startswith("run=")]
    shards = [word.partition("=")[2] for word in given if word.startswith("data.shards=")]
    if len(named) != 1 or not named[0]:
        raise UserError("which run? lmsd update run=RUN data.shards=NEW")
    if len(shards) != 1 or not shards[0]:
        raise UserError("what is new? lmsd update run=RUN data.shards=NEW")
    print(update(store.find_folder(named[0]), shards[0], given))
    return 0


def update(folder: Path, shards: str, given: Sequence[str]) -> str:
    """Train a new run from an old one on new shards; what was gained and lost."""
    from lmsd.cli.config.compose import load
    from lmsd.cli.verbs.train import train

    words = composed(folder, given)
    made = train(load(words, run=True), overrides=words)
    said = compared(folder, made, shards)
    write_text(made / "UPDATE.txt", said + "\n")
    return f"{said}\n{made / 'UPDATE.txt'}"


def composed(folder: Path, given: Sequence[str]) -> list[str]:
    """The words of the new run: the old one's, but for its method, and those that are given."""
    from lmsd.cli.build.experiment import shard_set

    config = store.config_of(folder)
    path = folder / "overrides.txt"
    before = path.read_text().splitlines() if path.is_file() else []
    names = {word.lstrip("+~").partition("=")[0] for word in given}
    kept = [word for word in before if word.strip() and not taken(word.lstrip("+~").partition("=")[0], names)]
    data = shard_set(config)
    if not data.index("train").captions:
        raise UserError(f"{folder.name} was trained without captions, of which lmsd update draws old images")
    train = data.split_set("train", real=True)
    prompts = sorted(set(train.captions(range(min(len(train), 100_000)))))
    step = max(1, len(prompts) // PROMPTS)
    quoted = ", ".join("'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'" for text in prompts[::step])
    own = [f"init_from={folder}@ema", "objective=continual", f"objective.prompts=[{quoted}]"]
    own += [f"name={config.name}", *([] if "images" in names else [f"images={config.images}"])]
    return [*kept, *own, *given]


def taken(name: str, given: set[str]) -> bool:
    """Whether the new run has an option of its own in the place of an old one's."""
    group = name.partition("@")[0].partition(".")[0]
    return name in given or group in OWN or name in DATA or name.startswith(BELOW)


def compared(before: Path, after: Path, shards: str) -> str:
    """Both runs on val of the old data and of the new, as lines of text."""
    lines = [f"{before.name} -> {after.name}, val, seeds {', '.join(map(str, SEEDS))}, 95 % intervals"]
    for what, scores in scored(before, after, shards).items():
        for name in ("right", "fd", "kid_paired"):
            named = ({n.partition("[")[0]: score for n, score in each.scores.items()} for each in scores)
            old, new = (each.get(name) for each in named)
            if old is not None and new is not None:
                change = new.interval.value - old.interval.value
                lines.append(f"  {what} {name}: {old.interval} -> {new.interval}, {change:+.3g}")
    return "\n".join(lines)


def scored(before: Path, after: Path, shards: str) -> "dict[str, list[Scores]]":
    """Scores of both runs on the val shards of the old data and of the new, by one classifier of both."""
    from omegaconf import OmegaConf

    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.extractors import extractor_of
    from lmsd.cli.build.trained import opened
    from lmsd.cli.build.validate import checker
    from lmsd.cli.config.schema import plain
    from lmsd.cli.config.settings import SamplingOptions
    from lmsd.data.shards import words_of
    from lmsd.evaluation import Evaluator

    configs: dict[str, Any] = {"old": store.config_of(before), "new": store.config_of(after)}
    joint: Any = OmegaConf.create(OmegaConf.to_container(configs["new"]))
    joint.data.shards = [*words_of(plain(configs["old"].data)["shards"]), *words_of(shards)]
    joint.data.weights = None
    extractor = extractor_of(joint.evaluate.extractor, shard_set(joint))
    models = [opened(each, SamplingOptions(run=str(each))) for each in (before, after)]
    found: dict[str, list[Scores]] = {}
    for what, config in configs.items():
        data = shard_set(config)
        if not data.has("val"):
            raise UserError(f"the {what} shards have no val split to score on: name some, data.val=SHARDS")
        split = data.split_set("val", real=True)
        n = min(config.evaluate.n or len(split), len(split))
        scorer = Evaluator(split, extractor, n=n, checker=checker(config.evaluate.checker))
        found[what] = [
            scorer(generate, seeds=SEEDS, split="val", ema=model.ema) for model, generate in models
        ]
    return found
