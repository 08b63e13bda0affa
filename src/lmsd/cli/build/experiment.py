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
from lmsd.checkpoints import Mismatch, WeightsRef, find_run, load_weights
from lmsd.cli.bar import drawn
from lmsd.cli.build.extractors import classifier_of
from lmsd.cli.build.latents import attach
from lmsd.cli.build.reading import check_condition, note_words
from lmsd.cli.config.compose import stored
from lmsd.cli.config.schema import held, leaves, plain
from lmsd.cli.runs.pipelines import folder_of
from lmsd.data.shardset import ShardSet
from lmsd.engine.datamodule import ShardDataModule
from lmsd.engine.module import Engine
from lmsd.engine.optim import Optimization
from lmsd.engine.players import recompute
from lmsd.errors import UserError
from lmsd.models.frozen import twin
from lmsd.models.generator import Generator
from lmsd.models.trained import located
from lmsd.objectives.base import Cast, Facts, Objective, Part
from lmsd.objectives.base import trained as learners
from lmsd.ranks import launched_rank
from lmsd.sampling.model import check_sampler
from lmsd.tuning import bare, is_tuned
from lmsd.tuning.files import load
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
    objective: Objective = instantiate(config.objective)
    check_sampler(instantiate(config.sampler), plain(config.objective))
    counts = {name: config[name] for name in ("batch_size", "micro_batches", "seed")}
    data = ShardDataModule(shard_set(config), **counts)
    captions = training_captions(data.shards)
    nets = cast(config, objective.cast, lead, data.shards, captions)
    attach(config, data.shards, nets)
    classifier = partial(classifier_of, config.evaluate.extractor, data.shards)
    objective.prepare(Facts(captions, partial(held_out, data.shards), nets, classifier))
    return Experiment(data, nets, objective, engine(config, nets, objective))


def instantiate(node: DictConfig, **given: Any) -> Any:
    """Build `node` with further keyword arguments; targets are checked in the same resolved tree."""
    return spec.build(plain(node), **given)


def assemble(node: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Build `node` with those of the given arguments that its constructor takes."""
    return spec.build(node, **spec.taken(node, given))


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


def own(config: DictConfig, role: str, part: Part, player: Generator | None) -> nn.Module:
    """Build the net of the configuration's node `role`, inner nodes first.

    Both are given the size of their input; the node itself also gets what the method decides and, if there
    is one, the generator whose images it judges (player).
    """
    if role == "generator":
        return generator(config)
    node: Any = plain(config).get(role)
    if "_target_" not in held(node):
        raise UserError(
            f"the objective plays {role!r}, and the configuration has no node {role} that says what it is: "
            f"add one with a _target_ beside the objective's"
        )
    given: dict[str, Any] = {}
    channels, *sides = config.data.channels, config.data.image_size, config.data.image_size
    if player is not None:
        channels, *sides = player.shape
        given = {"generator": player, "process": player.process, "cond_dim": player.conditioner.pooled_dim}
    seen = {"channels": channels, "image_size": sides[0], "shape": (channels * part.stacked, *sides)}
    inner = {name: assemble(item, seen) for name, item in node.items() if "_target_" in held(item)}
    outer = {name: item for name, item in node.items() if name not in inner}
    built: nn.Module = assemble(outer, {**seen, **part.given, **given, **inner})
    return built


def cast(
    config: DictConfig, parts: Cast, lead: Generator | None, data: ShardSet, captions: list[str]
) -> dict[str, nn.Module]:
    """Build every role of a cast, from its own node or as a twin, and load the weights of `init_from=`.

    The generator (lead) comes first, since others judge its images; twins copy what already has weights.
    """
    order, sources = in_order(parts), named_weights(config, parts)
    for role, part in parts.items():
        if part.needs is not None and not part.trained and not {role, origin(parts, role)} & set(sources):
            raise UserError(part.needs)
    nets: dict[str, nn.Module] = {}
    player = lead if "generator" in parts else None
    for role in order:
        part = parts[role]
        if part.like is None:
            net = lead if lead and role == "generator" else own(config, role, part, player)
        elif part.fixed and is_tuned(nets[part.like]) and origin(parts, role) not in sources:
            net = bare(nets[part.like])
        else:
            net = twin(nets[part.like])
            if part.fresh:
                renew(net, own(config, origin(parts, role), part, player))
        reader = net.conditioner if isinstance(net, Generator) and part.like is None else None
        if reader is not None:
            check_condition(reader, data)
            reader.fit(captions)
        if role in sources:
            initialize(net, role, sources[role])
        if reader is not None:
            context = "conditioner.length=" if folder_of(config) is None else "the folder's context, "
            note_words(reader, captions, context, foreign=role in sources)
        nets[role] = net
    for role, part in parts.items():
        if not part.trained:
            nets[role].requires_grad_(False).eval()
    return nets


def in_order(parts: Cast) -> list[str]:
    """The roles in building order: the generator, those with a node of their own, twins."""
    made = sorted((role for role, part in parts.items() if part.like is None), key="generator".__ne__)
    left = {role: part.like for role, part in parts.items() if part.like is not None}
    while ready := [role for role, like in left.items() if like in made]:
        made += ready
        left = {role: like for role, like in left.items() if role not in ready}
    for role, like in left.items():
        raise UserError(f"{role!r} is to be a twin of {like!r}, whom the cast does not build: {list(parts)}")
    return made


def origin(parts: Cast, role: str) -> str:
    """The role whose node a role is built from, through all twins."""
    like = parts[role].like
    return role if like is None else origin(parts, like)


@torch.no_grad()
def renew(net: nn.Module, drawn: nn.Module) -> None:
    """Copy the weights of a net of the same architecture, except for frozen ones."""
    for kept, new in zip(net.parameters(), drawn.parameters(), strict=True):
        if kept.requires_grad:
            kept.copy_(new)


def named_weights(config: DictConfig, parts: Cast) -> dict[str, WeightsRef]:
    """The sources that `init_from=` names, by role: a text, a list of them, or a mapping from roles."""
    named: Any = config.init_from
    named = OmegaConf.to_container(named) if OmegaConf.is_config(named) else named
    if held(named):
        found = {str(role): WeightsRef.parse(str(text)) for role, text in named.items() if text}
    else:
        texts = named if isinstance(named, list) else [named]
        sources = [WeightsRef.parse(str(text)) for text in texts if text]
        found = {source.player: source for source in sources}
        if len(found) < len(sources):
            raise UserError("init_from= names one role twice: init_from={ROLE: RUN, ROLE: RUN:ROLE}")
    for role in found:
        if role not in parts:
            raise UserError(f"init_from: this run has no player '{role}', only {', '.join(parts)}")
    return found


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


def initialize(net: nn.Module, role: str, source: WeightsRef) -> None:
    """Load the weights of another run into one player; print what does not match."""
    path = source.path if source.path.exists() else find_run(str(source.path))
    if path.suffix == ".safetensors" and isinstance(net, Generator):
        mismatch = Mismatch(*map(tuple, load(path, net)))
    else:
        mismatch = load_weights(net, path, player=source.player, ema=source.ema)
    if launched_rank():
        return
    kind = f"EMA {source.ema}" if source.ema else "raw weights"
    print(f"{role} from {path} ({kind if role == source.player else f'{source.player}, {kind}'})")
    for name, keys in (("missing there", mismatch.missing), ("not used", mismatch.extra)):
        if keys:
            print(f"  {name}: {', '.join(keys[:10])}{' ...' if len(keys) > 10 else ''}")


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
