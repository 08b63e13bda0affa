"""The schema of a configuration: which options exist, what values each takes, and its default.

The configuration is a tree of plain data. A node takes the arguments of the constructor that it names, or the
fields of the class that its annotation names (`settings.Train` at the root), both read from source without
importing anything. The composed tree is checked as a whole, so that a typo in an experiment's file is refused
like one on the command line.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.signatures import (
    ANYTHING,
    NODE,
    NUMBERS,
    ROOT,
    Argument,
    Kind,
    Signature,
    Unread,
    find,
    signature,
)
from lmsd.cli.config.suggest import nearest, renamed
from lmsd.errors import UserError, shown
from lmsd.ranks import shares
from lmsd.spec import allowed, targets

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


def held(node: Any) -> Mapping[str, Any]:
    """The entries of a node in a plain tree; none if it is a value."""
    return node if isinstance(node, dict) else {}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree by dotted name; an empty mapping counts as one."""
    for key, value in held(node).items():
        yield from leaves(value, below(prefix, key))
    if prefix and not held(node):
        yield prefix, node


def below(path: str, name: object) -> str:
    """The dotted name of an entry of a node."""
    return f"{path}.{name}" if path else str(name)


def at(tree: Any, path: str) -> Any:
    """The value at a dotted name ("" is the tree itself); None if there is none."""
    for part in path.split(".") if path else ():
        tree = held(tree).get(part)
    return tree


@dataclass(frozen=True)
class Option:
    """An option of a tree: its dotted name, kind, and value or default. A node has options of its own.

    kind: None if nothing takes it; value: Unread if none is known; whole: a completed tree contains it.
    """

    key: str
    kind: Kind | None
    value: Any
    whole: bool = True
    argument: Argument | None = None
    node: "Option | None" = None

    @property
    def about(self) -> str:
        """One line of description, its own or that of its node."""
        of = self.argument or self.node
        return of.about if of else ""

    @cached_property
    def taken(self) -> Signature | None:
        """What the node's constructor, or the class that its kind names, takes from the configuration."""
        targets = (held(self.value).get("_target_"), *(self.kind or ANYTHING).sections)
        found = next((signature(str(target)) for target in targets if target), None)
        handed = next((names for place, names in HANDED.items() if fnmatchcase(self.key, place)), ())
        return found and Signature({k: v for k, v in found.arguments.items() if k not in handed}, found.more)

    def within(self, name: Any) -> "Option":
        """An option of this node; its kind is None if nothing takes it.

        A section without a constructor (the root, optim) may also hold the nodes of further roles.
        """
        found, node = self.taken, held(self.value)
        argument = found.arguments.get(name) if found else None
        value = node.get(name, argument.default if argument else Unread)
        kind = argument.kind if argument else None
        if found is None and self.kind is not None:
            holds = [part for part in self.kind.parts if part.holds]
            kind = holds[0].get("additionalProperties") or Kind.like(value) if holds else None
        role = "_target_" not in node and "_target_" in held(value)
        private = str(name).startswith("_") and self.kind is not None
        if private or (found and not argument and (found.more or role)):
            kind = ANYTHING
        whole = name in node or (argument is not None and argument.filled)
        return Option(below(self.key, name), kind, value, whole, argument, self)

    def at(self, key: str) -> "Option":
        """The option below with this dotted name, relative to this one."""
        name, _, rest = key.partition(".")
        return self.within(name).at(rest) if rest else self.within(name)

    @cached_property
    def inner(self) -> dict[Any, "Option"]:
        """The entries of a node and the other arguments of its constructor, by name."""
        given = held(self.value)
        known = self.taken.arguments if self.taken and given is self.value else {}
        names = dict.fromkeys([*(name for name in given if name not in known), *known])
        found = {name: self.within(name) for name in names}
        return dict(sorted(found.items(), key=lambda item: not item[1].whole))

    def complete(self) -> Any:
        """The value, with the defaults of our own and the user's constructors filled in.

        Defaults of other libraries, and those that are not plain values, are left out.
        """
        match self.value:
            case [*items]:
                of = (self.kind or ANYTHING).get("items", ANYTHING)
                return [Option(self.key, of, item).complete() for item in items]
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


def root(tree: Any) -> Option:
    """A whole configuration."""
    return Option("", WHOLE, tree)


def names(tree: Any) -> list[str]:
    """The dotted names of all options of a tree, including those at their defaults."""
    return [option.key for option in root(root(tree).complete()).leaves() if option.kind is not None]


def unknown(key: str, known: Iterable[str]) -> UserError:
    """The error for an option that does not exist, or has a new name."""
    names = [name for name in known if name != key and "._" not in name]
    top = key.partition(".")[0]
    where = f" {top}" if any(name.startswith(f"{top}.") for name in names) else ""
    told = f"unknown option '{key}'{nearest(key, names)}  (all options: lmsd train --options{where})"
    return renamed(key) or UserError(told)


UNITS = re.compile(r"(\d+(?:\.\d+)?) ?(k|m|%|px|x\1)", re.I)
POWERS = {"k": 1e3, "m": 1e6, "%": 0.01}
"""Numbers as people write them: 400k, 1.5M, 80%, 32px, 32x32."""


def refuse(key: str, value: Any, kind: Kind) -> None:
    """Raise UserError unless the value fits."""
    if kind.fits(value):
        return
    hint = nearest(str(value), map(str, kind["enum"])) if "enum" in kind else ""
    if kind.takes(*NUMBERS) and (unit := UNITS.fullmatch(str(value))):
        hint = f": units are not read, write {float(unit[1]) * POWERS.get(unit[2].lower(), 1):_.9g}"
    if kind.takes("string") and isinstance(value, list | dict):
        hint = ", but a list" if isinstance(value, list) else ", but a mapping"
    if any(part.get("type") == "array" and part.fits([value]) for part in kind.parts):
        hint = f": write {key}=[{shown(key, value)}]"
    raise UserError(f"{key}={written(shown(key, value))} is not {kind.words()}{hint}")


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def check(tree: dict[str, Any]) -> None:
    """Refuse forbidden constructors, unknown names and wrong values in a composed, resolved configuration."""
    for target, place in targets(tree):
        check_target(target, LIBRARIES if place.startswith(f"{METRICS}.") else ())
    for group in ENTRIES:
        for name, node in held(at(tree, group)).items():
            key = f"{group}.{name}"
            if node is None:
                raise UserError(f"{key}=null: take it away with '~{key}'")
            if key != "logger.auto" and "_target_" not in held(node):
                hint = nearest(str(name), [other for other in at(tree, group) if other != name])
                way = f"one of your own begins with {key}._target_=MODULE.CLASS"
                raise UserError(f"there is no {key}{hint}; {way}")
    check_below(root(tree), tree)


def check_read(tree: dict[str, Any], keys: Iterable[str]) -> str:
    """Refuse options that the values of others leave unread, or return a note on them.

    keys: those that were typed; those of files may stay unread.
    """
    unread: dict[str, list[str]] = {}
    uncaptioned = str(at(tree, "conditioner._target_")).endswith(".NullConditioner")
    for key in keys:
        if uncaptioned and key.endswith(".caption_dropout"):
            raise UserError(f"{key} drops captions or classes, and conditioner=none has none: leave it out")
        node = root(tree)
        for name in key.split("."):
            option = node.within(name)
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
    other, among = node.within(kind["when"]), kind.get("among") or ()
    if other.value in among if among else other.value != kind.get("unless"):
        return ""
    ways = " or ".join(f"{other.key}={way}" for way in among) or f"another {other.key}"
    return f"{other.key}={written(other.value)}: leave it out, or take {ways}"


def check_target(target: str, also: tuple[str, ...]) -> None:
    """Refuse what `lmsd.spec.locate` would, as far as that can be told without importing anything."""
    module, _, name = allowed(target, also).rpartition(".")
    if module.startswith("lmsd."):
        found = find(module, name)
        if found is None:
            raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
        allowed(target, also, within=found.module)


def check_below(node: Option, tree: dict[str, Any]) -> None:
    """Refuse unknown names and wrong values below a node of a tree."""
    for item in node.value if isinstance(node.value, list) else ():
        check_below(Option(node.key, (node.kind or ANYTHING).get("items", ANYTHING), item), tree)
    found = [option for name, option in node.inner.items() if not str(name).startswith("_")]
    for option in found:
        key, kind, value = option.key, option.kind, option.value
        if not option.whole or value == "???" or str(value).startswith("${"):  # not there yet
            continue
        if kind is None:
            near = [other.key for other in found if other.kind is not None]
            raise unknown(key, near if node.key else [*near, *names(tree)])
        described = isinstance(value, dict)
        if described and "_target_" not in value and kind.only_nodes and NODE in kind.parts:
            raise UserError(
                f"{key} gives {', '.join(map(str, value)) or 'nothing'} and no _target_, so that nothing can "
                f"be built of it: add {key}._target_=MODULE.CLASS, or leave {key} out"
            )
        left = value is None and "_target_" in node.value  # not given, which its constructor speaks of
        if not left and not (described and kind.holds):
            refuse(key, value, kind)
        check_below(option, tree)


def check_limits(config: DictConfig) -> None:
    """Refuse options that do not go together, and a missing mandatory one."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value of its own: give {key}=...")
    edm = config.schedule.get("_target_", "").endswith(".EDM")
    if config.generator.get("precondition") == "edm" and not edm:
        raise UserError(
            "generator.precondition=edm is for schedule=edm, where alpha = 1; take schedule=edm with it, or "
            "generator.precondition=none"
        )
    if config.devices == "auto":
        return  # looked at once the devices are counted
    shares(config.batch_size, config.devices * config.num_nodes, config.micro_batches)
    told = leaves(OmegaConf.to_container(config.objective))
    dropped = "reward" in config.objective or any(value for key, value in told if key.endswith("_dropout"))
    guidance, interval = config.evaluate.guidance, config.evaluate.interval
    if guidance != 1.0 and not dropped:  # before rewards, it was trained elsewhere
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (caption_dropout=0 in its objective): take guidance=1, or train with caption_dropout=0.1"
        )
    if interval is not None and interval[0] > interval[1]:
        said = "is no [low, high]: give two times, the lower one first"
        raise UserError(f"evaluate.interval={list(interval)} {said}")
    if interval is not None and guidance == 1.0:
        raise UserError(
            f"evaluate.interval={list(interval)} says where guidance acts, and evaluate.guidance=1 is none: "
            "give another guidance, or evaluate.interval=null"
        )


INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which ranks are started by hand."""


def check_tasks(config: DictConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a SLURM job whose tasks are not the ranks that the configuration asks for."""
    job = {name.removeprefix("SLURM_"): value for name, value in environment.items()}
    if "NTASKS" not in job or "TORCHELASTIC_RUN_ID" in job:
        return
    if job.get("JOB_NAME") in INTERACTIVE:
        if int(job.get("STEP_NUM_TASKS", "1")) > 1:  # srun in salloc
            raise UserError(
                f"the job's name, {job['JOB_NAME']}, says that ranks are started by hand, and each task "
                "would train a run of its own: start them by srun --job-name=train lmsd train ..."
            )
        return
    tasks, ranks, srun = int(job["NTASKS"]), config.devices * config.num_nodes, "STEP_ID" in job
    alone = ranks == 1 and (tasks == 1 or ("NTASKS_PER_NODE" in job and not srun))
    nodes = job.get("NNODES", str(config.num_nodes))
    placed = (job.get("NTASKS_PER_NODE"), nodes) == (str(config.devices), str(config.num_nodes))
    if not alone and not (tasks == ranks and srun and placed):
        raise UserError(
            f"SLURM_NTASKS={tasks}, and devices={config.devices} num_nodes={config.num_nodes} are {ranks} "
            f"ranks, each a task: ask for --nodes={config.num_nodes} --ntasks-per-node={config.devices}, and "
            "start them by srun lmsd train ..."
        )
