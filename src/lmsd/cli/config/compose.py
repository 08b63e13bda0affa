"""YAML and command-line overrides → one resolved configuration.

Hydra composes the groups; this module refuses what Hydra lets pass or explains badly: unknown options (also
with '+'), unknown choices of a group, a word where a number belongs, several values outside a sweep.
"""

import gc
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd.cli.config import schema
from lmsd.cli.config.schema import at, config_dir, files, groups, leaves
from lmsd.cli.config.signatures import ANYTHING, NULL, Unread
from lmsd.cli.config.suggest import nearest, renamed
from lmsd.errors import HIDDEN, UserError, is_secret, redact
from lmsd.ranks import launched_rank

if yaml.__with_libyaml__:  # what omegaconf reads with, ten times as fast
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]

_IMPLIED = re.compile(r"^ *- override /(\w+): (\w+)", re.MULTILINE)
WAYS = {"data": "; name your shards with data.shards=FOLDER"}
"""Hints for choices that people look for under another name."""


def load(name: str, overrides: list[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, check them, fill in the defaults and resolve references."""
    collecting = gc.isenabled()
    gc.disable()  # almost nothing is freed here, and collections would take a tenth of the time
    try:
        tree, note = chosen(name, [parse(override) for override in overrides])
        config = resolved(schema.root(tree).complete())
        unread = schema.check_read(plain(config), [str(parse(word).key_or_group) for word in overrides])
    finally:
        if collecting:
            gc.enable()
    for told in (note, unread):
        if told and launched_rank() == 0:
            print(told, file=sys.stderr)
    return config


def chosen(name: str, overrides: list[Override]) -> tuple[dict[str, Any], str]:
    """The composed tree with the overrides applied, and a note on what was left out of it."""
    choices, picked = groups(), dict[str, Override]()
    for override in overrides:
        check_choice(override, choices)
    for override in (override for override in overrides if chooses(override, choices)):
        before = picked.setdefault(override.get_key_element().lstrip("+"), override)
        if written(before) != written(override):
            said = f"{before.input_line} and {override.input_line}: one run has one {override.key_or_group}"
            raise UserError(f"{said}, leave one of the two out")
    tree = composed(name, [str(override.input_line) for override in picked.values()])
    rest = [override for override in overrides if not chooses(override, choices)]
    made = [override for override in rest if override.key_or_group.endswith("._target_")]
    for override in made:
        apply(override, tree, groups=choices)
    note = leave_out([*picked.values(), *implied(picked), *made], tree)
    for override in (override for override in rest if override not in made):
        apply(override, tree, groups=choices)
    return tree, note


def implied(picked: Mapping[str, Override]) -> Iterator[Override]:
    """What chosen files choose in turn, where the words do not: objective=ladd takes discriminator=trunk."""
    for group, override in picked.items():
        for file in (file for file in files(group) if file.stem == override.value()):
            found = _IMPLIED.findall(file.read_text(encoding="utf-8"))
            yield from (parse(f"{own}={choice}") for own, choice in found if own not in picked)


def resolved(tree: dict[str, Any]) -> DictConfig:
    """Resolve and check a complete tree; references to the environment stay where the value is text.

    They are resolved at each use, so that no file stores the values.
    """
    kept = {key: value for key, value in leaves(tree) if "${oc.env:" in str(value)}
    config: DictConfig = OmegaConf.create(tree)
    whole = plain(config)
    OmegaConf.resolve(config)
    for key in kept:
        kind, found = schema.root(whole).at(key).kind, at(whole, key)
        if kind and isinstance(found, str) and not kind.fits(found):
            apply(parse(f"{key}={found}"), whole)
            kept[key] = at(whole, key)
        OmegaConf.update(config, key, kept[key])
    schema.check(whole)
    return config


def leave_out(others: list[Override], tree: dict[str, Any]) -> str:
    """Remove options that belong to a constructor or choice that was replaced; return a note on them.

    experiment=shapes net=unet_pooled: the recipe set net.width and net.depth for its MLP. An option that no
    choice of the group takes stays, and is refused later; without a condition, guidance and checker go, too.
    """
    gone: dict[str, str] = {}
    for key in [option.key for option in schema.root(tree).leaves() if option.kind is None] if others else ():
        for override in others:
            group = override.key_or_group
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
        if at(node, "_target_") and schema.Option("", ANYTHING, node).within(name).kind is not None:
            return True
    return False


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


def parse(text: str) -> Override:
    """Parse one command-line word; several values are refused, as they belong to `lmsd sweep`."""
    override = parse_sweep(text)
    if not override.is_sweep_override():
        return override
    said = f"gives several choices; a run has one, try each: lmsd sweep {text}"
    if override.key_or_group not in groups():
        said = f"gives several values; write {as_list(override)}, or try each: lmsd sweep {text}"
    raise UserError(f"'{text}' {said}")


def parse_sweep(text: str) -> Override:
    """Parse one command-line word, which may have several values."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        key, _, value = text.partition("=")
        if value.startswith("~"):
            home = f"~ is read by the shell at the start of a word alone: {key}=$HOME{value[1:]}"
            raise UserError(f"cannot read '{text}': {home}") from error
        quoted = f"""{key}="'{value}'\"""" if "{" in value else "prompts='[a, b]'"
        if "=" not in text:
            raise UserError(f"cannot read '{text}': write option=value, e.g. {text}=...") from error
        hint = f"write option=value, and quote values with spaces, commas or braces: {quoted}"
        raise UserError(f"cannot read '{text}': {hint}") from error


def as_list(override: Override) -> str:
    """How to write comma-separated values, or a range, as a list."""
    key, _, value = str(override.input_line).partition("=")
    values = value if override.is_choice_sweep() else ",".join(map(str, override.sweep_iterator()))
    return f"a list as {key}=[{values}]"


def chooses(override: Override, choices: Iterable[str]) -> bool:
    """Whether an override chooses from a group rather than setting options."""
    return override.key_or_group in choices and not isinstance(override.value(), dict)


def written(override: Override) -> Any:
    """A word or path as it was typed, even if the grammar reads a number: resume=12e4, an id."""
    value = override.value()
    return str(override.input_line).partition("=")[2] if isinstance(value, bool | int | float) else value


def check_choice(override: Override, choices: dict[str, list[str]]) -> None:
    """Refuse an empty or unknown choice, and one without the place that its group needs."""
    if not chooses(override, choices):
        return
    group, value, chosen_at = override.key_or_group, written(override), places()
    listed, line = ", ".join(choices[group]), str(override.input_line)
    if value is None or override.is_delete():
        way = f"write {group}=none" if "none" in choices[group] else f"leave {group}= out"
        raise UserError(f"'{line}' is no choice: {way}, or take one of {listed}")
    if line.startswith("+") and (override.package or group) in chosen_at:
        raise UserError(f"'{line}': {group} has a choice to replace, write {line.lstrip('+')}")
    for item in value if isinstance(value, list) else [value]:
        if item not in choices[group]:
            hint = nearest(str(item), choices[group]) or makers(group, str(item)) or WAYS.get(group, "")
            refusal = UserError(f"{group} '{item}' not found{hint}; available: {listed}")
            raise renamed(group, item) or refusal
    ways = [f"{group}@{place}={value}" for place, name in chosen_at.items() if name == group]
    if override.package is None and group not in chosen_at and ways:
        raise UserError(f"{group}={value} does not say for what: write {' or '.join(ways)}")


def makers(group: str, name: str) -> str:
    """A hint on the choices of a group that build the class `name`: sampler=Tau is ddim or ancestral."""
    line = re.compile(rf"^_target_: (.*\.)?{re.escape(name)}$", re.M)
    found = sorted(path.stem for path in files(group) if line.search(path.read_text(encoding="utf-8")))
    return f"; did you mean {', '.join(found)}?" if found else ""


_CHOSEN = re.compile(r"^ *- (?:override |optional )?(/?)([\w/]+?)(?:@([\w.]+))?: ?[\w\[$]", re.M)


@cache
def places() -> dict[str, str]:
    """Where defaults lists choose from a group, and from which: optim.generator, optimizer."""
    found: dict[str, str] = {}
    for path in (config_dir() / "train.yaml", *files()):
        text = path.read_text(encoding="utf-8")
        plain = path.stem == "train" or "@package _global_" in text
        for _, group, place in _CHOSEN.findall(text.partition("\ndefaults:")[2].partition("\n\n")[0]):
            inside_of = "" if plain or not place else f"{path.parent.name}."
            found.setdefault(f"{inside_of}{place or group}", group)
    return found


def apply(override: Override, tree: dict[str, Any], *, groups: Iterable[str] = ()) -> None:
    """Set an option of a composed tree, or remove a named entry (~callbacks.progress)."""
    value = check_value(override, tree, groups=groups)
    *path, name = override.key_or_group.split(".")
    for part in path:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    if override.is_delete():
        del tree[name]
    else:
        tree[name] = value


def merged(before: Any, value: Any) -> Any:
    """Merge a mapping into the existing one; any other value replaces it."""
    if not isinstance(before, dict) or not isinstance(value, dict):
        return value
    return before | {key: merged(before.get(key), item) for key, item in value.items()}


def check_value(override: Override, tree: dict[str, Any], *, groups: Iterable[str] = ()) -> Any:
    """The value to set; refuses an unknown option and a value that it does not take.

    1e6 becomes a whole number where one is expected; a mapping is merged into the existing one.
    """
    key, value, gone = override.key_or_group, override.value(), override.is_delete()
    option, entry = schema.root(tree).at(key), key.rpartition(".")[0] in schema.ENTRIES
    kind, there = option.kind, option.value
    if kind is None or (gone and there in (None, Unread)):
        raise schema.unknown(key, [*groups, *schema.names(tree)])
    if gone and not entry:
        raise UserError(f"'{override.input_line}': options cannot be taken away; write {key}=null")
    if isinstance(value, dict) and kind.holds:
        schema.check_below(replace(option, value=merged(there, value)), tree)
        return merged(there, value)
    if value is None and (gone or NULL in kind.parts):
        return None
    if isinstance(there, dict) or (kind and kind.only_nodes and not kind.fits(value)):
        said, group = "null" if value is None else value, places().get(key, key)
        own = [name for name in schema.names(tree) if name.startswith(f"{key}.")]
        way = f"{key} has options of its own, {', '.join(own[:4]) or f'{key}.NAME._target_=MODULE.CLASS'}"
        if group != key:
            way = f"choose with {group}@{key}=, one of {', '.join(schema.groups()[group])}"
        way = f"take it away with '~{key}'" if entry and value is None else way
        raise UserError(f"{key}={said}: {way}")
    value = kind.read(value, str(override.input_line).partition("=")[2])
    if not str(value).startswith("${"):  # checked once it is resolved
        schema.refuse(key, value, kind)
    return value


def composed(name: str, overrides: list[str]) -> dict[str, Any]:
    """Compose with Hydra: plain data, unresolved; its errors become one line."""
    added = ",".join(f"file://{folder}" for folder in schema.own_configs())
    searched = [f"hydra.searchpath=[{added}]"] if added else []
    # leave out Hydra's own groups (launcher, logging, help), which take half of the time
    ConfigStore.instance().repo["hydra"]["config.yaml"].node.defaults = []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            found: Any = OmegaConf.to_container(compose(name, overrides=[*searched, *overrides]))
            return dict(found)
    except yaml.YAMLError as error:  # says which file and line, over several lines
        said = " ".join(str(error).split())
    except (ConfigCompositionException, HydraException, OmegaConfBaseException, ValueError) as error:
        said = str(error).splitlines()[0]
    raise UserError(f"the configuration cannot be composed: {said}")


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain data with its references resolved. Raises UserError for one that leads nowhere."""
    try:
        tree: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    return dict(tree)


def flatten(config: DictConfig) -> dict[str, Any]:
    """Leaves of a configuration by dotted name, unresolved: an interpolation is its own text."""
    return dict(leaves(OmegaConf.to_container(config)))
