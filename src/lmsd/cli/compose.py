"""YAML and command-line overrides → one resolved configuration.

Hydra composes; this module refuses what Hydra lets pass or explains badly: unknown options (also with '+'),
unknown choices of a group, a word where a number belongs, several values outside a sweep.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd.cli.suggest import nearest
from lmsd.errors import UserError


def config_dir() -> Path:
    """The folder of configurations: the repository's, or the installed package's."""
    here = Path(__file__).resolve()
    beside = here.parents[3] / "configs"
    return beside if (beside / "train.yaml").is_file() else here.parents[1] / "configs"


def own_configs() -> list[Path]:
    """The user's own folders of config groups, which add to ours: LMSD_CONFIG_DIR, separated as in PATH."""
    folders = [
        Path(word).resolve() for word in os.environ.get("LMSD_CONFIG_DIR", "").split(os.pathsep) if word
    ]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"LMSD_CONFIG_DIR names {folder}, which is no folder")
    return folders


def groups() -> dict[str, list[str]]:
    """The choices of every config group, by its name."""
    found: dict[str, set[str]] = {}
    for root in (config_dir(), *own_configs()):
        for path in root.rglob("*.yaml"):
            if path.parent != root:
                found.setdefault(path.parent.relative_to(root).as_posix(), set()).add(path.stem)
    return {name: sorted(found[name]) for name in sorted(found)}


def load(name: str, overrides: list[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, all of them checked, and resolve it."""
    parsed = [parse(override) for override in overrides]
    choices = groups()
    for override in parsed:
        check_choice(override, choices)
    selections = [o for o in parsed if group_of(o) in choices]
    values = [o for o in parsed if group_of(o) not in choices]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        base = composed(name, selections)
        for override in values:
            check_value(override, base)
        config = composed(name, selections + values)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    return config


def parse(text: str) -> Override:
    """One command-line word as Hydra's override; sweeps belong to another verb."""
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        hint = "write option=value, and quote values with spaces or commas: prompts='[a, b]'"
        raise UserError(f"cannot read '{text}': {hint}") from error
    if override.is_sweep_override():
        key, _, value = text.partition("=")
        raise UserError(f"'{text}' gives several values; write a list as {key}=[{value}]")
    return override


def group_of(override: Override) -> str:
    """The name of the group an override would choose from."""
    return str(override.key_or_group)


def check_choice(override: Override, choices: dict[str, list[str]]) -> None:
    """Refuse an unknown choice of a known group."""
    group, value = group_of(override), override.value()
    if group in choices and isinstance(value, str) and value not in choices[group]:
        listed = ", ".join(choices[group])
        raise UserError(f"{group} '{value}' not found{nearest(value, choices[group])}; available: {listed}")


def check_value(override: Override, base: DictConfig) -> None:
    """Refuse an option that the configuration does not have, or a value of another type than its own."""
    key = group_of(override)
    known = flatten(base)
    branches = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    if key not in known and key not in branches:
        hint = nearest(key, known)
        raise UserError(f"unknown option '{key}'{hint}  (all options: lmsd train --cfg)")
    if override.is_delete() or key not in known:
        return
    default, value = known[key], override.value()
    number = isinstance(default, int | float) and not isinstance(default, bool)
    pair = isinstance(default, float) and isinstance(value, list)  # a schedule's (start, end)
    if number and not pair and value is not None and not isinstance(value, int | float):
        kind = "an integer, e.g. 1000" if isinstance(default, int) else "a number, e.g. 1e-4"
        raise UserError(f"{key}={value} is not {kind}")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{key}={value} is not true or false")


def composed(name: str, overrides: list[Override]) -> DictConfig:
    """Hydra's composition with its errors in one line."""
    try:
        added = ",".join(f"file://{folder}" for folder in own_configs())
        return compose(
            name, overrides=[f"hydra.searchpath=[{added}]", *(str(o.input_line) for o in overrides)]
        )
    except (ConfigCompositionException, HydraException) as error:
        raise UserError(f"the configuration cannot be composed: {str(error).splitlines()[0]}") from error


def flatten(config: DictConfig) -> dict[str, Any]:
    """Leaves of a configuration by dotted name, unresolved: an interpolation is its own text."""
    return dict(_leaves(OmegaConf.to_container(config), ""))


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or (not node and prefix):
        yield prefix, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
