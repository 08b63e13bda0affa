"""Plain data → objects, for constructors on an allow-list only; it needs nothing but the standard library.

    {"_target_": "lmsd.nets.critics.MLPCritic", "shape": [1, 8, 8], "width": 64}

`_target_` names a constructor, the other keys are its keyword arguments; with `_partial_: true` it is bound
but not called. Nodes may be nested in nodes and lists. A target outside the list is refused.
"""

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from lmsd.errors import UserError

ALLOWED = (
    "lmsd.process.",
    "lmsd.nets.",
    "lmsd.models.",
    "lmsd.tuning.",
    "lmsd.sampling.",
    "lmsd.rewards.",
    "lmsd.objectives.",
    "lmsd.data.shardset.",
    "lmsd.data.storage.",
    "torch.optim.",
    "torch.nn.",
    "lmsd.engine.callbacks.",
    "lmsd.engine.divergence.",
    "lmsd.engine.muon.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.callbacks.",
)

RENAMED: dict[str, str] = {
    "lmsd.data.module.ShardDataModule": "lmsd.data.shardset.ShardSet",
    "lmsd.models.backbones.mlp": "lmsd.models.backbones.MLPBackbone",
    "lmsd.models.backbones.unet_text": "lmsd.models.backbones.TextUNet",
    "lmsd.models.backbones.unet_pooled": "lmsd.models.backbones.PooledUNet",
    "lmsd.models.backbones.transformer_text": "lmsd.models.backbones.TextTransformer",
    "lmsd.models.backbones.dit_label": "lmsd.models.backbones.LabelTransformer",
    "lmsd.nets.critics.PatchCritic": "lmsd.nets.patch.PatchCritic",
    "lmsd.sampling.FewStep": "lmsd.sampling.Tau",  # of tau = 1, the default
}
"""Targets that earlier versions wrote into configurations → where the same thing is today."""


def allowed_names() -> tuple[str, ...]:
    """What targets may begin with: our list, and the user's packages, which LMSD_ALLOW names by commas."""
    own = os.environ.get("LMSD_ALLOW", "").split(",")
    return (*ALLOWED, *(f"{name.strip().rstrip('.')}." for name in own if name.strip()))


def allowed(target: str, also: tuple[str, ...] = (), *, within: str = "") -> str:
    """A target by today's name. Raises UserError for one outside the list, or defined `within` such a module.

    also: what it may begin with beside the list.
    """
    target, names = RENAMED.get(target, target), (*allowed_names(), *also)
    whole = all(part.isidentifier() for part in target.split("."))
    if not (whole and target.startswith(names) and (not within or f"{within}.".startswith(names))):
        raise UserError(
            f"_target_ '{target}' may not be built; allowed are classes and functions below "
            f"{', '.join(names)} and in the packages that LMSD_ALLOW names"
        )
    return target


def locate(target: str, also: tuple[str, ...] = ()) -> Any:
    """The class or function of a dotted name, today's or an earlier one.

    also: what it may begin with, besides the allow-list. Raises UserError for a name outside both, even if an
    allowed module imports it, and for one that does not exist. Only modules on the list are imported to find
    out.
    """
    target = allowed(target, also)
    module, _, name = target.rpartition(".")
    try:
        there = import_module(module)
    except ImportError as error:
        raise UserError(f"_target_ '{target}' is not there: {str(error).splitlines()[0]}") from error
    found = getattr(there, name, None)
    if found is None:
        raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
    # A class or a function itself: methods may be inherited from anywhere, and some unpickle.
    whole = (inspect.isclass(found) or inspect.isfunction(found)) and "." not in found.__qualname__
    allowed(target, also, within=found.__module__ if whole else "a method")
    return found


def targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` in a tree of plain data, and the dotted name of its node."""
    match node:
        case Mapping():
            if "_target_" in node:
                yield str(node["_target_"]), path
            for name, value in node.items():
                yield from targets(value, f"{path}.{name}" if path else str(name))
        case list() | tuple():
            for value in node:
                yield from targets(value, path)


def taken(node: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given arguments that the node's constructor takes."""
    parameters = inspect.signature(locate(str(node["_target_"]))).parameters
    return {name: value for name, value in given.items() if name in parameters}


def completed(node: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The node with those of the given options that its constructor takes; its own come first."""
    return {**taken(node, given), **node}


def build(node: Mapping[str, Any], also: tuple[str, ...] = (), /, **given: Any) -> Any:
    """The object that `node` describes, with further keyword arguments for its own constructor.

    also: what targets may begin with, besides the allow-list. All targets are looked up before the first
    constructor runs. Raises UserError for a target that may not be built and for arguments that do not fit
    its signature; exceptions of a constructor propagate.
    """
    for target, _ in targets(node):
        locate(target, also)
    if "_target_" not in node:
        raise UserError(f"a node without _target_, with {', '.join(map(str, node)) or 'nothing'}: name one")
    return _made(node, given, also)


def _built(node: Any, also: tuple[str, ...]) -> Any:
    match node:
        case {"_target_": _}:
            return _made(node, {}, also)
        case Mapping():
            return {key: _built(value, also) for key, value in node.items()}
        case list() | tuple():
            return [_built(item, also) for item in node]
    return node


def _made(node: Mapping[str, Any], given: Mapping[str, Any], also: tuple[str, ...]) -> Any:
    target = str(node["_target_"])
    options = {str(key): value for key, value in node.items() if key not in ("_target_", "_partial_")}
    make, later = locate(target, also), bool(node.get("_partial_"))
    check_arguments(target, make, options, given, later=later)
    arguments = {**{key: _built(value, also) for key, value in options.items()}, **given}
    return partial(make, **arguments) if later else make(**arguments)


def plain(text: str) -> dict[str, Any]:
    """A configuration's YAML as plain data; ${a.b} is replaced by what is at a.b, and stays if nothing is.

    Raises UserError if it is not a mapping.
    """
    import yaml

    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the configuration cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise UserError("the configuration cannot be read: it is no mapping")
    try:
        found: dict[str, Any] = _referred(tree, tree)
    except RecursionError as error:
        raise UserError("the configuration cannot be read: a reference leads back to itself") from error
    return found


_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def _referred(node: Any, tree: Mapping[str, Any]) -> Any:
    match node:
        case dict():
            return {key: _referred(value, tree) for key, value in node.items()}
        case list():
            return [_referred(item, tree) for item in node]
    found = _REFERENCE.fullmatch(str(node))
    if found is None:
        return node
    there: Any = tree
    try:
        for part in found[1].split("."):
            there = there[part]
    except (KeyError, TypeError):
        return node
    return _referred(there, tree)


def check_arguments(
    target: str, make: Any, options: Mapping[str, Any], given: Mapping[str, Any], *, later: bool
) -> None:
    """Refuse, by name, arguments that do not fit a constructor's signature; later: some may be missing."""
    for key in options:
        if key.startswith("_"):
            raise UserError(f"{target}: {key} is no option; beside _target_ there is _partial_ only")
        if key in given:
            raise UserError(f"{target}: {key} follows from other options: leave it out here")
    signature = inspect.signature(make)
    try:
        (signature.bind_partial if later else signature.bind)(**options, **given)
    except TypeError as error:
        known = ", ".join(name for name in signature.parameters if name not in given) or "none"
        strange = next((key for key in options if key not in signature.parameters), None)
        said = f"has no option {strange}" if "unexpected" in str(error) and strange else f"refuses: {error}"
        raise UserError(f"{target} {said}; its options are {known}") from error
