"""Configuration nodes → objects, for constructors on an allow-list only.

`_target_` names a constructor, the other keys are its keyword arguments, `_partial_: true` leaves it to be
called later. A target outside the list is refused, wherever the configuration came from.
"""

import inspect
import os
from collections.abc import Iterator
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from lmsd.errors import UserError

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
    """Build what `node` describes, with further keyword arguments; plain lists and dicts inside."""
    for target in targets(OmegaConf.to_container(node)):
        check(target)
    try:
        return hydra.utils.instantiate(node, _convert_="all", **arguments)
    except hydra.errors.InstantiationException as error:
        raise refusal(error, node) from error


def refusal(error: BaseException, node: DictConfig) -> UserError:
    """The sentence inside Hydra's error: ours, or what the constructor said about its arguments."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, UserError):
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return UserError(str(cause))
    options = {str(key): value for key, value in node.items()}
    given = ", ".join(f"{key}={value}" for key, value in options.items() if not key.startswith("_"))
    said = f"{type(cause).__name__}: {cause}".splitlines()[0]
    return UserError(f"{node._target_} cannot be built with {given}: {said}")


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
    names = allowed_names()
    allowed = target.startswith(names) and all(part.isidentifier() for part in target.split("."))
    if allowed:
        found = located(target)
        # A class or a function itself: methods may be inherited from anywhere, and some unpickle.
        whole = (inspect.isclass(found) or inspect.isfunction(found)) and "." not in found.__qualname__
        allowed = whole and f"{found.__module__}.".startswith(names)
    if not allowed:
        raise UserError(
            f"_target_ '{target}' may not be built; allowed are classes and functions below "
            f"{', '.join(names)} and in the packages that LMSD_ALLOW names"
        )
