"""YAML and command-line overrides → one resolved configuration.

Hydra composes the groups; this module refuses what Hydra lets pass or explains badly: unknown options (also
with '+'), unknown choices of a group, a word where a number belongs, several values outside a sweep.
"""

import gc
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
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
from lmsd.cli.config.limits import check_limits
from lmsd.cli.config.schema import at, leaves
from lmsd.cli.config.suggest import nearest, renamed
from lmsd.errors import UserError

if yaml.__with_libyaml__:  # what omegaconf reads with, ten times as fast
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]

_IMPLIED = re.compile(r"^ *- override /(\w+): (\w+)", re.MULTILINE)
WAYS = {"data": "; name your shards with data.shards=FOLDER"}
"""Hints for choices that people look for under another name."""


def config_dir() -> Path:
    """The configuration folder: the repository's, or the installed package's."""
    here = Path(__file__).resolve()
    beside = here.parents[4] / "configs"
    return beside if (beside / "train.yaml").is_file() else here.parents[2] / "configs"


def own_configs() -> list[Path]:
    """The user's own folders of config groups, which add to ours: LMSD_CONFIG_DIR, separated as in PATH."""
    named = filter(None, os.environ.get("LMSD_CONFIG_DIR", "").split(os.pathsep))
    folders = [Path(word).resolve() for word in named]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"LMSD_CONFIG_DIR names {folder}, which is no folder")
    return folders


def files(group: str = "*") -> list[Path]:
    """The files of a config group, or of all: ours, then the user's."""
    return [path for root in (config_dir(), *own_configs()) for path in sorted(root.glob(f"{group}/*.yaml"))]


def groups() -> dict[str, list[str]]:
    """The choices of every config group, by its name."""
    found: dict[str, set[str]] = {}
    for path in files():
        found.setdefault(path.parent.name, set()).add(path.stem)
    return {name: sorted(found[name]) for name in sorted(found)}


def load(words: Sequence[str], *, run: bool = False) -> DictConfig:
    """Compose train.yaml with words, fill in the defaults, resolve references and check all of it.

    run: refuse options that do not go together, too.
    """
    collecting = gc.isenabled()
    gc.disable()  # almost nothing is freed here, and collections would take a tenth of the time
    try:
        picked, others, choices = divided([parse(word) for word in words])
        tree: Any = composed([str(override.input_line) for override in picked.values()])
        chosen = [*picked.values(), *implied(picked)]
        settle = partial(schema.settled, picked=chosen, words=others, nodes=nodes, groups=choices, read=parse)
        for step in (settle, check_limits) if run else (settle,):
            tree = step(tree)
    finally:
        if collecting:
            gc.enable()
    config: DictConfig = tree
    return config


def divided(overrides: list[Override]) -> tuple[dict[str, Override], list[Override], dict[str, list[str]]]:
    """The words that choose from groups, those that set options, and the choices of all groups."""
    choices, picked, others = groups(), dict[str, Override](), list[Override]()
    for override in overrides:
        if not chooses(override, choices):
            others.append(override)
            continue
        check_choice(override, choices)
        before = picked.setdefault(override.get_key_element().lstrip("+"), override)
        if written(before) != written(override):
            said = f"{before.input_line} and {override.input_line}: one run has one {override.key_or_group}"
            raise UserError(f"{said}, leave one of the two out")
    placed = places().items() if others else ()
    ways = {f"{name}@{place}": choices[name] for place, name in placed if name != place}
    return picked, others, {**choices, **ways}


def implied(picked: Mapping[str, Override]) -> Iterator[Override]:
    """What chosen files choose in turn, where the words do not: objective=ladd takes discriminator=trunk."""
    for group, override in picked.items():
        for file in (file for file in files(group) if file.stem == override.value()):
            found = _IMPLIED.findall(file.read_text(encoding="utf-8"))
            yield from (parse(f"{own}={choice}") for own, choice in found if own not in picked)


def nodes(group: str) -> Iterator[Any]:
    """The node that each choice of a group describes."""
    for file in files(group):
        text = file.read_text(encoding="utf-8")
        tree = yaml.safe_load(text) or {}
        yield at(tree, group) if "@package _global_" in text else tree


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
        if "=" not in text:
            raise UserError(f"cannot read '{text}': write option=value, e.g. {text}=...") from error
        quoted = f"""{key}="'{value}'\"""" if "{" in value else "prompts='[a, b]'"
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


def composed(overrides: list[str]) -> dict[str, Any]:
    """Compose with Hydra: plain data, unresolved; its errors become one line."""
    added = ",".join(f"file://{folder}" for folder in own_configs())
    searched = [f"hydra.searchpath=[{added}]"] if added else []
    # leave out Hydra's own groups (launcher, logging, help), which take half of the time
    ConfigStore.instance().repo["hydra"]["config.yaml"].node.defaults = []
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            found: Any = OmegaConf.to_container(compose("train", overrides=[*searched, *overrides]))
            return dict(found)
    except yaml.YAMLError as error:  # says which file and line, over several lines
        said = " ".join(str(error).split())
    except (ConfigCompositionException, HydraException, OmegaConfBaseException, ValueError) as error:
        said = str(error).splitlines()[0]
    raise UserError(f"the configuration cannot be composed: {said}")


def flatten(config: DictConfig) -> dict[str, Any]:
    """Leaves of a configuration by dotted name, unresolved: an interpolation is its own text."""
    return dict(leaves(OmegaConf.to_container(config)))
