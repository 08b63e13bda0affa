"""Callbacks of a run: those of its configuration, and those that every run has."""

from typing import Any

from omegaconf import DictConfig

from lmsd.cli.build.experiment import instantiate
from lmsd.data.shardset import ShardSet
from lmsd.engine.callbacks import Checkpoint, Evaluate
from lmsd.engine.hacking import HackingGuard
from lmsd.engine.patience import Patience
from lmsd.engine.requests import Asked
from lmsd.engine.trainer import check_callbacks
from lmsd.engine.watchdog import Watchdog
from lmsd.objectives.base import Objective, trained


def own(config: DictConfig, objective: Objective) -> list[Any]:
    """The callbacks that the configuration names. Raises UserError for those that cannot work here."""
    found = [instantiate(node) for node in config.callbacks.values()]
    check_callbacks(found, trained(objective.cast), scored=bool(config.evaluate.n))
    return found


def standing(config: DictConfig, validation: Any, objective: Objective, data: ShardSet) -> list[Any]:
    """The callbacks that every run has."""
    found: list[Any] = [Asked(None if validation is None else validation.sample)]
    if validation is not None:
        every = config.evaluate.every or config.images
        found.append(Evaluate(validation, every_images=every, at_start=config.evaluate.at_start))
        found += guards(config, objective)
        found += [Patience(config.patience)] if config.get("patience") else []
    monitor = None if validation is None else validation.monitor
    saving = Checkpoint(
        every_images=config.checkpoint_every,
        keep_last=config.keep,
        keep_every=config.keep_every,
        monitor=monitor,
    )
    return [
        *found,
        instantiate(config.rollback, samples=data.samples, stop=data.train.on_error == "stop"),
        Watchdog(seconds=config.hang_seconds),
        saving,
    ]


def guards(config: DictConfig, objective: Objective) -> list[Any]:
    """Ends a run that learns from rewards when these and the held-out score diverge."""
    patience, proxy = config.evaluate.stop_hacking, objective.proxy
    return [HackingGuard(judge="val/fd[", proxy=proxy, patience=patience)] if patience and proxy else []
