"""The schema of a configuration: which options there are, what each may be, what it is when nobody says.

The configuration is a tree of plain data. What a node takes is the signature of the constructor that it
names, or the class that its own annotation names (`settings.Train` at the root), read from source: nothing is
imported to find out. The composed whole is looked at, so that a typo in an experiment's file is refused
as one on the command line is.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.signatures import (
    ANYTHING,
    DEFINED,
    NODE,
    NULL,
    ROOT,
    Argument,
    Kind,
    Signature,
    Unread,
    find,
    fits,
    like,
    parts,
    signature,
    words,
    written,
)
from lmsd.cli.config.suggest import nearest, renamed
from lmsd.errors import UserError, shown
from lmsd.ranks import shares
from lmsd.spec import RENAMED, allowed_names, forbidden, targets

HANDED: Mapping[str, tuple[str, ...]] = {
    "net": ("sizes", "channels", "image_size", "token_dim", "pooled_dim", "z_dim"),
    "generator": ("net", "schedule", "process", "conditioner", "codec", "channels", "image_size"),
    "discriminator": ("process", "generator", "cond_dim", "features", "marginal"),
    "discriminator.trunk": ("shape",),
    "rollback": ("samples",),
    "objective": ("captions",),
    "optim.*": ("params",),
    "logger.*": ("save_dir",),
}
"""Arguments by which parts learn of each other, at the places of their nodes: no options."""

METRICS = "evaluate.metrics"
ENTRIES = ("callbacks", "logger", METRICS)
"""Nodes of named objects: any may be added, any taken away."""

THERE: Mapping[str, tuple[str, ...]] = {METRICS: ("torchmetrics.",)}
"""What constructors may begin with at one place alone, beside the allow-list."""

WHOLE: Kind = {"$ref": f"{DEFINED}{ROOT}"}


def config_dir() -> Path:
    """The folder of configurations: the repository's, or the installed package's."""
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
    """What a node of a plain tree holds; nothing where it is a value."""
    return node if isinstance(node, dict) else {}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree by dotted name; an empty mapping is a leaf."""
    for key, value in held(node).items():
        yield from leaves(value, below(prefix, key))
    if prefix and not held(node):
        yield prefix, node


def below(path: str, name: object) -> str:
    """The dotted name of what a node holds."""
    return f"{path}.{name}" if path else str(name)


def at(tree: Any, path: str) -> Any:
    """The node at a dotted name, the tree itself at ""; None where there is none."""
    for part in path.split(".") if path else ():
        tree = held(tree).get(part)
    return tree


@dataclass(frozen=True)
class Option:
    """An option of a node: its dotted name and its own, its kind, its value or default.

    kind: None where nothing takes it; value: Unread where nobody says; whole: whether a completed tree has
    it; said: what is said of its node.
    """

    key: str
    name: Any
    kind: Kind | None
    value: Any
    whole: bool
    argument: Argument | None
    said: str

    @property
    def about(self) -> str:
        """One line on it; of its node where it has none."""
        return self.argument.about if self.argument else self.said


def taken(node: Any, kind: Kind, path: str) -> Signature | None:
    """What a node takes: its constructor, or the class that its kind names, but for what is handed to it."""
    named = [str(part["$ref"]).removeprefix(DEFINED) for part in parts(kind) if "$ref" in part]
    found = next((signature(str(target)) for target in (held(node).get("_target_"), *named) if target), None)
    handed = next((names for place, names in HANDED.items() if fnmatchcase(path, place)), ())
    return found and Signature({k: v for k, v in found.arguments.items() if k not in handed}, found.more)


def inside(node: Any, kind: Kind, found: Signature | None, name: str) -> Kind | None:
    """The kind of an option of a node, of which `found` is taken; None for one that is not there.

    What has no constructor of its own (the root, optim) may hold nodes for further roles, which name theirs.
    """
    if name.startswith("_"):
        return ANYTHING
    if found is None:
        whole = next(filter(is_node, parts(kind)), None)
        return None if whole is None else whole.get("additionalProperties") or like(at(node, name))
    if name in found.arguments:
        return found.arguments[name].kind
    role = at(node, "_target_") is None and at(node, f"{name}._target_") is not None
    return ANYTHING if found.more or role else None


def kind_at(tree: Mapping[str, Any], key: str) -> Kind | None:
    """What the option `key` takes; None for one that is not there."""
    node: Any = tree
    kind: Kind | None = WHOLE
    path = ""
    for name in key.split("."):
        kind = None if kind is None else inside(node, kind, taken(node, kind, path), name)
        node, path = at(node, name), below(path, name)
    return kind


def entries(node: Any, kind: Kind, path: str, said: str = "") -> Iterator[Option]:
    """What a node holds, and what its constructor takes beside it; said: what is said of the node."""
    found, given = taken(node, kind, path), held(node)
    known = found.arguments if found and given is node else {}
    whole = [name for name in given if name not in known]
    whole += [name for name, argument in known.items() if name in given or argument.filled]
    for name in dict.fromkeys([*whole, *known]):
        argument, kept = known.get(name), name in whole
        value = given.get(name, argument.default if argument else Unread)
        within = inside(node, kind, found, str(name))
        yield Option(below(path, name), name, within, value, kept, argument, said)


def complete(node: Any, kind: Kind = WHOLE, path: str = "") -> Any:
    """A tree with the defaults that our own constructors and the user's have for what it leaves out.

    Those of other libraries stay theirs, as do defaults that are no plain values.
    """
    match node:
        case [*items]:
            return [complete(item, kind.get("items", ANYTHING), path) for item in items]
        case dict():
            whole = (option for option in entries(node, kind, path) if option.whole)
            return {
                option.name: complete(option.value, option.kind or ANYTHING, option.key) for option in whole
            }
    return node


def options(node: Any, kind: Kind = WHOLE, path: str = "", said: str = "") -> Iterator[Option]:
    """Every option of a completed tree, and what nothing takes (kind None); said: what is said of it."""
    for option in entries(node, kind, path, said):
        if option.kind is not None and held(option.value):
            yield from options(option.value, option.kind, option.key, option.about)
        elif option.value is not Unread and not str(option.name).startswith("_"):
            yield option


def names(tree: Any) -> list[str]:
    """The options of a completed tree, by their dotted names."""
    return [option.key for option in options(tree) if option.kind is not None]


def unknown(key: str, known: Iterable[str]) -> UserError:
    """The sentence on an option that is not there, or has another name now."""
    names = [name for name in known if name != key and "._" not in name]
    top = key.partition(".")[0]
    where = f" {top}" if any(name.startswith(f"{top}.") for name in names) else ""
    told = f"unknown option '{key}'{nearest(key, names)}  (all options: lmsd train --options{where})"
    return renamed(key) or UserError(told)


def refuse(key: str, value: Any, kind: Kind) -> None:
    """Raise UserError unless the value fits."""
    if fits(kind, value):
        return
    hint = nearest(str(value), map(str, kind["enum"])) if "enum" in kind else ""
    if any(part.get("type") == "string" for part in parts(kind)) and isinstance(value, list | dict):
        hint = ", but a list" if isinstance(value, list) else ", but a mapping"
    if any(part.get("type") == "array" and fits(part, [value]) for part in parts(kind)):
        hint = f": write {key}=[{shown(key, value)}]"
    raise UserError(f"{key}={written(shown(key, value))} is not {words(kind)}{hint}")


def coerced(value: Any, kind: Kind, text: str) -> Any:
    """A value as an option of a kind takes it: where words belong, the text; 1e6 for a whole number."""
    names = [part.get("type", "" if part else "number") for part in parts(kind)]
    if "string" in names and not any(name in names for name in ("integer", "number", "boolean")):
        return text if isinstance(value, int | float) else value
    whole = isinstance(value, float) and value.is_integer() and not fits(kind, value)
    return int(value) if whole and fits(kind, int(value)) else value


def check(tree: dict[str, Any]) -> None:
    """Refuse forbidden constructors, unknown names and wrong values in a composed, resolved configuration."""
    for target, place in targets(tree):
        check_target(target, also_at(place))
    for group in ENTRIES:
        for name, node in held(at(tree, group)).items():
            key = f"{group}.{name}"
            if node is None:
                raise UserError(f"{key}=null: take it away with '~{key}'")
            if key != "logger.auto" and "_target_" not in held(node):
                hint = nearest(str(name), [other for other in at(tree, group) if other != name])
                way = f"one of your own begins with {key}._target_=MODULE.CLASS"
                raise UserError(f"there is no {key}{hint}; {way}")
    check_node(tree, tree, WHOLE, "")


def check_target(target: str, also: tuple[str, ...]) -> None:
    """What `lmsd.spec.locate` refuses, as far as that shows without importing anything."""
    target, allowed = RENAMED.get(target, target), (*allowed_names(), *also)
    module, _, name = target.rpartition(".")
    if not target.startswith(allowed) or not all(part.isidentifier() for part in target.split(".")):
        raise forbidden(target, also)
    found = find(module, name) if target.startswith("lmsd.") else None
    if found is None and target.startswith("lmsd."):
        raise UserError(f"_target_ '{target}' is not there: {module} defines no {name}")
    if found is not None and not f"{found.module}.".startswith(allowed):
        raise forbidden(target)


def also_at(path: str) -> tuple[str, ...]:
    """What constructors may begin with at a dotted name, beside the allow-list."""
    return next((also for place, also in THERE.items() if path.startswith(f"{place}.")), ())


def check_node(tree: dict[str, Any], node: Any, kind: Kind, path: str) -> None:
    """Refuse unknown names and wrong values below a node of a tree, at a dotted name."""
    for item in node if isinstance(node, list) else ():
        check_node(tree, item, kind.get("items", ANYTHING), path)
    found = list(entries(node, kind, path))
    for option in found:
        key, within, value = option.key, option.kind, option.value
        if not option.whole or str(option.name).startswith("_") or _unresolved(value):
            continue
        if within is None:
            near = [other.key for other in found if other.kind is not None]
            raise unknown(key, near if path else [*near, *names(tree)])
        named, nothing = "_target_" in held(value), value is None and "_target_" in node
        if isinstance(value, dict) and not named and NODE in parts(within) and only_nodes(within):
            raise UserError(
                f"{key} gives {', '.join(map(str, value)) or 'nothing'} and no _target_, so that nothing can "
                f"be built of it: add {key}._target_=MODULE.CLASS, or leave {key} out"
            )
        if not nothing and not (
            isinstance(value, dict) and is_node(within)
        ):  # nothing: its constructor speaks
            refuse(key, value, within)
        check_node(tree, value, within, key)


def _unresolved(value: Any) -> bool:
    """Whether it stands for a value: a reference, looked at when it is resolved, or one to be given."""
    return value == "???" or str(value).startswith("${")


def is_node(kind: Kind) -> bool:
    """Whether an object may stand there, with options of its own."""
    return any(not part or "$ref" in part or "object" in part.get("type", ()) for part in parts(kind))


def only_nodes(kind: Kind) -> bool:
    """Whether nothing may stand there but what has options of its own, or null."""
    return all(is_node(part) or part == NULL for part in parts(kind))


INTERACTIVE = ("bash", "interactive")
"""Names of SLURM's jobs in which ranks are started by hand."""


def check_limits(config: DictConfig) -> None:
    """Refuse options that do not go together, and a mandatory one that was not given."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value of its own: give {key}=...")
    edm = config.schedule.get("_target_", "").endswith(".EDM")
    if config.generator.get("precondition") == "edm" and not edm:
        raise UserError(
            "generator.precondition=edm is for schedule=edm, where alpha = 1; take schedule=edm with it, or "
            "generator.precondition=none"
        )
    if config.devices != "auto":  # looked at once the devices are counted
        shares(config.batch_size, config.devices * config.num_nodes, config.micro_batches)
        check_guidance(config)


def check_guidance(config: DictConfig) -> None:
    """Refuse guidance away from what a run never learned, its images without a condition, and at no times.

    Learning from rewards begins with a generator that has learned them elsewhere, or has not.
    """
    interval, guidance = config.evaluate.interval, config.evaluate.guidance
    dropped = [
        value for key, value in leaves(OmegaConf.to_container(config.objective)) if key.endswith("_dropout")
    ]
    if guidance != 1.0 and "reward" not in config.objective and not any(dropped):
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (caption_dropout=0 in its objective): take guidance=1, or train with caption_dropout=0.1"
        )
    if interval is None:
        return
    said = f"evaluate.interval={list(interval)}"
    if interval[0] > interval[1]:
        raise UserError(f"{said} is no [low, high]: give two times, the lower one first")
    if guidance == 1.0:
        raise UserError(
            f"{said} says where guidance acts, and evaluate.guidance=1 is none: give another guidance, or "
            "evaluate.interval=null"
        )


def check_tasks(config: DictConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a job of SLURM's whose tasks are not the ranks that the configuration asks for."""
    if "SLURM_NTASKS" not in environment or "TORCHELASTIC_RUN_ID" in environment:
        return
    name = environment.get("SLURM_JOB_NAME")
    if name in INTERACTIVE:
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # srun in salloc
            raise UserError(
                f"the job's name, {name}, says that ranks are started by hand, and each task would train a "
                "run of its own: start them by srun --job-name=train lmsd train ..."
            )
        return
    tasks, ranks = int(environment["SLURM_NTASKS"]), config.devices * config.num_nodes
    per_node, nodes = environment.get("SLURM_NTASKS_PER_NODE"), environment.get("SLURM_NNODES")
    srun = "SLURM_STEP_ID" in environment
    alone = ranks == 1 and (tasks == 1 or (per_node is not None and not srun))
    placed = per_node == str(config.devices) and nodes in (None, str(config.num_nodes))
    if not alone and not (tasks == ranks and srun and placed):
        raise UserError(
            f"SLURM_NTASKS={tasks}, and devices={config.devices} num_nodes={config.num_nodes} are {ranks} "
            f"ranks, each a task: ask for --nodes={config.num_nodes} --ntasks-per-node={config.devices}, and "
            "start them by srun lmsd train ..."
        )
