"""Configuration nodes → objects: references are resolved, then `lmsd.spec` builds."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd import spec
from lmsd.errors import UserError


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain data, its references resolved once. Raises UserError where one leads nowhere."""
    try:
        tree: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    return dict(tree)


def instantiate(node: DictConfig, **given: Any) -> Any:
    """What `node` describes, with further keyword arguments; what is built is the tree that was checked."""
    return spec.build(plain(node), **given)
