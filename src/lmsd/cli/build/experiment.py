"""One resolved configuration → the objects of an experiment.

Nodes name constructors and their keyword arguments. What one part must know of another (channels, widths of
the condition, the process) is handed over here, by name, to whichever constructor takes it.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmsd.cli.build.instantiate import check, instantiate
from lmsd.cli.config.compose import stored
from lmsd.cli.runs import store
from lmsd.data.module import ShardDataModule
from lmsd.engine import Engine
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.divergence import Guard
from lmsd.engine.hacking import HackingGuard
from lmsd.engine.watchdog import Watchdog
from lmsd.engine.weights import Source, load_weights
from lmsd.errors import UserError
from lmsd.models.adapters import LabelTransformer
from lmsd.models.conditioner import Conditioner, TextConditioner
from lmsd.models.discriminator import Discriminator
from lmsd.models.generator import Generator
from lmsd.objectives.base import Objective
from lmsd.process import Process
from lmsd.ranks import launched_rank
from lmsd.sampling import Sampler
from lmsd.types import Batch


def assemble(node: DictConfig, given: Mapping[str, Any]) -> Any:
    """Build `node`, handing over those of the given arguments that its constructor takes."""
    check(str(node._target_))
    takes = inspect.signature(hydra.utils.get_object(node._target_)).parameters
    return instantiate(node, **{name: value for name, value in given.items() if name in takes})


def data_module(config: DictConfig) -> ShardDataModule:
    """The stream of the configuration's shards."""
    shards = config.data.shards
    if shards is None:
        raise UserError("which shards? data.shards=FOLDER; lmsd data build makes them, see lmsd data --help")
    if isinstance(shards, str) and "://" not in shards and config.data.get("source"):
        require(Path(shards), config.data.source)
    node = {key: value for key, value in config.data.items() if key not in ("source", "max_bad")}
    shared = {"batch_size": config.batch_size, "micro_batches": config.micro_batches, "seed": config.seed}
    built: ShardDataModule = instantiate(OmegaConf.create(node), **shared)
    return built


def require(path: Path, source: str) -> None:
    """Name the command that makes an experiment's data where they are missing."""
    if not path.exists() and not any(char in path.name for char in "*{["):
        raise UserError(f"no data at {path}; make them with: {source}, or name others with data.shards=")


def generator(config: DictConfig) -> Generator:
    """The generator, untrained, of the channels and size that the configuration's data have."""
    process = Process(instantiate(config.schedule))
    process.schedule.grid(config.steps)  # more steps than the chain has are refused here
    conditioner: Conditioner = instantiate(config.conditioner)
    given = {
        "channels": config.data.channels,
        "image_size": config.data.image_size,
        "token_dim": conditioner.token_dim,
        "pooled_dim": conditioner.pooled_dim,
        "z_dim": config.generator.z_dim,
    }
    net = assemble(config.net, given)
    check_labels(net, conditioner)
    options = OmegaConf.to_container(config.generator, resolve=True)
    return Generator(net, process, conditioner=conditioner, **options)  # type: ignore[arg-type]


def check_labels(net: nn.Module, conditioner: Conditioner) -> None:
    """Refuse a net of class labels without them, or with another number of them."""
    if not isinstance(net, LabelTransformer):
        return
    classes = getattr(conditioner, "classes", None)
    if classes is None:
        raise UserError(
            "net=dit_label reads class labels only: add conditioner=label generator.z_dim=0, or take "
            "net=transformer_text for captions"
        )
    if classes != net.classes:
        raise UserError(f"net.classes={net.classes} and conditioner.classes={classes}: make them equal")


def check_condition(conditioner: Conditioner, data: ShardDataModule) -> None:
    """Refuse a conditioner that reads what the training shards do not hold."""
    index = data.index("train")
    if conditioner.reads == "label" and not index.labels:
        ways = "conditioner=text for their captions" if index.captions else "conditioner=none"
        raise UserError(f"conditioner=label: these shards have no class labels (KEY.cls); take {ways}")
    if conditioner.reads == "text" and not index.captions:
        ways = "conditioner=label for their classes" if index.labels else "conditioner=none"
        raise UserError(f"conditioner: these shards have no captions (KEY.txt, KEY.json); take {ways}")


def discriminator(config: DictConfig, player: Generator) -> nn.Module:
    """The discriminator that judges what the generator makes."""
    marginal = config.objective.get("pairing", "marginal") == "marginal"
    size, channels = config.data.image_size, config.data.channels * (1 if marginal else 2)
    given: dict[str, Any] = {
        "process": player.process,
        "generator": player,
        "cond_dim": player.conditioner.pooled_dim,
        "marginal": marginal,
    }
    node = OmegaConf.create({key: value for key, value in config.discriminator.items() if key != "trunk"})
    if "trunk" in config.discriminator:
        trunk = instantiate(config.discriminator.trunk, shape=(channels, size, size))
        given |= {"trunk": trunk, "features": trunk.features}
    built: Discriminator = assemble(node, given)
    return built


def players(config: DictConfig, data: ShardDataModule) -> tuple[dict[str, nn.Module], Objective]:
    """The nets, seeded and fitted to the training captions, and the objective that trains them."""
    torch.manual_seed(config.seed)
    objective: Objective = instantiate(config.objective)
    built = generator(config)
    check_condition(built.conditioner, data)
    captions = training_captions(config, data)
    built.conditioner.fit(captions)
    cut = built.conditioner.cut(captions) if isinstance(built.conditioner, TextConditioner) else 0
    if cut and not launched_rank():
        length = config.conditioner.length
        print(f"note: {cut:,} of {len(captions):,} captions are cut at conditioner.length={length}")
    if hasattr(objective, "captions"):
        objective.captions = captions
    nets: dict[str, nn.Module] = {"generator": built}
    named = config.init_from if OmegaConf.is_list(config.init_from) else [config.init_from]
    sources = [Source.parse(name) for name in named if name]
    for source in sources:
        if source.player == "generator":
            initialize(nets, source)  # before others copy it
    frozen: tuple[str, ...] = getattr(objective, "frozen", ())
    check_judge(frozen, sources)
    if "discriminator" in (*objective.players, *frozen):
        nets["discriminator"] = discriminator(config, built)
    for source in sources:
        if source.player != "generator":
            initialize(nets, source)
    for name in frozen:
        nets[name] = (nets.get(name) or copy.deepcopy(built)).requires_grad_(False).eval()
    if "discriminator" in nets and hasattr(objective, "held_out"):
        objective.held_out = held_out(data)
    return nets, objective


def check_judge(frozen: Sequence[str], sources: Sequence[Source]) -> None:
    """Refuse a discriminator that is the reward, never learns and has learned nothing."""
    if "discriminator" in frozen and all(source.player != "discriminator" for source in sources):
        raise UserError(
            "the reward is a discriminator that does not learn here: give a trained one, "
            "init_from=[RUN@ema,RUN:discriminator], let it learn, "
            "objective.refresh={_target_: lmsd.objectives.rewarded.Refresh}, or take another reward"
        )


def held_out(data: ShardDataModule, count: int = 256) -> Batch | None:
    """Some of val, in a fixed random order, to calibrate a judge on; None, and a note, without val."""
    if not data.has("val"):
        if not launched_rank():
            print("note: no val shards to calibrate the discriminator on: its logits are taken as they are")
        return None
    split = data.split_set("val")
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    return split.batch(rows)


def training_captions(config: DictConfig, data: ShardDataModule) -> list[str]:
    """The distinct captions of the train split's first 100,000 samples, sorted; empty without captions."""
    if not data.index("train").captions:
        return []
    train = data.split_set("train")
    return sorted(set(train.captions(range(min(len(train), 100_000)))))


def initialize(nets: Mapping[str, nn.Module], source: Source) -> None:
    """Weights of another run for one player; what did not match is named."""
    if source.player not in nets:
        raise UserError(f"init_from: this run has no player '{source.player}', only {', '.join(nets)}")
    path = source.path if source.path.exists() else store.find(str(source.path))
    mismatch = load_weights(nets[source.player], path, player=source.player, ema=source.ema)
    if launched_rank():
        return
    kind = f"EMA {source.ema}" if source.ema else "raw weights"
    print(f"{source.player} from {path} ({kind})")
    for name, keys in (("missing there", mismatch.missing), ("not used", mismatch.extra)):
        if keys:
            print(f"  {name}: {', '.join(keys[:10])}{' ...' if len(keys) > 10 else ''}")


def try_optimizer(player: str, node: DictConfig) -> None:
    """Refuse options that the optimizer itself refuses, before a run has a folder."""
    try:
        instantiate(node)([nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optim.{player}: {node._target_} refuses its options: {error}") from error


def engine(config: DictConfig, nets: Mapping[str, nn.Module], objective: Objective) -> Engine:
    """The LightningModule that plays the objective's turns."""
    optim = config.optim
    for name in objective.players:
        try_optimizer(name, optim[name])
    return Engine(
        nets,
        objective,
        optimizers={name: instantiate(optim[name]) for name in objective.players},
        total_images=config.images,
        batch_size=config.batch_size,
        micro_batches=config.micro_batches,
        warmup_images=optim.warmup_images,
        lr_decay=optim.decay,
        clip={name: optim.clip.get(name) for name in objective.players},
        ema=list(optim.ema),
        seed=config.seed,
        compile=config.compile,
        gradient_checkpointing=config.checkpointing,
        log_every=config.log_every,
        config=OmegaConf.to_yaml(stored(config)),
    )


def sampler(config: DictConfig) -> Sampler:
    """The sampling rule."""
    built: Sampler = instantiate(config.sampler)
    return built


def trained(config: DictConfig, checkpoint: Path, *, ema: str | None) -> Generator:
    """A run's generator with its weights, averaged unless `ema` is None, ready to sample."""
    built = generator(config)
    mismatch = load_weights(built, checkpoint, ema=ema)
    if mismatch.missing:
        raise UserError(
            f"{checkpoint} lacks {', '.join(mismatch.missing[:5])}; it is of another configuration"
        )
    return built.eval().requires_grad_(False)


def callbacks(config: DictConfig, validation: Any, objective: Any) -> list[Any]:
    """Those that the configuration names, and those that every run has."""
    found = [instantiate(node) for node in config.callbacks.values()]
    if validation is not None:
        every = config.evaluate.every or config.images
        found.append(Evaluate(validation, every_images=every, at_start=config.evaluate.at_start))
        found += guards(config, objective)
    monitor = None if validation is None else validation.monitor
    guard = config.rollback
    saving = Checkpoint(
        every_images=config.checkpoint_every,
        keep_last=config.keep,
        keep_every=config.keep_every,
        monitor=monitor,
    )
    return [
        *found,
        Guard(
            skipped=guard.skipped,
            collapsed=guard.collapsed,
            at_most=guard.at_most,
            max_bad=config.data.max_bad,
        ),
        Watchdog(seconds=config.hang_seconds),
        saving,
    ]


def guards(config: DictConfig, objective: Any) -> list[Any]:
    """What ends a run that learns from rewards when they and the held-out score part."""
    patience = config.evaluate.stop_hacking
    return [HackingGuard(patience=patience)] if patience and hasattr(objective, "reward") else []
