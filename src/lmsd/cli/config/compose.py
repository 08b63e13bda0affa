"""YAML and command-line overrides → one resolved configuration.

Hydra composes the groups; this module refuses what Hydra lets pass or explains badly: unknown options (also
with '+'), unknown choices of a group, a word where a number belongs, several values outside a sweep.
"""

import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lmsd.cli import uncollected
from lmsd.cli.config.folders import config_dir, groups, own_configs
from lmsd.cli.config.kinds import optional, textual
from lmsd.cli.config.renamed import renamed
from lmsd.cli.config.schema import (
    OPEN,
    branches,
    check_config,
    leaves,
    plain,
    refuse,
    rule,
    strangers,
    unknown,
)
from lmsd.cli.config.suggest import nearest
from lmsd.errors import HIDDEN, UserError, is_secret, redact
from lmsd.ranks import launched_rank

yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]  # what omegaconf reads with

__all__ = ["check_choice", "check_value", "config_dir", "flatten", "groups", "load", "own_configs", "parse"]

PLACES = {
    "optimizer": ("optim.generator", "optim.discriminator"),
    "times": ("objective.times",),
    "reward": ("objective.reward",),
}
"""Groups that are chosen for a place, not once: optimizer@optim.generator=sgd."""

WAYS = {"data": "; name your shards with data.shards=FOLDER"}
"""What those who look for a choice may look for."""


@uncollected()
def load(name: str, overrides: list[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, all of them checked, and resolve it."""
    parsed = [parse(override) for override in overrides]
    choices = groups()
    for override in parsed:
        check_choice(override, choices)
    picked = [o for o in parsed if group_of(o) in choices and not isinstance(o.value(), dict)]
    check_once(picked)
    config = composed(name, [str(override.input_line) for override in picked])
    note = leave_out(name, picked, config)
    for override in parsed:
        if override not in picked:
            apply(override, config, groups=list(choices))
    references = {key: value for key, value in flatten(config).items() if "${oc.env:" in str(value)}
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    check_config(config)
    for key, value in references.items():  # looked up at each use, so that no file holds what they stand for
        OmegaConf.update(config, key, value)
    if note and launched_rank() == 0:
        print(note, file=sys.stderr)
    return config


def leave_out(name: str, picked: list[Override], config: DictConfig) -> str:
    """Take out what a recipe sets for its own net (or other choice) where another one was picked.

    experiment=shapes net=unet_pooled: the recipe's net.width and net.depth are those of its MLP. What neither
    choice takes stays, to be refused. A note of what is gone, for a configuration that stands; or nothing.
    """
    if not picked:
        return ""
    tree: Any = OmegaConf.to_container(config)
    strange = list(strangers(tree))
    places = [(override, f"{override.package or group_of(override)}.") for override in picked]
    moved = [override for override, place in places if any(key.startswith(place) for key in strange)]
    if not moved:
        return ""
    kept = [str(override.input_line) for override in picked if override not in moved]
    before: Any = OmegaConf.to_container(composed(name, kept))
    refused, known = set(strangers(before)), dict(leaves(before))
    gone = [key for key in strange if key not in refused and (key in known or key in branches(known))]
    for key in gone:
        path, _, leaf = key.rpartition(".")
        with open_dict(config):
            del OmegaConf.select(config, path)[leaf]
    words = " ".join(str(override.input_line) for override in moved)
    return f"note: left out for {words}, which takes none: {', '.join(gone)}" if gone else ""


_REFERENCE = re.compile(r"\$\{[^{}]*\}")
_LOGIN = re.compile(r"[^/\s@'\"]*\$\{[^{}]*\}@")  # user and password, if the password is a reference


def stored(config: DictConfig) -> DictConfig:
    """The configuration as files may hold it: secrets are hidden, and to be given again."""
    public: DictConfig = OmegaConf.create(_public(OmegaConf.to_container(config)))
    return public


def _public(value: Any, name: str = "") -> Any:
    """The same tree without secrets; references stay as they are written, for they hold none."""
    if isinstance(value, dict):
        return {key: _public(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item, name) for item in value]
    if value is None or not is_secret(name):
        return _redacted(value) if isinstance(value, str) else value
    return value if isinstance(value, str) and _REFERENCE.fullmatch(value) else HIDDEN


def _redacted(text: str) -> str:
    """Redacted, unless what looks like a secret is a reference to one."""
    bare = _REFERENCE.sub("", _LOGIN.sub("", text))
    return text if _REFERENCE.search(text) and redact(bare) == bare else redact(text)


def require_secrets(config: DictConfig) -> None:
    """Refuse a stored configuration whose hidden values were not given again."""
    for key, value in flatten(config).items():
        if HIDDEN in str(value):
            raise UserError(
                f"{key} holds a secret, which no run stores: give {key}=... again, or write it as "
                "'${oc.env:NAME}', which is looked up at each start"
            )


def parse(text: str) -> Override:
    """One command-line word as Hydra's override; several values belong to `lmsd sweep`."""
    override = parse_sweep(text)
    if override.is_sweep_override():
        if group_of(override) in groups():
            raise UserError(f"'{text}' gives several choices; a run has one, try each: lmsd sweep {text}")
        ways = f"write {as_list(override)}, or try each: lmsd sweep {text}"
        raise UserError(f"'{text}' gives several values; {ways}")
    return override


def parse_sweep(text: str) -> Override:
    """One command-line word as Hydra's override, which may hold several values."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        quoted = f"""{key}="'{value}'\"""" if "{" in value else "prompts='[a, b]'"
        hint = f"write option=value, and quote values with spaces, commas or braces: {quoted}"
        raise UserError(f"cannot read '{text}': {hint}") from error


def as_list(override: Override) -> str:
    """What to write in place of values by commas, or a range: a list, quotes and all."""
    key, _, value = str(override.input_line).partition("=")
    values = value if override.is_choice_sweep() else ",".join(map(str, override.sweep_iterator()))
    return f"a list as {key}=[{values}]"


def group_of(override: Override) -> str:
    """The name of the group an override would choose from."""
    return str(override.key_or_group)


def written(override: Override) -> Any:
    """A word or path as it was typed, where the grammar reads a number: resume=12e4, an id."""
    value = override.value()
    plain = isinstance(value, bool | int | float)
    return str(override.input_line).partition("=")[2] if plain else value


def check_choice(override: Override, choices: dict[str, list[str]]) -> None:
    """Refuse none or an unknown choice of a group, or one without the place that its group needs."""
    group, value = group_of(override), written(override)
    if group not in choices or isinstance(value, dict):
        return
    listed = ", ".join(choices[group])
    if value is None or override.is_delete():
        way = f"write {group}=none" if "none" in choices[group] else f"leave {group}= out"
        raise UserError(f"'{override.input_line}' is no choice: {way}, or take one of {listed}")
    if (override.is_add() or override.is_force_add()) and (override.package or group) in plain()[0]:
        bare = str(override.input_line).lstrip("+")
        raise UserError(f"'{override.input_line}': {group} has a choice to replace, write {bare}")
    for item in value if isinstance(value, list) else [value]:
        if item not in choices[group]:
            told = renamed(group, item)
            if told is not None:
                raise told
            hint = nearest(str(item), choices[group]) or makers(group, str(item)) or WAYS.get(group, "")
            raise UserError(f"{group} '{item}' not found{hint}; available: {listed}")
    if group in PLACES and override.package is None:
        ways = " or ".join(f"{group}@{place}={value}" for place in PLACES[group])
        raise UserError(f"{group}={value} does not say for what: write {ways}")


def makers(group: str, name: str) -> str:
    """A clause with the choices of a group that build the class `name`: sampler=Tau is ddim or ancestral."""
    paths = [path for root in (config_dir(), *own_configs()) for path in root.glob(f"{group}/*.yaml")]
    line = re.compile(rf"^_target_: (.*\.)?{re.escape(name)}$", re.M)
    found = sorted(path.stem for path in paths if line.search(path.read_text(encoding="utf-8")))
    return f"; did you mean {', '.join(found)}?" if found else ""


def check_once(picked: list[Override]) -> None:
    """Refuse two choices of one group for one place."""
    chosen: dict[str, Override] = {}
    for override in picked:
        before = chosen.setdefault(override.get_key_element().lstrip("+"), override)
        if written(before) != written(override):
            raise UserError(
                f"{before.input_line} and {override.input_line}: one run has one {group_of(override)}, leave "
                "one of the two out"
            )


def apply(override: Override, config: DictConfig, *, groups: Iterable[str] = ()) -> None:
    """Set an option of a composed configuration, or take a named entry away (~callbacks.progress)."""
    key = group_of(override)
    value = check_value(override, config, groups=groups)
    with open_dict(config):
        if override.is_delete():
            path, _, name = key.rpartition(".")
            del OmegaConf.select(config, path)[name]
        else:
            OmegaConf.update(config, key, value, merge=True, force_add=True)


def check_value(override: Override, base: DictConfig, *, groups: Iterable[str] = ()) -> Any:
    """The value to set; refuses an unknown option, and a value of another type than the option's.

    1e6 becomes a whole number where one belongs.
    """
    key, value = group_of(override), override.value()
    tree: Any = OmegaConf.to_container(base)
    known = dict(leaves(tree))
    inner = branches(known)
    opened = key.count(".") and key.startswith(tuple(f"{name}." for name in OPEN))
    if key not in known and key not in inner and (override.is_delete() or not opened):
        raise unknown(key, [*groups, *known])
    if override.is_delete():
        if opened and key.count(".") == 1:
            return None
        raise UserError(f"'{override.input_line}': options cannot be taken away; write {key}=null")
    if key in inner and not isinstance(value, dict):
        if value is None and optional(rule(tree, key)):
            return None
        raise whole(key, value, known)
    if key in inner:
        for name, item in leaves(value, key):
            check_leaf(name, item, tree, known)
        return value
    kind = rule(tree, key)
    value = written(override) if textual(kind) else value
    if isinstance(value, float) and value.is_integer() and not kind.fits(value) and kind.fits(int(value)):
        return int(value)
    check_leaf(key, value, tree, known if not opened else {key: None})
    return value


def whole(key: str, value: Any, known: Iterable[str]) -> UserError:
    """The sentence on one value for what has options of its own."""
    if value is None and key.rpartition(".")[0] in OPEN:
        return UserError(f"{key}=null: take it away with '~{key}'")
    group = next((group for group, places in PLACES.items() if key in places), None)
    if group is not None:
        listed = ", ".join(groups().get(group, ()))
        return UserError(f"{key}={value}: choose with {group}@{key}=, one of {listed}")
    inside = [name for name in known if name.startswith(f"{key}.") and "._" not in name]
    said = "null" if value is None else value
    return UserError(f"{key}={said}: {key} has options of its own, {', '.join(inside[:4])}")


def check_leaf(key: str, value: Any, tree: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse an unknown name or a wrong type; a reference is looked at when it is resolved."""
    if key not in known:
        if key.rsplit(".", 1)[-1].startswith("_"):
            return
        raise unknown(key, known)
    if not (isinstance(value, str) and value.startswith("${")):
        refuse(key, value, rule(tree, key))


def composed(name: str, overrides: list[str]) -> DictConfig:
    """Hydra's composition with its errors in one line."""
    bare_hydra()
    added = ",".join(f"file://{folder}" for folder in own_configs())
    searched = [f"hydra.searchpath=[{added}]"] if added else []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(name, overrides=[*searched, *overrides])
    except yaml.YAMLError as error:  # says which file and line, over several lines
        said = " ".join(str(error).split())
        raise UserError(f"the configuration cannot be composed: {said}") from error
    except (ConfigCompositionException, HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"the configuration cannot be composed: {str(error).splitlines()[0]}") from error


class OurFolders(SearchPathPlugin):
    """Hydra looks for every choice in its own package first, opened as an archive might be."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Leave its package out of the path."""
        entries = search_path.get_path()
        entries[:] = [entry for entry in entries if entry.provider != "hydra"]


@cache
def bare_hydra() -> None:
    """Take Hydra's own groups (launcher, logging, help) out of what it composes: half of the work."""
    ConfigStore.instance().repo["hydra"]["config.yaml"].node.defaults = []
    Plugins.instance().register(OurFolders)


def flatten(config: DictConfig) -> dict[str, Any]:
    """Leaves of a configuration by dotted name, unresolved: an interpolation is its own text."""
    return dict(leaves(OmegaConf.to_container(config)))
