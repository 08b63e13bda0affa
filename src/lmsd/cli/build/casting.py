"""Who plays: every role of a cast, built from its own node or as a twin, and its first weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lmsd import spec
from lmsd.checkpoints import Mismatch, WeightsRef, find_run, load_weights
from lmsd.cli.build.reading import check_condition, note_words
from lmsd.cli.config.schema import held, plain
from lmsd.cli.runs.pipelines import folder_of
from lmsd.data.shardset import ShardSet
from lmsd.errors import UserError
from lmsd.models.frozen import twin
from lmsd.models.generator import Generator
from lmsd.objectives.base import Cast, Part
from lmsd.ranks import launched_rank
from lmsd.tuning import bare, is_tuned
from lmsd.tuning.files import load


def own(config: DictConfig, role: str, part: Part, player: Generator | None) -> nn.Module:
    """Build the net of the configuration's node `role`, inner nodes first.

    Both are given the size of their input; the node itself also gets what the method decides and, if there
    is one, the generator whose images it judges (player).
    """
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
    config: DictConfig,
    parts: Cast,
    data: ShardSet,
    captions: list[str],
    *,
    lead: Generator | None,
    another: Callable[[DictConfig], Generator],
) -> dict[str, nn.Module]:
    """Build every role of a cast, from its own node or as a twin, and load the weights of `init_from=`.

    The generator (lead) comes first: others judge its images, or copy it; another: makes one more of it.
    """
    order, sources = in_order(parts), named_weights(config, parts)
    check_needs(parts, set(sources))
    nets: dict[str, nn.Module] = {}
    player = lead if "generator" in parts else None

    def made(role: str, part: Part) -> nn.Module:
        return another(config) if role == "generator" else own(config, role, part, player)

    for role in order:
        part = parts[role]
        if part.like is None:
            net = lead if lead and role == "generator" else made(role, part)
        elif part.fixed and is_tuned(nets[part.like]) and origin(parts, role) not in sources:
            net = bare(nets[part.like])
        else:
            net = twin(nets[part.like])
            if part.fresh:
                renew(net, made(origin(parts, role), part))
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


def check_needs(parts: Cast, sources: set[str]) -> None:
    """Refuse a frozen role that is of no use without another run's weights, and is given none."""
    for role, part in parts.items():
        if part.needs is not None and not part.trained and not {role, origin(parts, role)} & sources:
            raise UserError(part.needs)


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


def assemble(node: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Build `node` with those of the given arguments that its constructor takes."""
    return spec.build(node, **spec.taken(node, given))
