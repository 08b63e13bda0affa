"""The schema of a configuration: which options there are, what each may be, what it is when nobody says.

The configuration is a tree of plain data. What a node takes is the signature of the constructor that it
names, or the class that its own annotation names (`settings.Train` at the root), read from source: nothing is
imported to find out. The composed whole is looked at, so that a typo in an experiment's file is refused
as one on the command line is.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.kinds import ANYTHING, NODE, NULL, Kind, fits, like, parts, words, written
from lmsd.cli.config.renamed import renamed
from lmsd.cli.config.signatures import DEFINED, LARGE, ROOT, Signature, Unread, check_target, signature
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError, shown
from lmsd.ranks import shares
from lmsd.spec import targets

HANDED: Mapping[str, tuple[str, ...]] = {
    "net": ("channels", "image_size", "token_dim", "pooled_dim", "z_dim"),
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
    folders = [
        Path(word).resolve() for word in os.environ.get("LMSD_CONFIG_DIR", "").split(os.pathsep) if word
    ]
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


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree by dotted name; an empty mapping is a leaf."""
    if not isinstance(node, dict) or (not node and prefix):
        yield prefix, node
        return
    for key, value in node.items():
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def at(tree: Any, path: str) -> Any:
    """The node at a dotted name, the tree itself at ""; None where there is none."""
    for part in path.split(".") if path else ():
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def taken(node: Any, kind: Kind) -> Signature | None:
    """What a node takes: the signature of its constructor, or of the class that its own kind names."""
    if isinstance(node, dict) and "_target_" in node:
        return signature(str(node["_target_"]))
    named = next((part["$ref"] for part in parts(kind) if "$ref" in part), None)
    return signature(named.removeprefix(DEFINED)) if named else None


def handed(path: str) -> tuple[str, ...]:
    """The arguments that the node at a dotted name gets from other parts."""
    return next((names for place, names in HANDED.items() if fnmatchcase(path, place)), ())


def inside(node: Any, kind: Kind, path: str, name: str) -> Kind | None:
    """The kind of an option of a node; None for one that is not there.

    What has no constructor of its own (the root, optim) may hold nodes for further roles, which name theirs.
    """
    found = taken(node, kind)
    if name.startswith("_"):
        return ANYTHING
    if found is not None:
        argument = None if name in handed(path) else found.arguments.get(name)
        role = at(node, "_target_") is None and at(node, f"{name}._target_") is not None
        return argument.kind if argument else ANYTHING if found.more or role else None
    for part in parts(kind):
        if is_node(part):
            within: Kind = part.get("additionalProperties", ANYTHING)
            return within or like(node.get(name) if isinstance(node, dict) else None)
    return None


def kind_at(tree: Mapping[str, Any], key: str) -> Kind | None:
    """What the option `key` takes; None for one that is not there."""
    node: Any = tree
    kind: Kind | None = WHOLE
    path = ""
    for name in key.split("."):
        kind = None if kind is None else inside(node, kind, path, name)
        node = node.get(name) if isinstance(node, dict) else None
        path = f"{path}.{name}" if path else name
    return kind


def complete(node: Any, kind: Kind = WHOLE, path: str = "") -> Any:
    """A tree with the defaults that our own constructors and the user's have for what it leaves out.

    Those of other libraries stay theirs, as do defaults that are no plain values.
    """
    if isinstance(node, list):
        return [complete(item, kind.get("items", ANYTHING), path) for item in node]
    if not isinstance(node, dict):
        return node
    found, whole = taken(node, kind), dict(node)
    for name, argument in found.arguments.items() if found else ():
        here = whole.pop(name, Unread)  # in the order of the signature
        ours = name not in handed(path) and argument.found.module.partition(".")[0] not in LARGE
        if here is Unread and ours:
            here = {} if "$ref" in argument.kind else argument.default
        if here is not Unread:
            whole[name] = here
    return {
        name: complete(value, inside(whole, kind, path, str(name)) or ANYTHING, _below(path, name))
        for name, value in whole.items()
    }


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


Row = tuple[str, Kind, Any, str]
"""An option: its dotted name, its kind, its value or default, one line on it."""


def options(node: Any, kind: Kind = WHOLE, path: str = "", said: str = "") -> Iterator[Row]:
    """Every option of a completed tree; said: what is said of the node, and so of what has no line."""
    found = taken(node, kind)
    known = {name: arg for name, arg in found.arguments.items() if name not in handed(path)} if found else {}
    for name in dict.fromkeys([*node, *known]):
        if str(name).startswith("_"):
            continue
        key, within = _below(path, name), inside(node, kind, path, str(name)) or ANYTHING
        value = node[name] if name in node else known[name].default
        about = known[name].about if name in known else said
        if isinstance(value, dict) and value:
            yield from options(value, within, key, about)
        elif value is not Unread:
            yield key, within, value, about


def unknown(key: str, known: Iterable[str]) -> UserError:
    """The sentence on an option that is not there, or has another name now."""
    told = renamed(key)
    if told is not None:
        return told
    names = [name for name in known if name != key and "._" not in name]
    top = key.partition(".")[0]
    where = f" {top}" if any(name.startswith(f"{top}.") for name in names) else ""
    return UserError(
        f"unknown option '{key}'{nearest(key, names)}  (all options: lmsd train --options{where})"
    )


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


def check(tree: dict[str, Any]) -> None:
    """Refuse forbidden constructors, unknown names and wrong values in a composed, resolved configuration."""
    for target, place in targets(tree):
        check_target(target, also_at(place))
    for group in ENTRIES:
        _check_entries(group, at(tree, group))
    check_node(tree, tree, WHOLE, "")


def also_at(path: str) -> tuple[str, ...]:
    """What constructors may begin with at a dotted name, beside the allow-list."""
    return next((also for place, also in THERE.items() if path.startswith(f"{place}.")), ())


def _check_entries(group: str, entries: Any) -> None:
    """Refuse an entry of a group of named ones that is no object and names no constructor."""
    for name, node in entries.items() if isinstance(entries, dict) else ():
        key = f"{group}.{name}"
        if key == "logger.auto" or (isinstance(node, dict) and "_target_" in node):
            continue
        if node is None:
            raise UserError(f"{key}=null: take it away with '~{key}'")
        hint = nearest(str(name), [other for other in entries if other != name])
        raise UserError(f"there is no {key}{hint}; one of your own begins with {key}._target_=MODULE.CLASS")


def check_node(tree: dict[str, Any], node: Any, kind: Kind, path: str) -> None:
    """Refuse unknown names and wrong values below a node of a tree, at a dotted name."""
    if isinstance(node, list):
        for item in node:
            check_node(tree, item, kind.get("items", ANYTHING), path)
    for name, value in node.items() if isinstance(node, dict) else ():
        key, within = _below(path, name), inside(node, kind, path, str(name))
        if str(name).startswith("_") or value == "???":
            continue
        if within is None:
            near = taken(node, kind)
            ours = [_below(path, other) for other in near.arguments] if near else []
            raise unknown(key, ours if path else [*ours, *(found[0] for found in options(tree))])
        if isinstance(value, dict) and "_target_" not in value and is_object(within):
            raise UserError(
                f"{key} gives {', '.join(map(str, value)) or 'nothing'} and no _target_, so that nothing can "
                f"be built of it: add {key}._target_=MODULE.CLASS, or leave {key} out"
            )
        left = value is None and "_target_" in node  # not given, which its constructor speaks of
        if not left and not (isinstance(value, dict) and is_node(within)):
            refuse(key, value, within)
        check_node(tree, value, within, key)


def is_node(kind: Kind) -> bool:
    """Whether an object may stand there, with options of its own."""
    return any(not part or "$ref" in part or "object" in part.get("type", ()) for part in parts(kind))


def is_object(kind: Kind) -> bool:
    """Whether nothing may stand there but an object that names its constructor."""
    return NODE in parts(kind) and all(part in (NODE, NULL) for part in parts(kind))


def strangers(node: Any, kind: Kind = WHOLE, path: str = "") -> Iterator[str]:
    """Options below a node that the constructor they stand with does not take, by dotted name."""
    for name, value in node.items():
        key, within = _below(path, name), inside(node, kind, path, str(name))
        if within is None:
            yield key
        elif isinstance(value, dict):
            yield from strangers(value, within, key)


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
    if config.devices == "auto":
        return  # looked at once the devices are counted
    devices = config.devices * config.num_nodes
    shares(config.batch_size, devices, config.micro_batches)
    check_guidance(config, config.evaluate.guidance)
    check_interval(config.evaluate.interval, config.evaluate.guidance)


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


def unconditional(config: DictConfig) -> bool:
    """Whether images are made of no caption and no class: conditioner=none."""
    return str(config.conditioner.get("_target_", "")).endswith(".NullConditioner")


def check_guidance(config: DictConfig, guidance: float) -> None:
    """Refuse guidance where there is no condition, and away from what a run never learned: images without it.

    Learning from rewards begins with a generator that has learned them elsewhere, or has not.
    """
    objective = dict(leaves(OmegaConf.to_container(config.objective)))
    if unconditional(config):
        told = {"evaluate.guidance": guidance} | {
            f"objective.{key}": value for key, value in objective.items()
        }
        for key, value in told.items():
            if key.endswith(".guidance") and value != 1:
                raise UserError(
                    f"{key}={value:g} weighs images with their caption or class against images without, and "
                    f"conditioner=none has only these: leave it out, or take {key}=1"
                )
        return
    if "reward" in config.objective:
        return
    dropped = [value for key, value in objective.items() if key.endswith("_dropout")]
    if guidance != 1.0 and not any(dropped):
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (caption_dropout=0 in its objective): take guidance=1, or train with caption_dropout=0.1"
        )


def check_interval(interval: Sequence[float] | None, guidance: float) -> None:
    """Refuse times of guidance at which nothing would be guided: no (low, high), or guidance=1."""
    if interval is None:
        return
    said = f"evaluate.interval={list(interval)}"
    if len(interval) != 2 or interval[0] > interval[1]:
        raise UserError(f"{said} is no [low, high]: give two times, the lower one first")
    if guidance == 1.0:
        raise UserError(
            f"{said} says where guidance acts, and evaluate.guidance=1 is none: give another guidance, or "
            "evaluate.interval=null"
        )
