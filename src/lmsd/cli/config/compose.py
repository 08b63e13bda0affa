"""YAML and command-line overrides → one resolved configuration.

Hydra composes the groups; this module refuses what Hydra lets pass or explains badly: unknown options (also
with '+'), unknown choices of a group, a word where a number belongs, several values outside a sweep.
"""

import gc
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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

from lmsd.cli.config.kinds import NULL, fits, parts, textual
from lmsd.cli.config.renamed import renamed
from lmsd.cli.config.schema import (
    ENTRIES,
    at,
    check,
    check_node,
    complete,
    config_dir,
    files,
    groups,
    inside,
    is_node,
    kind_at,
    leaves,
    options,
    own_configs,
    refuse,
    strangers,
    unknown,
)
from lmsd.cli.config.suggest import nearest
from lmsd.errors import HIDDEN, UserError, is_secret, redact
from lmsd.ranks import launched_rank

if yaml.__with_libyaml__:  # what omegaconf reads with, ten times as fast
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]

WAYS = {"data": "; name your shards with data.shards=FOLDER"}
"""What those who look for a choice may look for."""


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage where nearly everything that is made stays: a tenth of an answer's time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@uncollected()
def load(name: str, overrides: list[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, all of them checked, fill in the defaults and resolve it."""
    parsed = [parse(override) for override in overrides]
    choices = groups()
    for override in parsed:
        check_choice(override, choices)
    picked = [o for o in parsed if group_of(o) in choices and not isinstance(o.value(), dict)]
    check_once(picked)
    tree = composed(name, [str(override.input_line) for override in picked])
    note = leave_out(picked, tree)
    rest = [override for override in parsed if override not in picked]
    for override in sorted(rest, key=lambda o: not group_of(o).endswith("._target_")):
        apply(override, tree, groups=choices)
        if group_of(override).endswith("._target_"):
            note = "\n".join(filter(None, (note, replaced(override, tree))))
    tree = complete(tree)
    references = {key: value for key, value in leaves(tree) if "${oc.env:" in str(value)}
    config: DictConfig = OmegaConf.create(plain(OmegaConf.create(tree)))
    numbers = [key for key in references if as_number(key, tree, config)]
    check(plain(config))
    for key, value in references.items():  # looked up at each use, so that no file holds what they stand for
        if key not in numbers:
            OmegaConf.update(config, key, value)
    if note and launched_rank() == 0:
        print(note, file=sys.stderr)
    return config


def as_number(key: str, tree: dict[str, Any], config: DictConfig) -> bool:
    """Whether an option that the environment gives takes no words: its value is then set, as read."""
    kind, found = kind_at(tree, key), OmegaConf.select(config, key)
    if kind is None or textual(kind) or fits(kind, found) or not isinstance(found, str):
        return False
    OmegaConf.update(config, key, check_value(parse(f"{key}={found}"), tree))
    return True


def replaced(override: Override, tree: dict[str, Any]) -> str:
    """Take out what a node had for a constructor that has another one now; a note of what is gone."""
    place = group_of(override).removesuffix("._target_")
    gone = [key for key in strangers(tree) if key.startswith(f"{place}.")]
    for key in gone:
        path, _, name = key.rpartition(".")
        del at(tree, path)[name]
    return f"note: left out for {override.input_line}, which takes none: {', '.join(gone)}" if gone else ""


def leave_out(picked: list[Override], tree: dict[str, Any]) -> str:
    """Take out what a recipe sets for its own net (or other choice) where another one was picked.

    experiment=shapes net=unet_pooled: the recipe's net.width and net.depth are those of its MLP. What no
    choice of the group takes stays, to be refused. Without a condition there is nothing to guide, and no
    caption to check. A note of what is gone; or nothing.
    """
    gone, moved = [], []
    for key in list(strangers(tree)) if picked else ():
        for override in picked:
            place = override.package or group_of(override)
            if key.startswith(f"{place}.") and _elsewhere(group_of(override), key.removeprefix(f"{place}.")):
                path, _, name = key.rpartition(".")
                del at(tree, path)[name]
                gone.append(key)
                moved.append(str(override.input_line))
    for override in picked:
        if override.input_line == "conditioner=none":
            scored = at(tree, "evaluate")
            aimless = [name for name in ("guidance", "checker") if scored.pop(name, None) is not None]
            gone += [f"evaluate.{name}" for name in aimless]
            moved += ["conditioner=none"] * bool(aimless)
    words = " ".join(dict.fromkeys(moved))
    return f"note: left out for {words}, which takes none: {', '.join(gone)}" if gone else ""


def _elsewhere(group: str, key: str) -> bool:
    """Whether any choice of a group takes an option."""
    path, _, name = key.rpartition(".")
    texts = [file.read_text(encoding="utf-8") for file in files(group)]
    trees = [(yaml.safe_load(text) or {}, "@package _global_" in text) for text in texts]
    choices = (at(tree, group) if whole else tree for tree, whole in trees)
    nodes = (at(choice, path) for choice in choices)
    found = (inside(node, {}, "", name) for node in nodes if isinstance(node, dict) and "_target_" in node)
    return any(kind is not None for kind in found)


_REFERENCE = re.compile(r"\$\{[^{}]*\}")


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
    places = chosen()
    if (override.is_add() or override.is_force_add()) and (override.package or group) in places:
        bare = str(override.input_line).lstrip("+")
        raise UserError(f"'{override.input_line}': {group} has a choice to replace, write {bare}")
    for item in value if isinstance(value, list) else [value]:
        if item not in choices[group]:
            hint = nearest(str(item), choices[group]) or makers(group, str(item)) or WAYS.get(group, "")
            refusal = UserError(f"{group} '{item}' not found{hint}; available: {listed}")
            raise renamed(group, item) or refusal
    if override.package is None and places.get(group, group) == group and group not in places:
        ways = [f"{group}@{place}={value}" for place, name in places.items() if name == group]
        if ways:
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
            raise UserError(
                f"{before.input_line} and {override.input_line}: one run has one {group_of(override)}, leave "
                "one of the two out"
            )


def apply(override: Override, tree: dict[str, Any], *, groups: Iterable[str] = ()) -> None:
    """Set an option of a composed tree, or take a named entry away (~callbacks.progress)."""
    path, _, name = group_of(override).rpartition(".")
    value = check_value(override, tree, groups=groups)
    node = tree
    for part in path.split(".") if path else ():
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    if override.is_delete():
        del node[name]
    else:
        node[name] = merged(node.get(name), value)


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
    path = key.rpartition(".")[0]
    if kind is None or (override.is_delete() and there is None):
        raise unknown(key, [*groups, *(found[0] for found in options(complete(tree)))])
    if override.is_delete():
        if path in ENTRIES:
            return None
        raise UserError(f"'{override.input_line}': options cannot be taken away; write {key}=null")
    if isinstance(value, dict) and is_node(kind):
        check_node(tree, merged(there, value), kind, key)
        return value
    described = isinstance(there, dict)
    if described or (kind and all(is_node(part) or part == NULL for part in parts(kind))):
        if value is None and NULL in parts(kind):
            return None
        if described or not fits(kind, value):
            raise whole(key, value, tree)
    value = written(override) if textual(kind) else value
    if isinstance(value, float) and value.is_integer() and not fits(kind, value) and fits(kind, int(value)):
        return int(value)
    if not (isinstance(value, str) and value.startswith("${")):  # looked at when it is resolved
        refuse(key, value, kind)
    return value


def whole(key: str, value: Any, tree: dict[str, Any]) -> UserError:
    """The sentence on one value for what has options of its own."""
    if value is None and key.rpartition(".")[0] in ENTRIES:
        return UserError(f"{key}=null: take it away with '~{key}'")
    group = chosen().get(key)
    if group is not None and group != key:
        listed = ", ".join(groups().get(group, ()))
        return UserError(f"{key}={value}: choose with {group}@{key}=, one of {listed}")
    names = [found[0] for found in options(complete(tree)) if found[0].startswith(f"{key}.")]
    said = "null" if value is None else value
    return UserError(f"{key}={said}: {key} has options of its own, {', '.join(names[:4])}")


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
