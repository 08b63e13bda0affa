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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd.cli.config.schema import (
    ENTRIES,
    at,
    check,
    check_node,
    coerced,
    complete,
    config_dir,
    files,
    groups,
    inside,
    is_node,
    kind_at,
    leaves,
    names,
    only_nodes,
    options,
    own_configs,
    refuse,
    taken,
    unknown,
)
from lmsd.cli.config.signatures import ANYTHING, NULL, fits, parts
from lmsd.cli.config.suggest import nearest, renamed
from lmsd.errors import HIDDEN, UserError, is_secret, redact
from lmsd.ranks import launched_rank

if yaml.__with_libyaml__:  # what omegaconf reads with, ten times as fast
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]

WAYS = {"data": "; name your shards with data.shards=FOLDER"}
"""What those who look for a choice may look for."""


def load(name: str, overrides: list[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, all of them checked, fill in the defaults and resolve it."""
    parsed, choices = [parse(override) for override in overrides], groups()
    for override in parsed:
        check_choice(override, choices)
    picked = [override for override in parsed if chooses(override, choices)]
    check_once(picked)
    tree = composed(name, [str(override.input_line) for override in picked])
    makers = [override for override in parsed if group_of(override).endswith("._target_")]
    for override in makers:
        apply(override, tree, groups=choices)
    note = leave_out([*picked, *makers], tree)
    for override in parsed:
        if override not in picked and override not in makers:
            apply(override, tree, groups=choices)
    whole = resolved(complete(tree))
    if note and launched_rank() == 0:
        print(note, file=sys.stderr)
    return whole


def resolved(tree: dict[str, Any]) -> DictConfig:
    """A whole tree without references, and checked; those to the environment stay, where they give words.

    They are looked up at each use, so that no file holds what they stand for.
    """
    kept = {key: value for key, value in leaves(tree) if "${oc.env:" in str(value)}
    whole = plain(OmegaConf.create(tree))
    for key in list(kept):
        kind, found = kind_at(whole, key), at(whole, key)
        if kind and isinstance(found, str) and not fits(kind, found):
            apply(parse(f"{key}={found}"), whole)
            del kept[key]
    check(whole)
    config: DictConfig = OmegaConf.create(whole)
    for key, value in kept.items():
        OmegaConf.update(config, key, value)
    return config


def leave_out(others: list[Override], tree: dict[str, Any]) -> str:
    """Take out what a node has for a constructor or choice that has another one now; a note of what is gone.

    experiment=shapes net=unet_pooled: the recipe's net.width and net.depth are those of its MLP. What no
    choice of the group takes stays, to be refused; without a condition there is nothing to guide or check.
    """
    gone: dict[str, str] = {}
    for key in [option.key for option in options(tree) if option.kind is None] if others else ():
        for override in others:
            group = group_of(override)
            place = (override.package or group).removesuffix("_target_").rstrip(".")
            rest = key.removeprefix(f"{place}.")
            if rest != key and key not in gone and (group.endswith("._target_") or _elsewhere(group, rest)):
                path, _, name = key.rpartition(".")
                del at(tree, path)[name]
                gone[key] = str(override.input_line)
    for key in ("guidance", "checker") if "conditioner=none" in [o.input_line for o in others] else ():
        if at(tree, "evaluate").pop(key, None) is not None:
            gone[f"evaluate.{key}"] = "conditioner=none"
    words = " ".join(dict.fromkeys(gone.values()))
    return f"note: left out for {words}, which takes none: {', '.join(gone)}" if gone else ""


def _elsewhere(group: str, key: str) -> bool:
    """Whether any choice of a group takes an option."""
    path, _, name = key.rpartition(".")
    for file in files(group):
        text = file.read_text(encoding="utf-8")
        tree = yaml.safe_load(text) or {}
        node = at(at(tree, group) if "@package _global_" in text else tree, path)
        if at(node, "_target_") and inside(node, ANYTHING, taken(node, ANYTHING, ""), name) is not None:
            return True
    return False


_REFERENCE = re.compile(r"\$\{[^{}]*\}")


def stored(config: DictConfig) -> DictConfig:
    """The configuration as files may hold it: secrets are hidden, and to be given again."""
    public: DictConfig = OmegaConf.create(_public(OmegaConf.to_container(config)))
    return public


def _public(value: Any, name: str = "") -> Any:
    """The same tree without secrets; references stay as they are written, for they hold none."""
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


def parse(text: str) -> Override:
    """One command-line word as Hydra's override; several values belong to `lmsd sweep`."""
    override = parse_sweep(text)
    if not override.is_sweep_override():
        return override
    said = f"gives several choices; a run has one, try each: lmsd sweep {text}"
    if group_of(override) not in groups():
        said = f"gives several values; write {as_list(override)}, or try each: lmsd sweep {text}"
    raise UserError(f"'{text}' {said}")


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


def chooses(override: Override, choices: Iterable[str]) -> bool:
    """Whether an override chooses from a group, rather than setting options."""
    return group_of(override) in choices and not isinstance(override.value(), dict)


def written(override: Override) -> Any:
    """A word or path as it was typed, where the grammar reads a number: resume=12e4, an id."""
    value = override.value()
    return str(override.input_line).partition("=")[2] if isinstance(value, bool | int | float) else value


def check_choice(override: Override, choices: dict[str, list[str]]) -> None:
    """Refuse none or an unknown choice of a group, or one without the place that its group needs."""
    if not chooses(override, choices):
        return
    group, value, places = group_of(override), written(override), chosen()
    listed, line = ", ".join(choices[group]), str(override.input_line)
    if value is None or override.is_delete():
        way = f"write {group}=none" if "none" in choices[group] else f"leave {group}= out"
        raise UserError(f"'{line}' is no choice: {way}, or take one of {listed}")
    if line.startswith("+") and (override.package or group) in places:
        raise UserError(f"'{line}': {group} has a choice to replace, write {line.lstrip('+')}")
    for item in value if isinstance(value, list) else [value]:
        if item not in choices[group]:
            hint = nearest(str(item), choices[group]) or makers(group, str(item)) or WAYS.get(group, "")
            refusal = UserError(f"{group} '{item}' not found{hint}; available: {listed}")
            raise renamed(group, item) or refusal
    ways = [f"{group}@{place}={value}" for place, name in places.items() if name == group]
    if override.package is None and group not in places and ways:
        raise UserError(f"{group}={value} does not say for what: write {' or '.join(ways)}")


_CHOSEN = re.compile(r"^ *- (?:override |optional )?(/?)([\w/]+?)(?:@([\w.]+))?: ?[\w\[$]", re.M)


@cache
def chosen() -> dict[str, str]:
    """The places at which defaults choose from a group, with the group: optim.generator, optimizer."""
    found: dict[str, str] = {}
    for path in (config_dir() / "train.yaml", *files()):
        text = path.read_text(encoding="utf-8")
        plain = path.stem == "train" or "@package _global_" in text
        for _, group, place in _CHOSEN.findall(text.partition("\ndefaults:")[2].partition("\n\n")[0]):
            inside_of = "" if plain or not place else f"{path.parent.name}."
            found.setdefault(f"{inside_of}{place or group}", group)
    return found


def makers(group: str, name: str) -> str:
    """A clause with the choices of a group that build the class `name`: sampler=Tau is ddim or ancestral."""
    line = re.compile(rf"^_target_: (.*\.)?{re.escape(name)}$", re.M)
    found = sorted(path.stem for path in files(group) if line.search(path.read_text(encoding="utf-8")))
    return f"; did you mean {', '.join(found)}?" if found else ""


def check_once(picked: list[Override]) -> None:
    """Refuse two choices of one group for one place."""
    first: dict[str, Override] = {}
    for override in picked:
        before = first.setdefault(override.get_key_element().lstrip("+"), override)
        if written(before) != written(override):
            said = f"{before.input_line} and {override.input_line}: one run has one {group_of(override)}"
            raise UserError(f"{said}, leave one of the two out")


def apply(override: Override, tree: dict[str, Any], *, groups: Iterable[str] = ()) -> None:
    """Set an option of a composed tree, or take a named entry away (~callbacks.progress)."""
    value = check_value(override, tree, groups=groups)
    *path, name = group_of(override).split(".")
    for part in path:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    if override.is_delete():
        del tree[name]
    else:
        tree[name] = merged(tree.get(name), value)


def merged(before: Any, value: Any) -> Any:
    """A mapping's entries over those that were there; anything else takes their place."""
    if not isinstance(before, dict) or not isinstance(value, dict):
        return value
    return before | {key: merged(before.get(key), item) for key, item in value.items()}


def check_value(override: Override, tree: dict[str, Any], *, groups: Iterable[str] = ()) -> Any:
    """The value to set; refuses an unknown option, and a value of another type than the option's.

    1e6 becomes a whole number where one belongs.
    """
    key, value = group_of(override), override.value()
    kind, there = kind_at(tree, key), at(complete(tree) if override.is_delete() else tree, key)
    if kind is None or (override.is_delete() and there is None):
        raise unknown(key, [*groups, *names(complete(tree))])
    if override.is_delete():
        if key.rpartition(".")[0] in ENTRIES:
            return None
        raise UserError(f"'{override.input_line}': options cannot be taken away; write {key}=null")
    if isinstance(value, dict) and is_node(kind):
        check_node(tree, merged(there, value), kind, key)
        return value
    if value is None and NULL in parts(kind):
        return None
    if isinstance(there, dict) or (kind and only_nodes(kind) and not fits(kind, value)):
        raise whole(key, value, tree)
    value = coerced(value, kind, str(override.input_line).partition("=")[2])
    if not str(value).startswith("${"):  # looked at when it is resolved
        refuse(key, value, kind)
    return value


def whole(key: str, value: Any, tree: dict[str, Any]) -> UserError:
    """The sentence on one value for what has options of its own."""
    group, said = chosen().get(key, key), "null" if value is None else value
    if value is None and key.rpartition(".")[0] in ENTRIES:
        return UserError(f"{key}=null: take it away with '~{key}'")
    if group != key:
        return UserError(f"{key}={value}: choose with {group}@{key}=, one of {', '.join(groups()[group])}")
    own = [name for name in names(complete(tree)) if name.startswith(f"{key}.")]
    return UserError(f"{key}={said}: {key} has options of its own, {', '.join(own[:4])}")


def composed(name: str, overrides: list[str]) -> dict[str, Any]:
    """Hydra's composition as plain data, unresolved, with its errors in one line."""
    bare_hydra()
    added = ",".join(f"file://{folder}" for folder in own_configs())
    searched = [f"hydra.searchpath=[{added}]"] if added else []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            found: Any = OmegaConf.to_container(compose(name, overrides=[*searched, *overrides]))
            return dict(found)
    except yaml.YAMLError as error:  # says which file and line, over several lines
        said = " ".join(str(error).split())
    except (ConfigCompositionException, HydraException, OmegaConfBaseException, ValueError) as error:
        said = str(error).splitlines()[0]
    raise UserError(f"the configuration cannot be composed: {said}")


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


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain data, its references resolved once. Raises UserError where one leads nowhere."""
    try:
        tree: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    return dict(tree)


def flatten(config: DictConfig) -> dict[str, Any]:
    """Leaves of a configuration by dotted name, unresolved: an interpolation is its own text."""
    return dict(leaves(OmegaConf.to_container(config)))
