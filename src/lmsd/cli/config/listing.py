"""`lmsd train --options [group]`: every option with its kind, default and one line, read off the schema."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.compose import load
from lmsd.cli.config.folders import config_dir, groups, own_configs
from lmsd.cli.config.schema import leaves, parent, rule
from lmsd.cli.config.signatures import arguments
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError

_LINE = re.compile(r"^(\s*)([\w.]+):([^#]*?)(?:\s#\s(.*))?$")


def listing(words: list[str]) -> str:
    """The options of the groups among `words` (all without one), under the overrides among them."""
    names = [word for word in words if "=" not in word]
    config = load("train", [word for word in words if "=" in word])
    rows = table(config)
    tops = sorted({key.partition(".")[0] for key in rows})
    for name in names:
        if not any(key == name or key.startswith(f"{name}.") for key in rows) and name not in groups():
            raise UserError(f"no options '{name}'{nearest(name, tops)}; groups of options: {', '.join(tops)}")
    shown = {
        key: row
        for key, row in rows.items()
        if not names or any(key == n or key.startswith(f"{n}.") for n in names)
    }
    return "\n".join([*_choices(names), *_aligned(shown)])


def _choices(names: list[str]) -> list[str]:
    return [
        f"{group}=  one of {', '.join(found)}"
        for group, found in groups().items()
        if not names or group in names
    ]


def _aligned(rows: Mapping[str, tuple[str, str, str]]) -> list[str]:
    width = max((len(key) for key in rows), default=0)
    return [
        f"{key:{width}}  {f'{kind}; default {default}':46}  {about}"
        for key, (kind, default, about) in rows.items()
    ]


def table(config: DictConfig) -> dict[str, tuple[str, str, str]]:
    """Kind, default and meaning of every option of a configuration, by name."""
    tree: Any = OmegaConf.to_container(config)
    return {
        key: (rule(tree, key).words().partition(", e.g.")[0], _short(value), about(tree, key))
        for key, value in leaves(tree)
        if not key.rsplit(".", 1)[-1].startswith("_")
    }


def _short(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def about(tree: Mapping[str, Any], key: str) -> str:
    """One line on an option: the comment beside it in the YAML, or what the constructor's docstring says."""
    plain = comments(config_dir() / "train.yaml")
    name = key.rsplit(".", 1)[-1]
    _, target = parent(tree, key)
    taken = (arguments(target) if target else None) or {}
    said = plain.get(key) or noted().get((target, name)) or (taken[name].about if name in taken else "")
    return said or plain.get(key.rpartition(".")[0], "")


@cache
def comments(path: Path) -> dict[str, str]:
    """The comments at the ends of the lines of a YAML file, by dotted name."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        indent, key, _, said = match.groups()
        stack = [(depth, name) for depth, name in stack if depth < len(indent)]
        stack.append((len(indent), key))
        if said:
            found[".".join(name for _, name in stack)] = said.strip()
    return found


@cache
def noted() -> dict[tuple[str | None, str], str]:
    """The comments of all groups' files by constructor and argument."""
    found: dict[tuple[str | None, str], str] = {}
    for root in (config_dir(), *own_configs()):
        for path in sorted(root.glob("*/*.yaml")):
            tree: Any = OmegaConf.to_container(OmegaConf.load(path))
            for key, said in comments(path).items():
                _, target = parent(tree, key)
                found.setdefault((target, key.rsplit(".", 1)[-1]), said)
    return found
