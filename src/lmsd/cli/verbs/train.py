"""`lmsd train`: one run, from a configuration to checkpoints, held-out scores and a report."""

import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmsd import stops
from lmsd.checkpoints import find_run
from lmsd.cli.config.compose import check_value, flatten, load, parse, require_secrets, written
from lmsd.cli.config.schema import check_limits, check_tasks, groups
from lmsd.cli.runs import store
from lmsd.cli.runs.agreed import agreed
from lmsd.cli.runs.transcript import transcript
from lmsd.errors import HIDDEN, UserError, redact, shown
from lmsd.files import write_text
from lmsd.ranks import launched_rank

_PRIVATE = {
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_X_DISABLE_META": "true",
}
"""What wandb would else upload beside the metrics: output, code, the remote's URL, the command line."""

SAFE = (
    "log_every",
    "checkpoint_every",
    "checkpoint_async",
    "keep",
    "keep_every",
    "hang_seconds",
    "evaluate.",
    "devices",
    "num_nodes",
    "fsdp",
    "micro_batches",
    "threads",
    "accelerator",
    "logger.",
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

HELP = """lmsd train [group=choice ...] [option=value ...]

  experiment=digits|shapes|cifar10|emoji     where to begin
  images=1_000_000 batch_size=64 seed=0      how long, how much at once
  data.shards=FOLDER|GLOB|LIST|URL           what to learn from
  resume=auto|last|ID|FOLDER|CHECKPOINT      go on with a run, exactly; auto: if there is one;
                                             last: the one that was begun last
  init_from=RUN|PATH[:player][@ema]          weights of another run, a new clock
  run_dir=FOLDER devices=2 precision=bf16-mixed

Groups and their choices
{groups}

  debug=dry|limit|overfit|profile            try it first: only build, run, learn, time
  trainer=cpu|gpu|ddp|fsdp logger=wandb|tensorboard|csv

  lmsd train --cfg job [overrides]           print the whole configuration
  lmsd train --options [group] [overrides]   every option with its kind, default and meaning
  lmsd train --schema                        the same as JSON Schema, for editors
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
    if "--options" in arguments or "--schema" in arguments:
        from lmsd.cli.config.listing import listing, schema

        words = [word for word in arguments if word != "--options"]
        print(schema() if "--schema" in arguments else listing(words))
        return 0
    with stops.preparing():
        return begin(arguments)


def begin(arguments: list[str]) -> int:
    """Begin a run, or go on with one."""
    config, source = continued(arguments)
    if config is None:
        config = load("train", arguments)
    if source is not None and finished(source, config):
        folder = store.folder_of(source)
        if launched_rank() == 0:
            print(f"{folder} is done, after {config.images:,} images")
            if not (folder / "report.html").is_file():
                report(folder)
        return 0
    train(config, overrides=arguments, resumed=source)
    return 0


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
        fresh = load("train", [word for word in arguments if not word.startswith("resume=")])
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
        given = {key: override.value() for key, override in overrides.items()}
    folder = store.folder_of(source)
    other = given.get("run_dir") if wanted != "auto" else None
    if other is not None and Path(other).resolve() != folder.resolve():
        raise UserError(
            f"resume={wanted} goes on in {folder}, not in run_dir={other}: leave run_dir= out, or begin a "
            f"new run there from its weights: lmsd train init_from={folder} run_dir={other} ..."
        )
    config = store.config_again(folder)
    tree: Any = OmegaConf.to_container(config)
    for key, override in overrides.items():
        if key in flatten(config):
            check_value(override, tree)
    accept(config, given, folder)
    if wanted != "auto" and finished(source, config):
        raise UserError(
            f"{folder} is done, after {config.images:,} images, and so are its schedules; train on from its "
            f"weights in a new run: lmsd train init_from={folder} ..."
        )
    return config, source


def finished(source: Path, config: DictConfig) -> bool:
    """Whether a run has seen all of its images."""
    state = store.status(store.folder_of(source))
    return state.get("state") == "done" and bool(config.images <= state.get("images", 0))


def accept(config: DictConfig, given: Mapping[str, Any], folder: Path) -> None:
    """Take options that touch neither weights nor samples into a run's configuration; refuse others."""
    known, refused = flatten(config), []
    for key, value in given.items():
        if key in ("resume", "run_dir") or (key == "experiment" and value == config.name):
            continue
        hidden = HIDDEN in str(known.get(key))
        if key not in known or (known[key] != value and not hidden and not key.startswith(SAFE)):
            was = shown(key, known[key]) if key in known else "as it was"
            refused.append(f"{key}: {was} -> {shown(key, value)}")
        elif known[key] != value:
            if launched_rank() == 0 and not hidden:
                print(redact(f"  changed by you: {key} {shown(key, known[key])} -> {shown(key, value)}"))
            OmegaConf.update(config, key, value)
    if refused:
        raise UserError(
            f"cannot resume {folder.name} with these changes: {'; '.join(refused)}; leave them out, or start "
            f"a new run from its weights: lmsd train init_from={folder} ..."
        )
    require_secrets(config)


def train(config: DictConfig, *, overrides: Sequence[str] = (), resumed: Path | None = None) -> Path:
    """Train what the configuration describes and return the run's folder; torch is imported here.

    resumed: a run folder to go on with, or one of its checkpoints.
    """
    if config.devices == "auto":
        require_device(config)
        check_limits(config)
    else:  # a mistake is told of without waiting for torch
        check_limits(config)
        require_device(config)
    check_tasks(config)
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    from lmsd.checkpoints import find
    from lmsd.cli.build import experiment
    from lmsd.cli.build.validate import Validation, metrics, on_val, require_val

    if resumed and resumed.suffix == ".ckpt":
        find(resumed)  # before anything is built, or written down
    built = experiment.build(config)
    nets, data = built.cast, built.data.shards
    chief, others = launched_rank() == 0, metrics(config)
    if config.dry:
        announce(config, None, nets, resumed=resumed)
        built.engine.configure_optimizers()
        count = len(data.split_set("train"))
        print(f"{count:,} train samples; everything is built. To train, leave out debug=dry")
        return Path()
    if config.evaluate.n:
        require_val(data)
    scorer = on_val(config, data) if config.evaluate.n and chief else None
    folder = store.folder_of(resumed) if resumed else shared_folder(config, list(overrides))
    validation = Validation(config, data, folder, scorer, others) if config.evaluate.n else None
    with transcript(folder, active=chief):
        announce(config, folder, nets, resumed=resumed)
        with recorded(folder, built.engine, active=chief):
            if resumed and chief:
                with tolerated("config.yaml"):
                    store.save_config(folder, config)
            callbacks = experiment.callbacks(config, validation, built.objective, samples=data.samples)
            play(config, built.engine, built.data, folder=folder, callbacks=callbacks, resumed=resumed)
        if chief:
            report(folder)
    return folder


def play(
    config: DictConfig, engine: Any, data: Any, *, folder: Path, callbacks: list[Any], resumed: Path | None
) -> None:
    """Train in a run's folder, from its checkpoint where there is one."""
    from lmsd.engine.trainer import fit

    fit(
        engine,
        data,
        run_dir=folder,
        devices=config.devices,
        num_nodes=config.num_nodes,
        accelerator=config.accelerator,
        precision=config.precision,
        loggers=loggers(config, folder),
        callbacks=callbacks,
        resume_from=resumed if resumed and store.has_checkpoint(folder) else None,
        profiler=config.profiler,
        asynchronous=config.checkpoint_async,
        fsdp=config.fsdp,
    )


def report(folder: Path) -> None:
    """Write report.html of a run that is done."""
    from lmsd.cli.verbs.report import write

    with tolerated(f"the report (again: lmsd report {folder})"):
        try:
            print(f"Report: {write(folder)}")
        except UserError as error:  # a damaged file costs the report, not the run
            print(f"lmsd: no report: {error}", file=sys.stderr)


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
def tolerated(what: str) -> Iterator[None]:
    """Tell of a file beside the training that the system refuses (a full disk, above all), and go on."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # the log may lie on the same disk
            print(f"lmsd: could not write {what}: {redact(str(error))}", file=sys.stderr)


@contextmanager
def recorded(folder: Path, engine: Any, *, active: bool) -> Iterator[None]:
    """Keep status.json true: running, then done, interrupted or failed; a failure of ours into error.txt.

    seconds: of training, over all sessions; sessions: when each began. Only one process is active.
    """
    from lmsd.engine.callbacks import peak_memory

    before, started = store.status(folder).get("seconds", 0.0), time.monotonic()

    def ended(state: str) -> None:
        clock, seconds = engine.clock, round(before + time.monotonic() - started, 1)
        if active:
            counts = {"images": clock.images, "updates": clock.updates, "seconds": seconds}
            with tolerated("status.json"):
                store.set_status(folder, state=state, **counts, peak_memory_mb=peak_memory())

    if active:
        lock = store.lock(folder)
        with tolerated("status.json"):
            sessions = [*store.status(folder).get("sessions", []), round(time.time(), 3)]
            store.set_status(folder, state="running", pid=os.getpid(), sessions=sessions)
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        ended("interrupted")
        if active:
            with suppress(OSError):
                print(f"Resume with: lmsd train resume={folder}", file=sys.stderr)
        asked = type(stop).__name__ == "SIGTERMException"  # Lightning's, which has no code
        code = 143 if asked else stop.code if isinstance(stop, SystemExit) else 130
        sys.exit(code if code in (0, 143) else 130)
    except Exception as error:
        ended("failed")
        if isinstance(error, UserError):
            raise
        if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a user's mistake
            raise UserError(f"Lightning refuses: {' '.join(str(error).split())}") from error
        if active:
            with tolerated("error.txt"):
                write_text(folder / "error.txt", redact(traceback.format_exc()))
                error.add_note(f"traceback in {folder / 'error.txt'};")
        raise
    ended("done")
    if active:
        lock.close()


def loggers(config: DictConfig, folder: Path) -> list[Any]:
    """The Lightning loggers beside metrics.jsonl; wandb without a key writes offline and never asks."""
    from lmsd.cli.build.experiment import instantiate
    from lmsd.cli.verbs.doctor import wandb_key

    nodes = dict(config.logger)
    if nodes.pop("auto", False) and wandb_key():
        nodes |= load("train", ["logger=wandb", f"name={config.name}"]).logger
    if "wandb" in nodes:
        for name, value in _PRIVATE.items():
            os.environ.setdefault(name, value)
        if not wandb_key():
            os.environ.setdefault("WANDB_MODE", "offline")
    made = []
    for node in nodes.values():
        again = {"id": store.status(folder).get("id"), "resume": "allow"} if "Wandb" in node._target_ else {}
        made.append(instantiate(node, save_dir=str(folder), **again))
    return made


def announce(
    config: DictConfig, folder: Path | None, nets: Mapping[str, Any], *, resumed: Path | None
) -> None:
    """Say what runs, where, and how large it is."""
    if launched_rank() == 0:
        sizes = ", ".join(
            f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for name, net in nets.items()
        )
        verb = "Resuming" if resumed else "Run" if folder else "Dry run"
        print(
            f"{verb} {folder or config.name}  "
            f"({sizes}; {config.images:,} images in batches of {config.batch_size})"
        )


def shared_folder(config: DictConfig, overrides: list[str]) -> Path:
    """The new run's folder, which rank 0 makes."""
    return Path(agreed("run_dir", lambda: str(store.create(config, overrides))))
