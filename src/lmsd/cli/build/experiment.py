"""One resolved configuration → the objects of an experiment.

Nodes name constructors and their keyword arguments. What one part must know of another (channels, widths of
the condition, the process) is handed over here, by name, to whichever constructor takes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmsd import spec
from lmsd.cli.bar import drawn
from lmsd.cli.build.buckets import check_buckets
from lmsd.cli.build.casting import cast
from lmsd.cli.build.extractors import classifier_of
from lmsd.cli.build.latents import attach
from lmsd.cli.build.roles import check_pairs
from lmsd.cli.config.schema import leaves, plain
from lmsd.cli.runs.secrets import stored
from lmsd.data.shardset import ShardSet
from lmsd.engine.datamodule import ShardDataModule
from lmsd.engine.module import Engine
from lmsd.engine.optim import Optimization
from lmsd.engine.players import recompute
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.models.trained import located
from lmsd.objectives.base import Facts, Objective
from lmsd.objectives.base import trained as learners
from lmsd.ranks import launched_rank
from lmsd.sampling.model import check_sampler
from lmsd.types import Batch

NOTHING = "lmsd.models.parts.nothing"
"""The target of generator=none."""
EVERYTHING: Mapping[str, Any] = {"_target_": "lmsd.tuning.full.Full", "modules": None, "text": []}
"""The tuning that leaves a generator as it is."""


@dataclass(frozen=True)
class Experiment:
    """What a configuration describes: the data, the nets by role, the training method and the engine."""

    data: ShardDataModule
    cast: Mapping[str, nn.Module]
    objective: Objective
    engine: Engine


def build(config: DictConfig) -> Experiment:
    """Build an experiment, seeded; conditioners learn their vocabulary from the training captions.

    The generator is built first, so that its mistakes are reported before any data are read.
    """
    check_shards(config)
    check_uses(config)
    torch.manual_seed(config.seed)
    lead = None if config.generator._target_ == NOTHING else generator(config)
    check_buckets(config, lead)
    check_pairs(config)
    objective: Objective = instantiate(config.objective)
    check_sampler(instantiate(config.sampler), plain(config.objective))
    counts = {name: config[name] for name in ("batch_size", "micro_batches", "seed")}
    data = ShardDataModule(shard_set(config), **counts)
    captions = training_captions(data.shards)
    nets = cast(config, objective.cast, data.shards, captions, lead=lead, another=generator)
    attach(config, data.shards, nets)
    classifier = partial(classifier_of, config.evaluate.extractor, data.shards)
    objective.prepare(Facts(captions, partial(held_out, data.shards), nets, classifier))
    return Experiment(data, nets, objective, engine(config, nets, objective))


def instantiate(node: DictConfig, **given: Any) -> Any:
    """Build `node` with further keyword arguments; targets are checked in the same resolved tree."""
    return spec.build(plain(node), **given)


def shard_set(config: DictConfig) -> ShardSet:
    """The configuration's shards."""
    check_shards(config)
    built: ShardSet = instantiate(config.data)
    built.watched = drawn if launched_rank() == 0 else built.watched
    return built


def check_shards(config: DictConfig) -> None:
    """Refuse missing shards, naming the command that makes those of the experiment."""
    shards, source = config.data.shards, config.source
    if shards is None:
        raise UserError("which shards? data.shards=FOLDER; lmsd data build makes them, see lmsd data --help")
    if not isinstance(shards, str) or "://" in shards or not source:
        return
    path = Path(shards)
    if not path.exists() and not any(char in path.name for char in "*{["):
        raise UserError(f"no data at {path}; make them with: {source}, or name others with data.shards=")


def generator(config: DictConfig) -> Generator:
    """The untrained generator for the channels and image size of the data."""
    built: Generator = spec.build(generator_spec(config))
    for steps in (config.steps, config.evaluate.steps)[: 2 if config.evaluate.n else 1]:
        built.process.schedule.grid(steps)  # more steps than the chain has are refused here
    return built


def generator_spec(config: DictConfig) -> dict[str, Any]:
    """The generator's node with the parts and sizes that it takes, and its tuning: enough to rebuild it."""
    return tuned(spec.completed(*described(plain(config))), plain(config).get("tuning"))


def described(tree: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The generator's node; and the parts and sizes that it may take (others say how large the net is)."""
    parts = {name: tree[name] for name in ("schedule", "conditioner", "codec")}
    sizes = {name: tree["data"][name] for name in ("channels", "image_size")}
    return tree["generator"], {**parts, **sizes, "net": {**tree["net"], "_partial_": True}}


def tuned(whole: dict[str, Any], tuning: Any) -> dict[str, Any]:
    """A generator's node with what may move of it; None: stored before there was any choice."""
    if "path" in whole:
        whole["path"] = located(str(whole["path"]))
    if tuning in (None, EVERYTHING):
        return whole
    if "path" not in whole:
        raise UserError(
            "tuning= adapts a trained generator, and this one begins with random weights: take "
            "generator=pipeline generator.path=FOLDER, or generator=run generator.path=RUN@ema"
        )
    return {"_target_": "lmsd.tuning.base.tuned", "generator": whole, "tuning": tuning}


def lead_spec(config: DictConfig, lead: str) -> dict[str, Any]:
    """What rebuilds the player that leads."""
    if lead == "generator":
        return generator_spec(config)
    tree, data = plain(config), plain(config.data)
    return spec.completed(tree[lead], {"shape": [data["channels"], *[data["image_size"]] * 2]})


def unconditional(config: DictConfig) -> bool:
    """Whether images are made of no caption and no class: conditioner=none."""
    return str(config.conditioner.get("_target_", "")).endswith(".NullConditioner")


def check_uses(config: DictConfig) -> None:
    """Refuse, without a condition, guidance by it and images that are checked against captions."""
    uses = (".guidance", "evaluate.checker")
    for key, value in leaves(plain(config)) if unconditional(config) else ():
        if key.endswith(uses) and value not in (1, None):
            raise UserError(
                f"{key}={value} is about captions or classes, and conditioner=none has none: leave it out"
            )


def held_out(data: ShardSet, count: int = 256) -> Batch | None:
    """Random but fixed val images to calibrate a judge on; without val None, and a note is printed."""
    if not data.has("val"):
        if not launched_rank():
            print("note: no val shards to calibrate the discriminator on: its logits are taken as they are")
        return None
    split = data.split_set("val")
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    return split.batch(rows)


def training_captions(data: ShardSet) -> list[str]:
    """The distinct captions of the train split's first 100,000 samples, sorted; empty without captions."""
    if not data.index("train").captions:
        return []
    train = data.split_set("train")
    return sorted(set(train.captions(range(min(len(train), 100_000)))))


def optimization(config: DictConfig, objective: Objective) -> Optimization:
    """How each trained role is updated, clipped and averaged: like the lead unless configured otherwise.

    Also raises UserError for options that the optimizer itself refuses, before the run has a folder.
    """
    optim, lead, roles = config.optim, objective.lead, learners(objective.cast)
    if lead not in optim:
        raise UserError(f"the {lead} leads and has no optimizer: optimizer@optim.{lead}=adamw")
    if strange := sorted(optim.clip.keys() - set(roles) - optim.keys()):
        raise UserError(f"optim.clip names {strange}; those who learn are {list(roles)}")
    averages = {role: list(lives) for role, lives in (optim.get("averages") or {}).items()}
    if lead in averages:
        raise UserError(f"optim.averages.{lead}: those of the {lead}, which leads, are optim.ema")
    nodes = {role: optim.get(role, optim[lead]) for role in roles}
    makers = {role: instantiate(node) for role, node in nodes.items()}
    for role, make in makers.items():
        try:
            make([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError, RuntimeError) as error:
            said = f"{nodes[role]['_target_']} refuses its options: {error}"
            raise UserError(f"optim.{role}: {said}") from error
    return Optimization(
        makers=makers,
        clips={role: optim.clip.get(role if role in optim.clip else lead) for role in roles},
        averages={lead: list(optim.ema), **averages},
        warmup_images=optim.warmup_images,
        decay=optim.decay,
    )


def engine(config: DictConfig, nets: Mapping[str, nn.Module], objective: Objective) -> Engine:
    """The LightningModule that runs the objective's turns."""
    if config.checkpointing:
        recompute(nets[objective.lead])
    return Engine(
        nets,
        objective,
        optimization(config, objective),
        total_images=config.images,
        batch_size=config.batch_size,
        micro_batches=config.micro_batches,
        seed=config.seed,
        compile=config.compile,
        log_every=config.log_every,
        record=record(config, objective.lead),
    )


def record(config: DictConfig, lead: str) -> dict[str, Any]:
    """What a checkpoint says about its origin."""
    return {"config": OmegaConf.to_yaml(stored(config)), "spec": lead_spec(stored(config), lead)}
