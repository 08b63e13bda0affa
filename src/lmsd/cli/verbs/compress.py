"""`lmsd compress`: a smaller net out of a run's: cut by what it can do without, then taught by the uncut."""

import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config import options
from lmsd.cli.runs import store
from lmsd.errors import Amount, Count, Number, UserError
from lmsd.files import write_text

if TYPE_CHECKING:
    from lmsd.sampling import Model
    from lmsd.tuning.pruning import Cut

SHARE = 5
"""Of the run's images, those that the smaller net learns from by default: one in so many."""
HELP = """lmsd compress run=RUN prune=0.3 to=FOLDER [option=value ...]

  run=last|ID|FOLDER   checkpoint=FILE   ema=ema|raw|HALFLIFE   the net that is cut
  prune=0.3            share of the FLOPs of one evaluation that is saved
  n=256 rounds=3       training images that it is measured on, and how often anew
  images=              to learn from afterwards; default: a fifth of the run's; 0: cut only
  adversary=false      learn from the uncut net alone

Heads, channels and blocks are taken out whose absence changes the estimates least for every FLOP that it
saves. What is left learns from the uncut net, and plays the run's own game against a discriminator. FOLDER is
a run like any other (lmsd train resume=FOLDER goes on with it); FOLDER-cut holds the net before it learned,
and FOLDER/compress.json what was taken out.
"""


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Options of `lmsd compress`; see HELP."""

    run: str
    prune: Annotated[float, Number(0.01, 0.95)]
    to: Path
    checkpoint: str | None = None
    ema: str = "ema"
    n: Count = 256
    rounds: Count = 3
    images: Amount | None = None
    adversary: bool = True


def main(arguments: list[str]) -> int:
    """Cut, teach, and say where the run lies."""
    chosen = options.read(CompressOptions, arguments, verb="compress")
    begun = chosen.to if chosen.images == 0 else Path(f"{chosen.to}-cut")
    for place in (chosen.to, begun):
        if place.exists():
            raise UserError(f"to={chosen.to}: {place} exists: name a new folder, or remove it")
    folder = store.find_folder(chosen.run)
    config = store.config_of(folder)
    from lmsd.cli.build.trained import opened
    from lmsd.cli.config.settings import SamplingOptions

    given = SamplingOptions(run=chosen.run, checkpoint=chosen.checkpoint, ema=chosen.ema)
    model, generate = opened(folder, given)
    check(model, chosen)
    found = measured(model, config, chosen, steps=generate.settings.steps)
    record = told(model, found, chosen)
    start(model, config, found, begun, record, [f"compress {' '.join(map(store.shown, arguments))}"])
    if chosen.images != 0:
        from lmsd.cli.verbs import train

        learning = taught(model, config, found, chosen, begun)
        try:
            train.train(learning)
        finally:  # one that is interrupted goes on by lmsd train resume=
            if chosen.to.is_dir():
                write_text(chosen.to / "compress.json", json.dumps(record, indent=1) + "\n")
    print(chosen.to)
    return 0


def check(model: "Model", chosen: CompressOptions) -> None:
    """Refuse a generator whose net is not one of ours to build smaller."""
    from lmsd.models.cut import axes

    if "net" not in model.spec:
        raise UserError(
            f"{chosen.run} is a pretrained folder or tuned: lmsd compress cuts nets of runs from scratch"
        )
    if not axes(model.generator.net):  # type: ignore[arg-type]
        kind = type(model.generator.net).__name__
        raise UserError(
            f"{chosen.run}: nothing can be taken out of a {kind}; take net=mlp, unet_conv, uvit, ..."
        )


def measured(model: "Model", config: DictConfig, chosen: CompressOptions, *, steps: int) -> "Cut":
    """What to leave of the net, by its estimates on training images at the knots that are sampled."""
    import torch

    from lmsd.cli.build.experiment import shard_set
    from lmsd.tuning.pruning import chosen as choose
    from lmsd.tuning.pruning import probe

    train = shard_set(config).split_set("train")
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: chosen.n]
    batch = model.generator.encode(train.batch(rows.tolist()))
    knots = torch.tensor(model.generator.process.schedule.grid(steps)[:-1])
    seen = probe(model.generator, batch, knots)
    return choose(model.generator, seen, chosen.prune, rounds=chosen.rounds, told=_said)


def _said(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def told(model: "Model", found: "Cut", chosen: CompressOptions) -> dict[str, Any]:
    """Where the net comes from, and what of it went, in order."""
    from lmsd.files import sha256_of

    saved = 1 - found.after / found.before
    return {
        "run": model.checkpoint.absolute().parent.parent.name,
        "checkpoint": model.checkpoint.name,
        "sha256": sha256_of(model.checkpoint),
        "ema": model.ema,
        "asked": chosen.prune,
        "saved": saved,
        "flops": {"before": found.before, "after": found.after},
        "taken_out": [
            {"place": unit.place, "units": list(unit.units), "change_per_flop": score}
            for unit, score in found.order
        ],
    }


def node_of(net: Mapping[str, Any], found: "Cut") -> dict[str, Any]:
    """The net's node with what is kept; a net that was cut before is cut further inside."""
    from lmsd.models.cut import further

    inner = {key: value for key, value in net.items() if key != "_partial_"}
    if str(inner["_target_"]).endswith("cut.cut"):
        return {**inner, "kept": further(inner["kept"], found.kept)}
    return {"_target_": "lmsd.models.cut.cut", "inner": {**inner, "_partial_": True}, "kept": found.kept}


def start(
    model: "Model", config: DictConfig, found: "Cut", to: Path, record: dict[str, Any], words: list[str]
) -> None:
    """The cut net as a run without training."""
    from lmsd.cli.verbs.merge import written
    from lmsd.tuning.pruning import smaller

    node = node_of(model.spec["net"], found)
    generator = smaller(model.generator, found.kept)
    written(to, model, {**model.spec, "net": {**node, "_partial_": True}}, record, words, generator)
    stored = OmegaConf.load(to / "config.yaml")
    stored.net = node
    store.save_config(to, stored)  # type: ignore[arg-type]
    (to / "merge.json").rename(to / "compress.json")


def taught(
    model: "Model", config: DictConfig, found: "Cut", chosen: CompressOptions, begun: Path
) -> DictConfig:
    """The configuration of the run in which the cut net learns from the uncut one."""
    made = deepcopy(config)
    made.run_dir, made.init_from, made.resume = str(chosen.to), str(begun.absolute()), None
    made.net = node_of(model.spec["net"], found)
    total = int(config.images) // SHARE if chosen.images is None else chosen.images
    made.images = max(int(config.batch_size), total)
    made.checkpoint_every = 0
    made.devices = made.num_nodes = 1  # further ranks would be further calls of this verb
    made.fsdp, made.data.train.buckets = False, None  # the game sees images of one size
    made.optim.warmup_images = min(int(config.optim.warmup_images), int(made.images) // 10)
    made.evaluate.at_start = False
    made.objective = OmegaConf.create(objective(model, config, adversary=chosen.adversary))
    return made


def objective(model: "Model", config: DictConfig, *, adversary: bool) -> dict[str, Any]:
    """The imitation alone, then with the run's own game, or LMSD's where the run has none."""
    from lmsd.cli.config.compose import load
    from lmsd.cli.config.schema import plain

    own = plain(config).get("objective", {})
    warm = str(own.get("_target_", "")).endswith("warm.warm_start")
    game = own.get("game") if warm else own
    if not str((game or {}).get("_target_", "")).endswith("adversarial.Adversarial"):
        game = plain(load(["objective=lmsd"]))["objective"]["game"]
        game["jumps"]["steps"] = int(config.steps)
    source = f"{model.checkpoint.absolute()}{'' if model.ema == 'raw' else '@' + model.ema}"
    teacher = {
        "_target_": "lmsd.models.trained.from_run",
        "path": source,
        "channels": config.data.channels,
        "image_size": config.data.image_size,
    }
    imitation = {
        "_target_": "lmsd.objectives.imitation.Imitation",
        "teacher": teacher,
        "times": {"_target_": "lmsd.process.times.Grid", "steps": int(config.evaluate.steps)},
        "caption_dropout": float(game.get("caption_dropout", 0.1)),
    }
    return {
        "_target_": "lmsd.objectives.warm.warm_start",
        "warmup": 0.6 if adversary else 1.0,
        "warm": imitation,
        "warm_rate": [1.0, 0.1],
        "game": {**imitation, "game": game},
        **({"head_start": 0.04, "rate": own.get("rate", 1.0) if warm else 1.0} if adversary else {}),
        "freeze_text": True,
    }
