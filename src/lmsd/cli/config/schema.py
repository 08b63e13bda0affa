"""The schema of a configuration: what every option is, and whether a value fits.

Three sources, in this order: the rules of `limits`, the signature of the constructor that a node names
(`signatures`), the default in the YAML. Nothing is imported to find out, and the composed whole is looked at,
so that a typo in an experiment's file is refused as one on the command line is.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.folders import config_dir
from lmsd.cli.config.kinds import Choice, Kind, Many, Number, Text, like
from lmsd.cli.config.limits import RULES, SIZES
from lmsd.cli.config.renamed import renamed
from lmsd.cli.config.signatures import arguments, check_target
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError, shown
from lmsd.spec import targets

OPEN = ("callbacks", "logger")
"""Dicts of named entries: any may be added, any taken away."""


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree by dotted name; an empty mapping is a leaf."""
    if not isinstance(node, dict) or (not node and prefix):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def branches(names: Mapping[str, Any]) -> set[str]:
    """What the dotted names lie below."""
    return {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}


@cache
def plain() -> tuple[frozenset[str], frozenset[str]]:
    """Options and branches of train.yaml itself, with the places of its groups among the options."""
    text = (config_dir() / "train.yaml").read_text(encoding="utf-8")
    tree: dict[str, Any] = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    places = []
    for entry in tree.pop("defaults"):
        for group in entry if isinstance(entry, dict) else ():
            places.append(str(group).removeprefix("override ").partition("@")[2] or str(group))
    names = {**dict(leaves(tree)), **dict.fromkeys(places)}
    return frozenset(names), frozenset(branches(names))


def parent(tree: Mapping[str, Any], key: str) -> tuple[Any, str | None]:
    """The node that an option lies in, and the constructor that the node names."""
    node: Any = tree
    path = key.split(".")[:-1]
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    target = node.get("_target_") if isinstance(node, dict) else None
    return node, target


def rule(tree: Mapping[str, Any], key: str) -> Kind:
    """What the option `key` of a plain configuration takes."""
    if key in RULES:
        return RULES[key]
    node, target = parent(tree, key)
    name = key.rsplit(".", 1)[-1]
    known = (arguments(target) if target else None) or {}
    if name in known:
        kind = known[name].kind
        return SIZES[name] if name in SIZES and (isinstance(kind, Number) or name == "widths") else kind
    default = node.get(name) if isinstance(node, dict) else None
    reference = isinstance(default, str) and default.startswith("${")
    return like(None if reference else default)


def unknown(key: str, known: Iterable[str]) -> UserError:
    """The sentence on an option that is not there, or has another name now."""
    told = renamed(key)
    if told is not None:
        return told
    names = [name for name in known if name != key and "._" not in name]
    top = key.partition(".")[0]
    inside = any(name.startswith(f"{top}.") for name in names)
    where = f" {top}" if inside else ""
    return UserError(
        f"unknown option '{key}'{nearest(key, names)}  (all options: lmsd train --options{where})"
    )


def refuse(key: str, value: Any, kind: Kind) -> None:
    """Raise UserError unless the value fits."""
    if kind.fits(value):
        return
    hint = nearest(str(value), map(str, kind.options)) if isinstance(kind, Choice) else ""
    if isinstance(kind, Text) and isinstance(value, list | dict):
        hint = ", but a list" if isinstance(value, list) else ", but a mapping"
    if isinstance(kind, Number | Many) and kind.fits([value]):
        hint = f": write {key}=[{shown(key, value)}]"
    raise UserError(f"{key}={shown(key, value)} is not {kind.words()}{hint}")


def check_config(config: DictConfig) -> None:
    """Refuse forbidden constructors, unknown names and wrong types in a composed, resolved configuration."""
    tree: Any = OmegaConf.to_container(config)
    for target in targets(tree):
        check_target(target)
    for group in OPEN:
        _check_entries(group, tree.get(group))
    _check(tree, tree, "")


def _check_entries(group: str, entries: Any) -> None:
    """Refuse an entry of a group of named ones that is no object and names no constructor."""
    for name, node in entries.items() if isinstance(entries, dict) else ():
        key = f"{group}.{name}"
        if key == "logger.auto" or (isinstance(node, dict) and "_target_" in node):
            continue
        if node is None:
            raise UserError(f"{key}=null: take it away with '~{key}'")
        hint = nearest(str(name), [other for other in entries if other != name])
        raise UserError(f"there is no {key}{hint}; one of your own begins with {key}._target_=MODULE.CLASS")


def strangers(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Options below a node that the constructor they stand with does not take, by dotted name."""
    target = node.get("_target_")
    taken = arguments(target) if target else None
    for name, value in node.items():
        key = f"{path}.{name}" if path else str(name)
        if taken is not None and name not in taken and not name.startswith("_") and key not in RULES:
            yield key
        elif isinstance(value, dict):
            yield from strangers(value, key)


def _check(tree: Mapping[str, Any], node: Mapping[str, Any], path: str) -> None:
    target = node.get("_target_")
    for name, value in node.items():
        key = f"{path}.{name}" if path else str(name)
        if str(name).startswith("_") or value == "???":
            continue
        _known(tree, key, target)
        if isinstance(value, dict):
            _check(tree, value, key)
        elif value is not None or key in RULES:  # null: not given, which its reader speaks of
            refuse(key, value, rule(tree, key))


def _role(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a node is a further player's: one that names its constructor, its optimizer or its clip."""
    path, _, name = key.rpartition(".")
    node = tree.get("optim", {}).get(name) if path in ("optim", "optim.clip") else tree.get(name)
    return path in ("", "optim", "optim.clip") and isinstance(node, dict) and "_target_" in node


def _known(tree: Mapping[str, Any], key: str, target: str | None) -> None:
    """Refuse a name that its constructor does not take, or that train.yaml does not have."""
    options, inner = plain()
    path, _, name = key.rpartition(".")
    taken = arguments(target) if target else None
    if taken is not None and name not in taken and key not in RULES:
        near = [f"{path}.{other}" for other in taken]
        raise unknown(key, near)
    ours = (not path or path in inner) and not _role(tree, key)
    if target is None and ours and key not in options | inner and not key.startswith(OPEN):
        raise unknown(key, [*options, *dict(leaves(dict(tree)))])
