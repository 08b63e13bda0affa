"""YAML and command-line overrides → one resolved configuration.

Hydra composes; this module refuses what Hydra lets pass or explains badly: unknown options (also with '+'),
unknown choices of a group, a word where a number belongs, several values outside a sweep.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
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
        chosen = [str(o.input_line) for o in selections]
        base = composed(name, chosen)
        words = [check_value(override, base, groups=list(choices)) for override in values]
        config = composed(name, chosen + words)
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


PLACES = {
    "optimizer": ("optim.generator", "optim.discriminator"),
    "times": ("objective.times",),
}
"""Groups that are chosen for a place, not once: optimizer@optim.generator=sgd."""


def check_choice(override: Override, choices: dict[str, list[str]]) -> None:
    """Refuse an unknown choice of a known group, or one of a group that needs a place without it."""
    group, value = group_of(override), override.value()
    if group not in choices:
        return
    if isinstance(value, str) and value not in choices[group]:
        listed = ", ".join(choices[group])
        raise UserError(f"{group} '{value}' not found{nearest(value, choices[group])}; available: {listed}")
    if group in PLACES and override.package is None:
        ways = " or ".join(f"{group}@{place}={value}" for place in PLACES[group])
        raise UserError(f"{group}={value} does not say for what: write {ways}")


def check_value(override: Override, base: DictConfig, *, groups: Iterable[str] = ()) -> str:
    """The word for Hydra; refuses an unknown option, and a value of another type than the option's own.

    1e6 becomes a whole number where one belongs.
    """
    key, value = group_of(override), override.value()
    known = flatten(base)
    branches = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    if key not in known and key not in branches:
        near = nearest(key, [*groups, *known])
        raise UserError(f"unknown option '{key}'{near}  (all options: lmsd train --cfg)")
    if override.is_delete():
        raise UserError(f"'{override.input_line}': options cannot be taken away; write {key}=null")
    if key in branches and not isinstance(value, dict):
        inside = [name for name in known if name.startswith(f"{key}.")]
        raise UserError(f"{key}={value}: {key} has options of its own, {', '.join(inside[:4])}")
    if key in branches:
        for name, item in _leaves(value, key):
            check_type(name, item, known)
        return str(override.input_line)
    if wants_whole(known[key]) and isinstance(value, float) and value.is_integer():
        return f"{key}={int(value)}"
    check_type(key, value, known)
    return str(override.input_line)


def wants_whole(default: Any) -> bool:
    """Whether an option is a whole number by its default."""
    return isinstance(default, int) and not isinstance(default, bool)


def check_type(key: str, value: Any, known: Mapping[str, Any]) -> None:
    """Refuse a value of another type than the default's; null and unset defaults take anything."""
    if key not in known:
        raise UserError(f"unknown option '{key}'{nearest(key, known)}  (all options: lmsd train --cfg)")
    default = known[key]
    reference = isinstance(default, str) and default.startswith("${")
    if value is None or default is None or reference or (isinstance(value, str) and value.startswith("${")):
        return
    if isinstance(default, bool) and not isinstance(value, bool):
        raise UserError(f"{key}={value} is not true or false")
    pair = isinstance(default, float) and isinstance(value, list)  # a schedule's (start, end)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wants_whole(default) and not (number and isinstance(value, int)):
        raise UserError(f"{key}={value} is not a whole number, e.g. 1000")
    if isinstance(default, float) and not number and not pair:
        raise UserError(f"{key}={value} is not a number, e.g. 1e-4")
    if isinstance(default, list) and not isinstance(value, list) and not (number and key_is_rate(key)):
        raise UserError(f"{key}={value} is not a list: write {key}=[{value}]")
    if isinstance(default, str) and isinstance(value, list | dict):
        raise UserError(f"{key}={value} is not one word, as {key}={default}")


def key_is_rate(key: str) -> bool:
    """Whether an option is a number or a pair (start, end), so that one number may replace a pair."""
    return key.rsplit(".", 1)[-1] in ("gamma", "sigma", "rate", "warm_rate", "anchor_weight")


def composed(name: str, overrides: list[str]) -> DictConfig:
    """Hydra's composition with its errors in one line."""
    try:
        added = ",".join(f"file://{folder}" for folder in own_configs())
        return compose(name, overrides=[f"hydra.searchpath=[{added}]", *overrides])
    except (ConfigCompositionException, HydraException, OmegaConfBaseException) as error:
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
