"""Configuration nodes → objects, for constructors on an allow-list only.

`_target_` names a constructor, the other keys are its keyword arguments, `_partial_: true` leaves it to be
called later. A target outside the list is refused, wherever the configuration came from.
"""

import os
from collections.abc import Iterator
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from lmsd.errors import UserError

ALLOWED = ("lmsd.", "torch.optim.", "torch.nn.", "lightning.pytorch.loggers.")


def allowed_names() -> tuple[str, ...]:
    """What targets may begin with: our list, and the packages that the user names in LMSD_ALLOW, by commas."""
    own = os.environ.get("LMSD_ALLOW", "").split(",")
    return (*ALLOWED, *(f"{name.strip().rstrip('.')}." for name in own if name.strip()))


def instantiate(node: DictConfig, **arguments: Any) -> Any:
    """Build what `node` describes, with further keyword arguments; plain lists and dicts inside."""
    for target in targets(OmegaConf.to_container(node)):
        check(target)
    try:
        return hydra.utils.instantiate(node, _convert_="all", **arguments)
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


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


def check(target: str) -> None:
    """Refuse a constructor outside the allow-list, also when it is reached through an allowed module."""
    names = allowed_names()
    allowed = target.startswith(names) and all(part.isidentifier() for part in target.split("."))
    if allowed:
        found = hydra.utils.get_object(target)
        allowed = f"{getattr(found, '__module__', '')}.".startswith(names)
    if not allowed:
        raise UserError(
            f"_target_ '{target}' may not be built; allowed are names below {', '.join(names)} (yours: LMSD_ALLOW)"
        )
