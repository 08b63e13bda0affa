"""`lmsd train`: one run, from a configuration to checkpoints, held-out scores and a report."""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd.cli import runs
from lmsd.cli.compose import check_value, flatten, groups, load, parse
from lmsd.cli.limits import check_limits
from lmsd.errors import UserError

SAFE = (
    "images",
    "log_every",
    "checkpoint_every",
    "keep",
    "evaluate.",
    "devices",
    "micro_batches",
    "threads",
    "accelerator",
    "logger.",
    "data.shards",
    "data.val",
    "data.test",
    "data.num_workers",
    "data.cache",
    "data.memory_gb",
)
"""What may change when a run is resumed: neither the weights nor the samples depend on it."""

HELP = """lmsd train [group=choice ...] [option=value ...]

  experiment=digits|shapes|cifar10|emoji     where to begin
  images=1_000_000 batch_size=64 seed=0      how long, how much at once
  data.shards=FOLDER|GLOB|LIST|URL           what to learn from
  resume=auto|last|ID|FOLDER                 go on with a run, exactly
  init_from=RUN|PATH[:player][@ema]          weights of another run, a new clock
  run_dir=FOLDER devices=2 precision=bf16-mixed

Groups and their choices
{groups}

  debug=dry|limit|overfit|profile            try it first: only build, run, learn, time
  trainer=cpu|gpu|ddp logger=wandb|tensorboard|csv

  lmsd train --cfg job [overrides]           print the whole configuration
  lmsd train --options [group] [overrides]   every option with its kind, default and meaning
"""


def main(arguments: list[str]) -> int:
    """Train, or print help or the configuration."""
    if "-h" in arguments or "--help" in arguments:
        rows = [f"  {name:16}{', '.join(choices)}" for name, choices in groups().items()]
        print(HELP.format(groups="\n".join(rows)))
        return 0
    if "--cfg" in arguments:
        words = [word for word in arguments if word not in ("--cfg", "job")]
        print(OmegaConf.to_yaml(load("train", words)), end="")
        return 0
    if "--options" in arguments:
        from lmsd.cli.listing import listing

        print(listing([word for word in arguments if word != "--options"]))
        return 0
    config, folder = continued(arguments)
    if config is None:
        config = load("train", arguments)
    train(config, overrides=arguments, resumed=folder)
    return 0


def continued(arguments: Sequence[str]) -> tuple[DictConfig | None, Path | None]:
    """Configuration and folder of the run that `resume=` names; (None, None) for a new run."""
    overrides = {str(override.key_or_group): override for override in map(parse, arguments)}
    wanted = overrides.pop("resume").value() if "resume" in overrides else None
    if wanted is None:
        return None, None
    if wanted == "auto":
        fresh = load("train", [word for word in arguments if not word.startswith("resume=")])
        folder = runs.unfinished(fresh.name)
        if folder is None:
            print(f"nothing to resume for {fresh.name}: a new run")
            return fresh, None
    else:
        folder = runs.find(str(wanted))
    config = runs.config_of(folder)
    known, refused = flatten(config), []
    for key, override in overrides.items():
        if key == "experiment" and override.value() == config.name:
            continue
        if key in known:
            check_value(override, config)
        if key not in known or (known[key] != override.value() and not key.startswith(SAFE)):
            refused.append(f"{key}: {known.get(key, 'as it was')} -> {override.value()}")
        elif known[key] != override.value():
            print(f"  changed by you: {key} {known[key]} -> {override.value()}")
            OmegaConf.update(config, key, override.value())
    if refused:
        raise UserError(
            f"cannot resume {folder.name} with these changes: {'; '.join(refused)}; leave them out, or start "
            f"a new run from its weights: lmsd train init_from={folder} ..."
        )
    if runs.status(folder).get("state") == "done" and config.images <= runs.status(folder)["images"]:
        raise UserError(
            f"{folder} is done, after {config.images:,} images; go on with resume={folder} images=MORE, or "
            f"begin a new run"
        )
    return config, folder


def train(config: DictConfig, *, overrides: Sequence[str] = (), resumed: Path | None = None) -> Path:
    """Train what the configuration describes and return the run's folder; torch is imported here."""
    check_limits(config)
    import torch

    require_device(config)
    check_limits(config)  # again, for devices=auto
    if config.threads:
        torch.set_num_threads(config.threads)
    from lmsd.cli import build
    from lmsd.cli.validate import Validation
    from lmsd.engine.trainer import fit

    data = build.data_module(config)
    data.index("train")
    nets, objective = build.players(config, data)
    engine = build.engine(config, nets, objective)
    chief = runs.rank() == 0
    if config.dry:
        announce(config, None, nets, resumed=resumed)
        engine.configure_optimizers()
        count = len(data.split_set("train"))
        print(f"{count:,} train samples; everything is built. To train, leave out debug=dry")
        return Path()
    validation = Validation(config, data, active=chief) if config.evaluate.n else None
    folder = resumed or shared_folder(config, list(overrides))
    announce(config, folder, nets, resumed=resumed)
    if validation is not None:
        validation.folder = folder
    with recorded(folder, engine, active=chief):
        fit(
            engine,
            data,
            run_dir=folder,
            devices=config.devices,
            accelerator=config.accelerator,
            precision=config.precision,
            loggers=loggers(config, folder),
            callbacks=callbacks(config, validation, objective),
            resume_from=resumed,
            profiler=config.profiler,
        )
    if chief:
        from lmsd.evaluation.report import write_report

        print(f"Report: {write_report(folder)}")
    return folder


def callbacks(config: DictConfig, validation: Any, objective: Any) -> list[Any]:
    """Those that the configuration names, and those that every run has."""
    from lmsd.cli.instantiate import instantiate
    from lmsd.engine.callbacks import Checkpoint, Evaluate

    found = [instantiate(node) for node in config.callbacks.values()]
    if validation is not None:
        every = config.evaluate.every or config.images
        found.append(Evaluate(validation, every_images=every, at_start=config.evaluate.at_start))
        found += guards(config, objective)
    monitor = None if validation is None else validation.monitor
    saving = Checkpoint(every_images=config.checkpoint_every, keep_last=config.keep, monitor=monitor)
    return [*found, saving]


def guards(config: DictConfig, objective: Any) -> list[Any]:
    """What ends a run that learns from rewards when they and the held-out score part."""
    from lmsd.engine.guard import HackingGuard

    patience = config.evaluate.stop_hacking
    return [HackingGuard(patience=patience)] if patience and hasattr(objective, "reward") else []


def require_device(config: DictConfig) -> None:
    """Refuse a GPU that is not there, before anything is built."""
    import torch

    count, kind = torch.cuda.device_count(), config.accelerator
    if config.devices == "auto":
        config.devices = count if count and kind in ("auto", "gpu", "cuda") else 1
    absent = (kind == "cuda" and not count) or (kind == "mps" and not torch.backends.mps.is_available())
    if absent or (kind == "gpu" and not (count or torch.backends.mps.is_available())):
        raise UserError(f"accelerator={kind}: this machine has none that torch can use; accelerator=cpu")
    if count and kind in ("auto", "gpu", "cuda") and config.devices > count:
        raise UserError(f"devices={config.devices}: this machine has {count} GPUs; ask for at most {count}")


@contextmanager
def recorded(folder: Path, engine: Any, *, active: bool) -> Iterator[None]:
    """Keep status.json true: running, then done, interrupted or failed; a failure of ours into error.txt.

    seconds: of training, over all sessions of the run. Only one process is active.
    """
    from lmsd.engine.callbacks import peak_memory

    before, started = runs.status(folder).get("seconds", 0.0), time.monotonic()

    def ended(state: str) -> None:
        clock, seconds = engine.clock, round(before + time.monotonic() - started, 1)
        if active:
            counts = {"images": clock.images, "updates": clock.updates, "seconds": seconds}
            runs.set_status(folder, state=state, **counts, peak_memory_mb=peak_memory())

    if active:
        runs.set_status(folder, state="running", pid=os.getpid())
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        ended("interrupted")
        if active and any((folder / "checkpoints").glob("*.ckpt")):
            print(f"Resume with: lmsd train resume={folder}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        ended("failed")
        if isinstance(error, UserError):
            raise
        if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a user's mistake
            raise UserError(f"Lightning refuses: {' '.join(str(error).split())}") from error
        if active:
            (folder / "error.txt").write_text(traceback.format_exc())
            error.add_note(f"traceback in {folder / 'error.txt'};")
        raise
    ended("done")


def loggers(config: DictConfig, folder: Path) -> list[Any]:
    """The Lightning loggers beside metrics.jsonl; wandb without a key writes offline and never asks."""
    from lmsd.cli.doctor import wandb_key
    from lmsd.cli.instantiate import instantiate

    nodes = dict(config.logger)
    if nodes.pop("auto", False) and wandb_key():
        nodes |= load("train", ["logger=wandb", f"name={config.name}"]).logger
    if "wandb" in nodes and not wandb_key():
        os.environ.setdefault("WANDB_MODE", "offline")
    made = []
    for node in nodes.values():
        again = (
            {"id": runs.status(folder).get("id", folder.name), "resume": "allow"}
            if "Wandb" in node._target_
            else {}
        )
        made.append(instantiate(node, save_dir=str(folder), **again))
    return made


def announce(config: DictConfig, folder: Path | None, nets: dict[str, Any], *, resumed: Path | None) -> None:
    """Say what runs, where, and how large it is."""
    if runs.rank() == 0:
        sizes = ", ".join(
            f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for name, net in nets.items()
        )
        verb = "Resuming" if resumed else "Run" if folder else "Dry run"
        print(
            f"{verb} {folder or config.name}  "
            f"({sizes}; {config.images:,} images in batches of {config.batch_size})"
        )


def shared_folder(config: DictConfig, overrides: list[str]) -> Path:
    """The new run's folder: rank 0 makes it and tells the others, by the environment or torchrun's store."""
    store = _agent_store()
    if runs.rank() == 0:
        folder = runs.create(config, overrides)
        os.environ["LMSD_RUN_DIR"] = str(folder)  # for the processes that Lightning starts
        if store is not None:
            store.set("lmsd_run_dir", str(folder))
        return folder
    if store is not None:
        return Path(store.get("lmsd_run_dir").decode())
    return Path(os.environ["LMSD_RUN_DIR"])


def _agent_store() -> Any:
    """The key-value store of torchrun's agent, or None when torchrun did not start this process."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
