"""Going on with a run: what may change, and what its own configuration says.

resume=RUN                        the same run, to its own end
extend=RUN|CHECKPOINT images=N    a new run with all that the other one had, to N images in all
init_from=RUN                     a new run with its weights alone
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from lmsd.checkpoints import find_run
from lmsd.cli.config.compose import check_choice, files, flatten, groups, load, parse, written
from lmsd.cli.config.schema import ENTRIES, at, edit, leaves
from lmsd.cli.runs import store
from lmsd.cli.runs.agreed import agreed
from lmsd.cli.runs.secrets import require_secrets, stored
from lmsd.errors import HIDDEN, UserError, redact, shown
from lmsd.evaluation.pointer import refuse_earlier
from lmsd.ranks import launched_rank

SAFE = (
    "log_every",
    "checkpoint_every",
    "checkpoint_async",
    "keep",
    "keep_every",
    "patience",
    "hang_seconds",
    "evaluate.",
    "devices",
    "num_nodes",
    "fsdp",
    "micro_batches",
    "threads",
    "accelerator",
    "logger",
    "callbacks",
    "profiler",
    "checkpointing",
    "data.shards",
    "data.val",
    "data.test",
    "data.train.num_workers",
    "data.cache",
    "data.train.memory_gb",
    "data.train.on_error",
    "data.train.on_change",
    "data.decode",
    "rollback.",
    "source",
    "run_dir",
)
"""What may change when a run is resumed: neither the weights nor the samples depend on it.

Not `images`: warm start, decay and annealing are shares of it, so another total would play phases again.
"""


def continued(arguments: Sequence[str]) -> tuple[DictConfig | None, Path | None]:
    """Configuration of the run that `resume=` names, and its folder or checkpoint; (None, None) for none.

    auto compares the whole configuration with the run's, so that a scheduler may repeat the first command; it
    alone may name a run that is done.
    """
    overrides = {str(override.key_or_group): override for override in map(parse, arguments)}
    wanted = written(overrides.pop("resume")) if "resume" in overrides else None
    if wanted is None:
        return None, None
    if wanted == "auto":
        fresh = load([word for word in arguments if not word.startswith("resume=")])
        if fresh.run_dir is None:  # which other processes hold may change: rank 0 looks
            told = agreed("resume", lambda: str(store.unfinished(fresh.name) or "nothing"))
            source = None if told == "nothing" else Path(told)
        else:
            source = store.unfinished(fresh.name, fresh.run_dir)
        if source is None:
            if launched_rank() == 0:
                print(f"nothing to resume for {fresh.name}: a new run")
            return fresh, None
        given = flatten(fresh)
    else:
        source = find_run(str(wanted))
        given = {}
    folder = store.folder_of(source)
    other = written(overrides["run_dir"]) if wanted != "auto" and "run_dir" in overrides else None
    if other is not None and Path(other).resolve() != folder.resolve():
        raise UserError(
            f"resume={wanted} goes on in {folder}, not in run_dir={other}: leave run_dir= out, or begin a "
            f"new run there from its weights: lmsd train init_from={folder} run_dir={other} ..."
        )
    refuse_earlier(source)
    config = store.config_again(folder)
    if wanted != "auto":
        config, given = changed(config, list(overrides.values()))
    accept(config, given, folder)
    if wanted != "auto" and finished(source, config):
        raise UserError(
            f"{folder} is done, after {config.images:,} images, and so are its schedules; train it "
            f"longer in a new run: lmsd train extend={source} images=MORE, or begin one from its weights "
            f"alone: lmsd train init_from={source} ..."
        )
    return config, source


def changed(config: DictConfig, overrides: Sequence[Override]) -> tuple[DictConfig, dict[str, Any]]:
    """A stored configuration without what the words take away, and what they set in it."""
    tree: Any = OmegaConf.to_container(config)
    given = settled(overrides, tree)
    for override in overrides:
        if override.key_or_group in given and override.key_or_group in flatten(config):
            again = deepcopy(tree)
            edit(again, override, {})
            given[override.key_or_group] = at(again, override.key_or_group)
    return OmegaConf.create(tree), given


LONGER = (*SAFE, "images", "name", "optim.decay", "optim.warmup_images")
"""What may change where a run is trained longer in a new one."""


def extended(arguments: Sequence[str]) -> tuple[DictConfig, None, Callable[[], Path]] | None:
    """The configuration of a new run that goes on from what `extend=` names; third, what makes its folder.

    None without `extend=`.

    Its first checkpoint is the other one's, with the share of that run that was reached then: phases which
    were over by it stay over. Raises UserError where that would not be longer.
    """
    overrides = {str(override.key_or_group): override for override in map(parse, arguments)}
    if "extend" not in overrides:
        return None
    if "resume" in overrides or "init_from" in overrides:
        raise UserError("extend= takes all that a run had: leave resume= and init_from= out")
    source = find_run(str(written(overrides.pop("extend"))))
    folder = store.folder_of(source)
    run_dir = written(overrides.pop("run_dir")) if "run_dir" in overrides else None
    config, given = changed(store.config_again(folder), list(overrides.values()))
    total = int(config.images)
    accept(config, given, folder, safe=LONGER)
    config.run_dir = run_dir
    from lmsd.checkpoints import KEY, checkpoint_name, find, read
    from lmsd.engine.checkpoint import save

    path = find(source)
    content = read(path)
    clock = content[KEY]["clock"]
    if int(config.images) <= clock["images"] or "images" not in given:
        raise UserError(
            f"{path} has seen {clock['images']:,} images: say how many in all, images=MORE, to extend it"
        )
    clock["reached"] = max(clock["images"] / total, clock.get("reached", 0.0))
    content[KEY]["config"] = OmegaConf.to_yaml(stored(config))

    def begin() -> str:
        made = store.create(config, list(arguments))
        save(content, made / "checkpoints" / checkpoint_name(clock["images"]))
        print(f"Extending {path} from {clock['images']:,} to {config.images:,} images")
        return str(made)

    return config, None, lambda: Path(agreed("extend", begin))


def finished(source: Path, config: DictConfig) -> bool:
    """Whether a run has seen all of its images."""
    state = store.status(store.folder_of(source))
    return state.get("state") == "done" and bool(config.images <= state.get("images", 0))


def accept(
    config: DictConfig, given: Mapping[str, Any], folder: Path, *, safe: tuple[str, ...] = SAFE
) -> None:
    """Take options that touch neither weights nor samples into a run's configuration; refuse others."""
    known, refused = flatten(config), []
    for key, value in given.items():
        if key in ("resume", "extend", "run_dir") or (key == "experiment" and value == config.name):
            continue
        if (key, value) == ("precision", "auto"):  # what it chose stays
            continue
        hidden = HIDDEN in str(known.get(key))
        new = key not in known and not key.startswith(safe)
        if new or (known.get(key) != value and not hidden and not key.startswith(safe)):
            was = shown(key, known[key]) if key in known else "as it was"
            refused.append(f"{key}: {was} -> {shown(key, value)}")
        elif key not in known or known[key] != value:
            if launched_rank() == 0 and not hidden:
                was = shown(key, known.get(key, "nothing"))
                print(redact(f"  changed by you: {key} {was} -> {shown(key, value)}"))
            OmegaConf.update(config, key, value, force_add=True)
    if refused:
        longer = f"train longer (lmsd train extend={folder} images=MORE), " * ("images" in given)
        raise UserError(
            f"cannot {'resume' if safe is SAFE else 'extend'} {folder.name} with these changes: "
            f"{'; '.join(refused)}; leave them out, {longer}or start a new run from its weights: "
            f"lmsd train init_from={folder} ..."
        )
    require_secrets(config)


def settled(overrides: Sequence[Override], tree: dict[str, Any]) -> dict[str, Any]:
    """What words set, by option: a choice of a group is all that its file says; '~callbacks.my' is gone."""
    found: dict[str, Any] = {}
    choices = groups()
    for override in overrides:
        group, value = override.key_or_group, override.value()
        if override.is_delete() and group.rpartition(".")[0] in ENTRIES:
            edit(tree, override, choices)
        elif group not in choices or group == "experiment" or isinstance(value, dict):
            found[group] = value
        else:
            check_choice(override, choices)
            (path,) = [path for path in files(group) if path.stem == value][-1:]
            text = path.read_text(encoding="utf-8")
            node = {k: v for k, v in (yaml.safe_load(text) or {}).items() if k != "defaults"}
            place = "" if "@package _global_" in text else override.package or group
            if place in ENTRIES:  # all of them are other ones
                tree[place] = {}
            found |= dict(leaves(node, place)) if node else {}
    return found
