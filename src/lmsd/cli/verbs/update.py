"""`lmsd update`: a run goes on learning from new shards, and says what it gained and what it lost."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from lmsd.cli.runs import store
from lmsd.cli.runs.agreed import agreed
from lmsd.errors import HIDDEN, UserError
from lmsd.files import write_text
from lmsd.ranks import launched_rank

if TYPE_CHECKING:
    from lmsd.evaluation import Scores

HELP = """lmsd update run=RUN data.shards=NEW [option=value ...]
lmsd update run=RUN resume=UPDATED     go on with one that was killed, and compare

  run=last|ID|FOLDER    what was trained; its averaged weights are where the new run begins
  data.shards=NEW       what is new, with val shards of its own
  images=50_000         how long; the run's own length by default
  objective.keep=replay|ewc|rank1|l2   objective.weight=1     what keeps the old (docs/learning.md)

All other options are those of lmsd train, and where none is given, those of the run. The
new run keeps near what the old one could, without old data: its own images of the old captions are trained
along. Then both are scored on the val shards of the old data and of the new, in the features of one
classifier of both, and UPDATE.txt in the new run's folder says what was gained and lost.
"""

OWN = ("objective", "recipe", "resume", "extend", "init_from", "run_dir", "images", "name", "discriminator")
"""Groups that the new run does not take over from the old one."""
BELOW = ("optim.discriminator", "optim.clip", "optimizer@optim.discriminator")
DATA = ("data.shards", "data.val", "data.test", "data.weights")
SEEDS = (0, 1, 2)


def main(arguments: list[str]) -> int:
    """Train on the new shards, score before and after, and say the difference."""
    named, shards, resumed = (
        [word.partition("=")[2] for word in arguments if word.startswith(f"{name}=")]
        for name in ("run", "data.shards", "resume")
    )
    given = [word for word in arguments if not word.startswith("run=")]
    if len(named) != 1 or not named[0]:
        raise UserError("which run? lmsd update run=RUN data.shards=NEW")
    if not resumed and (len(shards) != 1 or not shards[0]):
        raise UserError("what is new? lmsd update run=RUN data.shards=NEW")
    if any(word.lstrip("+~").startswith("extend=") for word in given):
        raise UserError("an update is a new run, as long as images= says: leave extend= out")
    # the other ranks come when the new run may be the last one already
    folder = Path(agreed("update", lambda: str(store.find_folder(named[0]))))
    said = resume(folder, given) if resumed else update(folder, given)
    if said and not launched_rank():
        print(said)
    return 0


def update(folder: Path, given: Sequence[str]) -> str:
    """Train a new run from an old one on new shards; what was gained and lost, nothing after a dry run."""
    from lmsd.cli.verbs.train import train

    words = composed(folder, given)
    config = configured(folder, words, given)
    require_val(folder, config)
    made = train(config, overrides=words)
    return "" if config.dry else told(folder, made)


def resume(folder: Path, given: Sequence[str]) -> str:
    """Go on with an update that was interrupted, if it is not done; what was gained and lost."""
    from lmsd.checkpoints import find_run
    from lmsd.cli.runs.resuming import continued
    from lmsd.cli.verbs.train import train

    word = next(word for word in given if word.startswith("resume="))
    made = store.folder_of(find_run(word.partition("=")[2]))
    require_val(folder, store.config_of(made))
    if store.status(made).get("state") != "done":
        config, source = continued(given)
        assert config is not None
        train(config, overrides=given, resumed=source)
    return told(folder, made)


def told(before: Path, after: Path) -> str:
    """What was gained and lost, which rank 0 writes down."""
    said = compared(before, after)
    if not launched_rank():
        write_text(after / "UPDATE.txt", said + "\n")
    return f"{said}\n{after / 'UPDATE.txt'}"


def composed(folder: Path, given: Sequence[str]) -> list[str]:
    """The words of the new run: the old one's, but for its method, and those that are given."""
    from lmsd.cli.build.prompts import option, prompts_of

    config = store.config_of(folder)
    path = folder / "overrides.txt"
    before = path.read_text().splitlines() if path.is_file() else []
    names = {word.lstrip("+~").partition("=")[0] for word in given}
    kept = [  # of a run that another verb made, its line is no word
        word
        for word in before
        if re.match(r"[+~]*[\w.@/]+(=|$)", word) and not taken(word.lstrip("+~").partition("=")[0], names)
    ]
    words = {"name": config.name, "images": config.images, "steps": config.steps}
    own = [
        f"init_from={folder}{averaged(folder)}",
        "objective=continual",
        option(prompts_of(config, folder.name)),
    ]
    own += [f"{name}={value}" for name, value in words.items() if name not in names]
    return [*(word for word in kept if not word.startswith("steps=")), *own, *given]


def averaged(folder: Path) -> str:
    """@ema where the run's newest checkpoint has an average, as lmsd.load takes it."""
    from lmsd.sampling import load

    return "" if load(folder).ema == "raw" else "@ema"


def taken(name: str, given: set[str]) -> bool:
    """Whether the new run has an option of its own in the place of an old one's."""
    group = name.partition("@")[0].partition(".")[0]
    return name in given or group in OWN or name in DATA or name.startswith(BELOW)


def configured(folder: Path, words: Sequence[str], given: Sequence[str]) -> DictConfig:
    """The new run's configuration: that of the old one, whatever made it, but for what the new one says."""
    from lmsd.cli.config.compose import load, parse
    from lmsd.cli.runs.resuming import settled

    before = store.config_of(folder)
    config = load(words, run=True)
    said = {word.lstrip("+~").partition("=")[0] for word in given}
    said |= settled([parse(word) for word in given], {}).keys()
    carry(config, before, said)
    if "sampler" in config.objective and not any(name.startswith("objective.sampler") for name in said):
        config.objective.sampler = deepcopy(config.sampler)
    return config


def carry(config: Any, before: Mapping[Any, Any], said: set[str], within: str = "") -> None:
    """Take over an old configuration's values, but for those that are said and that are the new run's own."""
    for key in before:
        name, value = f"{within}{key}", before[key]
        inside = any(other.startswith(f"{name}.") for other in (*said, *DATA, *BELOW))
        if taken(name, said) or f"{name}._target_" in said or HIDDEN in str(value):
            continue
        if inside and key in config and type(value) is type(config[key]) is DictConfig:
            carry(config[key], value, said, f"{name}.")
        else:
            config[key] = deepcopy(value)


def require_val(folder: Path, config: DictConfig) -> None:
    """Raise UserError where the old data or the new have nothing to score on, before anything is trained."""
    from lmsd.cli.build.experiment import shard_set

    for what, each in {"old": store.config_of(folder), "new": config}.items():
        if not shard_set(each).has("val"):
            raise UserError(f"the {what} shards have no val split to score on: name some, data.val=SHARDS")


def joined(old: DictConfig, new: DictConfig) -> DictConfig:
    """The new run's configuration with the shards of both, each once: new ones may name old ones again."""
    from omegaconf import OmegaConf

    from lmsd.cli.config.schema import plain
    from lmsd.data.shards import resolve

    found: Any = OmegaConf.create(OmegaConf.to_container(new))
    found.data.shards = sorted({name for each in (old, new) for name in resolve(plain(each.data)["shards"])})
    found.data.weights = None
    made: DictConfig = found
    return made


def compared(before: Path, after: Path) -> str:
    """Both runs on val of the old data and of the new, as lines of text."""
    lines = [f"{before.name} -> {after.name}, val, seeds {', '.join(map(str, SEEDS))}, 95 % intervals"]
    for what, scores in scored(before, after).items():
        for name in ("right", "fd", "kid_paired"):
            named = ({n.partition("[")[0]: score for n, score in each.scores.items()} for each in scores)
            old, new = (each.get(name) for each in named)
            if old is not None and new is not None:
                change = new.interval.value - old.interval.value
                lines.append(f"  {what} {name}: {old.interval} -> {new.interval}, {change:+.3g}")
    return "\n".join(lines)


def scored(before: Path, after: Path) -> "dict[str, list[Scores]]":
    """Scores of both runs on the val shards of the old data and of the new, by one classifier of both."""
    from lmsd.cli.build.experiment import shard_set
    from lmsd.cli.build.extractors import extractor_of
    from lmsd.cli.build.trained import opened
    from lmsd.cli.build.validate import checker
    from lmsd.cli.config.settings import SamplingOptions
    from lmsd.evaluation import Evaluator

    configs: dict[str, Any] = {"old": store.config_of(before), "new": store.config_of(after)}
    joint = joined(configs["old"], configs["new"])
    extractor = extractor_of(joint.evaluate.extractor, shard_set(joint))
    models = [opened(each, SamplingOptions(run=str(each))) for each in (before, after)]
    found: dict[str, list[Scores]] = {}
    for what, config in configs.items():
        split = shard_set(config).split_set("val", real=True)
        n = min(config.evaluate.n or len(split), len(split))
        scorer = Evaluator(split, extractor, n=n, checker=checker(config.evaluate.checker))
        found[what] = [
            scorer(generate, seeds=SEEDS, split="val", ema=model.ema) for model, generate in models
        ]
    return found
