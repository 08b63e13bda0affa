"""Configuration nodes → objects, for constructors on an allow-list only.

`_target_` names a constructor, the other keys are its keyword arguments, `_partial_: true` leaves it to be
called later. A target outside the list is refused, wherever the configuration came from.
"""

import inspect
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd.cli.config.signatures import find
from lmsd.errors import UserError, shown

ALLOWED = (
    "lmsd.process.",
    "lmsd.nets.",
    "lmsd.models.",
    "lmsd.sampling.",
    "lmsd.rewards.",
    "lmsd.objectives.",
    "lmsd.data.module.",
    "torch.optim.",
    "torch.nn.",
    "lmsd.engine.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.callbacks.",
)


def allowed_names() -> tuple[str, ...]:
    """What targets may begin with: our list, and the user's packages, named in LMSD_ALLOW by commas."""
    own = os.environ.get("LMSD_ALLOW", "").split(",")
    return (*ALLOWED, *(f"{name.strip().rstrip('.')}." for name in own if name.strip()))


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    """Build what `node` describes, with further keyword arguments; plain lists and dicts inside.

    References are resolved once, and what is built is the very tree that was checked.
    """
    try:
        tree: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    for target in targets(tree):
        check(target)
    return _built(tree, **arguments)


def _built(node: Any, **arguments: Any) -> Any:
    if isinstance(node, list):
        return [_built(item) for item in node]
    if not isinstance(node, dict):
        return node
    options = {key: _built(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return options
    target = str(node["_target_"])
    for key in options:
        if str(key).startswith("_"):
            raise UserError(f"{target}: {key} is no option; beside _target_ there is _partial_ only")
    make = located(target)
    try:
        return (
            partial(make, **options, **arguments) if node.get("_partial_") else make(**options, **arguments)
        )
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={shown(key, value)}" for key, value in options.items())
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{target} cannot be built with {given}: {said}") from error


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` below a node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def located(target: str) -> Any:
    """The object of a name, or a sentence."""
    try:
        return hydra.utils.get_object(target)
    except Exception as error:
        raise UserError(f"_target_ '{target}' is not there: {str(error).splitlines()[0]}") from error


def check(target: str) -> None:
    """Refuse a constructor outside the allow-list, also when it is reached through an allowed module."""
    check_name(target)
    found = located(target)
    # A class or a function itself: methods may be inherited from anywhere, and some unpickle.
    whole = (inspect.isclass(found) or inspect.isfunction(found)) and "." not in found.__qualname__
    if not (whole and f"{found.__module__}.".startswith(allowed_names())):
        raise _forbidden(target)


def check_name(target: str) -> None:
    """What `check` can tell without importing: the name's beginning, and where our sources define it."""
    names = allowed_names()
    if not target.startswith(names) or not all(part.isidentifier() for part in target.split(".")):
        raise _forbidden(target)
    if target.startswith("lmsd."):
        module, _, name = target.rpartition(".")
        found = find(module, name)
        if found is None:
            raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
        if not f"{found.module}.".startswith(names):
            raise _forbidden(target)


def _forbidden(target: str) -> UserError:
    return UserError(
        f"_target_ '{target}' may not be built; allowed are classes and functions below "
        f"{', '.join(allowed_names())} and in the packages that LMSD_ALLOW names"
    )
