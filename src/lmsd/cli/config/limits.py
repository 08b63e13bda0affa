"""Options of a whole configuration that do not go together."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.schema import Option, at, leaves, root, written
from lmsd.cli.config.signatures import ANYTHING, Kind
from lmsd.errors import UserError
from lmsd.ranks import shares


def check_limits(config: DictConfig) -> DictConfig:
    """Refuse options that do not go together, and a missing mandatory one; return the configuration."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value of its own: give {key}=...")
    edm = config.schedule.get("_target_", "").endswith(".EDM")
    if config.generator.get("precondition") == "edm" and not edm:
        raise UserError(
            "generator.precondition=edm is for schedule=edm, where alpha = 1; take schedule=edm with it, or "
            "generator.precondition=none"
        )
    if config.devices == "auto":
        return config  # looked at once the devices are counted
    shares(config.batch_size, config.devices * config.num_nodes, config.micro_batches)
    guidance, interval = config.evaluate.guidance, config.evaluate.interval
    named = leaves(OmegaConf.to_container(config.objective)) if guidance != 1.0 else ()
    drops = "reward" in config.objective or any(value for key, value in named if key.endswith("_dropout"))
    if guidance != 1.0 and not drops:  # before rewards, it was trained elsewhere
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (caption_dropout=0 in its objective): take guidance=1, or train with caption_dropout=0.1"
        )
    if interval is not None and interval[0] > interval[1]:
        said = "is no [low, high]: give two times, the lower one first"
        raise UserError(f"evaluate.interval={list(interval)} {said}")
    if interval is not None and guidance == 1.0:
        raise UserError(
            f"evaluate.interval={list(interval)} says where guidance acts, and evaluate.guidance=1 is none: "
            "give another guidance, or evaluate.interval=null"
        )
    return config


def check_read(tree: dict[str, Any], keys: Iterable[str]) -> str:
    """Refuse options that the values of others leave unread, or return a note on them.

    keys: those that were typed; those of files may stay unread.
    """
    unread: dict[str, list[str]] = {}
    uncaptioned = str(at(tree, "conditioner._target_")).endswith(".NullConditioner")
    for key in keys:
        if uncaptioned and key.endswith(".caption_dropout"):
            raise UserError(f"{key} drops captions or classes, and conditioner=none has none: leave it out")
        node = root(tree)
        for name in key.split("."):
            option = node.at(name)
            kind = option.kind or ANYTHING
            told = idle(node, kind)
            if told and not kind.get("told"):
                raise UserError(f"{key} is not read with {told}")
            if told:
                unread.setdefault(told.partition(":")[0], []).append(key)
            node = option
    notes = [f"with {other} nothing reads {', '.join(keys)}" for other, keys in unread.items()]
    return f"note: {'; '.join(notes)}" if notes else ""


def idle(node: Option, kind: Kind) -> str:
    """The value of another option that leaves one of this kind unread, with the way out; else empty."""
    if "when" not in kind:
        return ""
    other, among = node.at(kind["when"]), kind.get("among") or ()
    if other.value in among if among else other.value != kind.get("unless"):
        return ""
    ways = " or ".join(f"{other.key}={way}" for way in among) or f"another {other.key}"
    return f"{other.key}={written(other.value)}: leave it out, or take {ways}"
