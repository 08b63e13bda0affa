"""Secrets in a configuration: hidden in what a run stores, asked for again when it is used."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.compose import flatten
from lmsd.errors import HIDDEN, UserError, is_secret, redact

_REFERENCE = re.compile(r"\$\{[^{}]*\}")


def stored(config: DictConfig) -> DictConfig:
    """The configuration as it may be written to files: secrets are hidden and must be given again."""
    public: DictConfig = OmegaConf.create(_public(OmegaConf.to_container(config)))
    return public


def _public(value: Any, name: str = "") -> Any:
    """A copy of the tree without secrets; references are kept as written, since they hold none."""
    match value:
        case dict():
            return {key: _public(item, str(key)) for key, item in value.items()}
        case [*items]:
            return [_public(item, name) for item in items]
    text = value if isinstance(value, str) else ""
    if value is not None and is_secret(name):
        return value if _REFERENCE.fullmatch(text) else HIDDEN
    kept = iter(_REFERENCE.findall(text))  # a blank in place of a reference: no part of a login or a query
    return re.sub("\0 ", lambda _: next(kept), redact(_REFERENCE.sub("\0 ", text))) if text else value


def require_secrets(config: DictConfig) -> None:
    """Refuse a stored configuration whose hidden values were not given again."""
    for key, value in flatten(config).items():
        if HIDDEN in str(value):
            raise UserError(
                f"{key} holds a secret, which no run stores: give {key}=... again, or write it as "
                "'${oc.env:NAME}', which is looked up at each start"
            )
