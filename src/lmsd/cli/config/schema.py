"""The schema of a configuration: which options exist, what values each takes, and its default.

The configuration is a tree of plain data. A node takes the arguments of the constructor that it names, or the
fields of the class that its annotation names (`settings.Train` at the root), both read from source without
importing anything. The composed tree is checked as a whole, so that a typo in an experiment's file is refused
like one on the command line.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd.cli.config.refusals import refusal, unknown, written
from lmsd.cli.config.signatures import ANYTHING, NULL, ROOT, Argument, Kind, Unread, entries, permit
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError, shown
from lmsd.ranks import launched_rank

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

HANDED: Mapping[str, tuple[str, ...]] = {
    "net": ("sizes", "channels", "image_size", "token_dim", "pooled_dim", "z_dim"),
    "generator": ("net", "schedule", "process", "conditioner", "codec", "channels", "image_size"),
    "discriminator": ("process", "generator", "cond_dim", "features", "marginal", "smooth"),
    "discriminator.trunk": ("shape",),
    "rollback": ("samples", "stop"),
    "objective": ("captions",),
    "optim.*": ("params",),
    "logger.*": ("save_dir",),
}
"""Arguments that one part is given by another, by the place of its node: they are not options."""
METRICS = "evaluate.metrics"
ENTRIES = ("callbacks", "logger", METRICS)
"""Nodes that hold named objects, which can be added and removed."""
LIBRARIES = ("torchmetrics.",)
"""Prefixes allowed for the constructors of metrics, in addition to the allow-list."""
WHOLE = Kind.of(ROOT)


def held(node: Any) -> Mapping[str, Any]:
    """The entries of a node in a plain tree; none if it is a value."""
    return node if isinstance(node, dict) else {}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree by dotted name; an empty mapping counts as one."""
    for key, value in held(node).items():
        yield from leaves(value, f"{prefix}.{key}".lstrip("."))
    if prefix and not held(node):
        yield prefix, node


def at(tree: Any, path: str) -> Any:
    """The value at a dotted name ("" is the tree itself); None if there is none."""
    for part in path.split(".") if path else ():
        tree = held(tree).get(part)
    return tree


@dataclass(frozen=True)
class Option:
    """An option of a tree: its dotted name, kind, and value or default. A node has options of its own.

    kind: None if nothing takes it; value: Unread if none is known; whole: a completed tree contains it; fits:
    the value is allowed; argument: of its node's constructor.
    """

    key: str
    kind: Kind | None
    value: Any
    whole: bool = True
    fits: bool = True
    argument: Argument | None = None
    node: "Option | None" = None

    @cached_property
    def inner(self) -> "dict[Any, Option]":
        """The entries of a node and the other arguments of its constructor by name; the items of a list."""
        found = entries(self.kind, self.value, handed(self.key), libraries(self.key))
        place = f"{self.key}.{{}}".lstrip(".") if not isinstance(self.value, list) else self.key
        return {name: Option(place.format(name), *entry, self) for name, entry in found.items()}

    def at(self, key: str) -> "Option":
        """The option below with this dotted name, relative to this one; it need not be there yet."""
        name, _, rest = key.partition(".")
        node = self if name in self.inner else Option(self.key, self.kind, {**held(self.value), name: Unread})
        return node.inner[name].at(rest) if rest else node.inner[name]

    def complete(self) -> Any:
        """The value, with the defaults of our own and the user's constructors filled in.

        Defaults of other libraries, and those that are not plain values, are left out.
        """
        match self.value:
            case list():
                return [option.complete() for option in self.inner.values()]
            case dict():
                return {name: option.complete() for name, option in self.inner.items() if option.whole}
        return self.value

    def leaves(self) -> "Iterator[Option]":
        """All options below that are not nodes, and entries that nothing takes."""
        for name, option in self.inner.items():
            if option.kind is not None and held(option.value):
                yield from option.leaves()
            elif option.value is not Unread and not str(name).startswith("_"):
                yield option


def handed(key: str) -> Sequence[str]:
    """The arguments of a node that are no options."""
    return next((names for place, names in HANDED.items() if fnmatchcase(key, place)), ())


def libraries(key: str) -> tuple[str, ...]:
    """The libraries that a node's entries may come from, in addition to the allow-list."""
    return LIBRARIES if f"{key}.".startswith(f"{METRICS}.") else ()


def root(tree: Any) -> Option:
    """A whole configuration."""
    return Option("", WHOLE, tree)


def names(tree: Any) -> list[str]:
    """The names of all options of a tree, including those at their defaults."""
    return [option.key for option in root(root(tree).complete()).leaves() if option.kind is not None]


def misfit(option: Option, before: Option, groups: Mapping[str, list[str]]) -> UserError:
    """The error for a value that an option does not take; before: what it was; groups: see `settled`."""
    key, kind, value = option.key, option.kind or ANYTHING, option.value
    only_nodes = all(part.holds or part == NULL for part in kind.parts)
    path, _, name = key.rpartition(".")
    absent = path in ENTRIES and only_nodes and "_target_" not in held(before.value)
    if "_target_" in held(value):
        permit(str(value["_target_"]), libraries(path))
    if path in ENTRIES and value is None:
        return UserError(f"{key}=null: take it away with '~{key}'")
    if absent:
        hint = nearest(name, [other for other in (option.node or option).inner if other != name])
        return UserError(f"there is no {key}{hint}; one of your own begins with {key}._target_=MODULE.CLASS")
    if isinstance(value, dict) and kind.holds:
        said = (
            f"{key} gives {', '.join(value) or 'nothing'} and no _target_, so that nothing can be built of it"
        )
        return UserError(f"{said}: add {key}._target_=MODULE.CLASS, or leave {key} out")
    own = [inner.key for inner in before.leaves()][:4]
    ways = [way for way in groups if way.endswith(f"@{key}")]
    if only_nodes and (ways or own or key in ENTRIES):
        way = f"{key} has options of its own, {', '.join(own) or f'{key}.NAME._target_=MODULE.CLASS'}"
        way = f"choose with {ways[0]}=, one of {', '.join(groups[ways[0]])}" if ways else way
        return UserError(f"{key}={written(shown(key, value))}: {way}")
    return refusal(key, value, kind)


def settled(
    tree: dict[str, Any],
    picked: Sequence["Override"],
    words: Sequence["Override"],
    nodes: Callable[[str], Iterable[Any]],
    groups: Mapping[str, list[str]],
    read: "Callable[[str], Override]",
) -> DictConfig:
    """The whole configuration of a composed tree: with the options that words set, completed and checked.

    picked: the words that it was composed with; nodes: of all choices of a group; groups: the choices of
    every group, also by GROUP@PLACE where that is elsewhere; read: parses a word.
    """
    replaced = {
        word.package or word.key_or_group: (str(word.input_line), partial(nodes, word.key_or_group))
        for word in picked
    }
    made = [word for word in words if word.key_or_group.endswith("._target_")]
    for word in made:
        before = {**held(at(tree, word.key_or_group.removesuffix("._target_")))}
        replaced[word.key_or_group] = (str(word.input_line), partial(iter, [before]))
        edit(tree, word, groups)
    note = leave_out(tree, replaced)
    for word in words:
        if word not in made:
            edit(tree, word, groups)
    config = resolved(root(tree).complete(), read)
    unread = check_read(config, [word.key_or_group for word in words])
    for told in (note, unread):
        if told and launched_rank() == 0:
            print(told, file=sys.stderr)
    return config


def check_read(config: DictConfig, keys: Iterable[str]) -> str:
    """Refuse options that the values of others leave unread, or return a note on them.

    keys: those that were typed; those of files may stay unread.
    """
    tree = plain(config)
    unread: dict[str, list[str]] = {}
    uncaptioned = str(at(tree, "conditioner._target_")).endswith(".NullConditioner")
    for key in keys:
        if uncaptioned and key.endswith(".caption_dropout"):
            raise UserError(f"{key} drops captions or classes, and conditioner=none has none: leave it out")
        node = root(tree)
        for name in key.split("."):
            option = node.at(name)
            kind = option.kind or ANYTHING
            told = idle(node, kind)
            if told and not kind.get("told"):
                raise UserError(f"{key} is not read with {told}")
            if told:
                unread.setdefault(told.partition(":")[0], []).append(key)
            node = option
    notes = [f"with {other} nothing reads {', '.join(keys)}" for other, keys in unread.items()]
    return f"note: {'; '.join(notes)}" if notes else ""


def idle(node: Option, kind: Kind) -> str:
    """The value of another option that leaves one of this kind unread, with the way out; else empty."""
    if "when" not in kind:
        return ""
    other, among = node.at(str(kind["when"])), kind.get("among") or ()
    if other.value in among if among else other.value != kind.get("unless"):
        return ""
    ways = " or ".join(f"{other.key}={way}" for way in among) or f"another {other.key}"
    return f"{other.key}={written(other.value)}: leave it out, or take {ways}"


def leave_out(tree: dict[str, Any], replaced: Mapping[str, tuple[str, Callable[[], Iterable[Any]]]]) -> str:
    """Remove options that belong to a constructor or choice that was replaced; return a note on them.

    replaced: by place (or its _target_), the word that did it, and what might have stood there.
    experiment=shapes net=unet_pooled: the recipe set net.width and net.depth for its MLP. An option that no
    choice of the group takes stays, and is refused later; without a condition, guidance and checker go, too.
    """
    gone: dict[str, str] = {}
    for key in [option.key for option in root(tree).leaves() if option.kind is None] if replaced else ():
        for word, (line, others) in replaced.items():
            place = f"{word.removesuffix('._target_')}."
            path, _, name = key.removeprefix(place).rpartition(".")
            nodes = [Option("", ANYTHING, at(node, path)) for node in others() if key.startswith(place)]
            if any(held(node.value).get("_target_") and node.at(name).kind is not None for node in nodes):
                gone.setdefault(key, line)
    if any(line == "conditioner=none" for line, _ in replaced.values()):
        used = (f"evaluate.{name}" for name in ("guidance", "checker"))
        gone |= {key: "conditioner=none" for key in used if at(tree, key) is not None}
    for key in gone:
        path, _, name = key.rpartition(".")
        del at(tree, path)[name]
    words = " ".join(dict.fromkeys(gone.values()))
    return f"note: left out for {words}, which takes none: {', '.join(gone)}" if gone else ""


def edit(tree: dict[str, Any], override: "Override", groups: Mapping[str, list[str]]) -> None:
    """Set an option of a composed tree, or remove a named entry (~callbacks.progress).

    Refuses an unknown option and a value that it does not take. 1e6 becomes a whole number where one is
    expected; a mapping is merged into the existing one.
    """
    key, value, gone = override.key_or_group, override.value(), override.is_delete()
    text, before = str(override.input_line).partition("=")[2], root(tree).at(key)
    path, _, name = key.rpartition(".")
    if before.kind is None or (gone and before.value in (None, Unread)):
        raise unknown(key, [*groups, *names(tree)])
    if gone:
        if path not in ENTRIES:
            raise UserError(f"'{override.input_line}': options cannot be taken away; write {key}=null")
        del at(tree, path)[name]
        return
    node = tree
    for part in filter(None, path.split(".")):
        node[part] = node = {**held(node.get(part))}
    node[name] = merged(before.value, value) if isinstance(value, dict) else (value, text)
    option = root(tree).at(key)
    node[name] = option.value
    if not text.startswith("${"):  # checked once it is resolved
        if not option.fits:
            raise misfit(option, before, groups)
        check(option, tree)


def merged(before: Any, value: Any) -> Any:
    """Merge a mapping into the existing one; any other value replaces it."""
    both = isinstance(before, dict) and isinstance(value, dict)
    return before | {key: merged(before.get(key), item) for key, item in value.items()} if both else value


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain data with its references resolved. Raises UserError for one that leads nowhere."""
    try:
        tree: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
    return dict(tree)


def resolved(tree: dict[str, Any], read: "Callable[[str], Override]") -> DictConfig:
    """Resolve and check a complete tree; references to the environment stay where the value is text.

    They are resolved at each use, so that no file stores the values.
    """
    kept = {key: value for key, value in leaves(tree) if "${oc.env:" in str(value)}
    config: DictConfig = OmegaConf.create(tree)
    whole = plain(config)
    OmegaConf.resolve(config)
    for key in kept:
        option = root(whole).at(key)
        if isinstance(option.value, str) and not option.fits:
            edit(whole, read(f"{key}={option.value}"), {})
            kept[key] = at(whole, key)
        OmegaConf.update(config, key, kept[key])
    check(root(whole), whole)
    return config


def check(node: Option, tree: dict[str, Any]) -> None:
    """Refuse forbidden constructors, unknown names and wrong values below a node of a resolved tree."""
    for name, option in node.inner.items():
        text = str(option.value)[:3]
        if str(name).startswith("_") or not option.whole or text == "???" or text.startswith("${"):
            continue
        if option.kind is None:
            near = [other.key for other in node.inner.values() if other.kind is not None]
            raise unknown(option.key, near if node.key else [*near, *names(tree)])
        if not option.fits or (node.key in ENTRIES and type(option.value) is list):
            raise misfit(option, option, {})
        check(option, tree)
