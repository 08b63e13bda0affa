"""`lmsd train`: one run, from a configuration to checkpoints, held-out scores and a report."""

import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lmsd import stops
from lmsd.checkpoints import find, images_of
from lmsd.cli.config.compose import load
from lmsd.cli.config.limits import check_limits
from lmsd.cli.runs import offline, store
from lmsd.cli.runs.agreed import agreed
from lmsd.cli.runs.pipelines import refuse_parts
from lmsd.cli.runs.resuming import continued, extended, finished
from lmsd.cli.runs.transcript import transcript
from lmsd.cli.verbs import continual
from lmsd.errors import UserError, redact
from lmsd.files import write_text
from lmsd.ranks import launched_rank

if TYPE_CHECKING:
    from torchmetrics import Metric

    from lmsd.cli.build.experiment import Experiment
    from lmsd.engine.hardware import Hardware

_PRIVATE = {
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_X_DISABLE_META": "true",
}
"""What wandb would else upload beside the metrics: output, code, the remote's URL, the command line."""

COMPILERS = ("g++", "clang++", "c++", "gcc", "clang", "cc")
INTERACTIVE = ("bash", "interactive")
"""Names of SLURM jobs in which ranks are started by hand."""

HELP = """lmsd train [group=choice ...] [option=value ...]

  experiment=digits|shapes|cifar10|emoji     where to begin
  images=1_000_000 batch_size=64 seed=0      how long, how much at once
  data.shards=FOLDER|GLOB|LIST|URL           what to learn from
  resume=auto|last|ID|FOLDER|CHECKPOINT      go on with a run, exactly; auto: if there is one;
                                             last: the one that was begun last
  extend=RUN|CHECKPOINT images=MORE          a new run, all that the other one had, longer
  init_from=RUN|PATH[:player][@ema]          weights of another run, a new clock
  run_dir=FOLDER devices=2 precision=bf16-mixed
  continual=[A,B,C]                          shards of tasks in turn; continual.keep=replay|ewc|rank1|l2
                                             continual.weight=1 continual.beside=[plain,joint]

Groups and their choices
{groups}

  debug=dry|limit|overfit|profile            try it first: only build, run, learn, time
  trainer=cpu|gpu|ddp|fsdp logger=wandb|tensorboard|csv

  lmsd train --cfg job [overrides]           print the whole configuration
  lmsd train --options [group] [overrides]   every option with its kind, default and meaning
  lmsd train --schema                        the same as JSON Schema, for editors
"""


@stops.preparing()
def main(arguments: list[str]) -> int:
    """Train, or print the configuration or its options."""
    if "--cfg" in arguments:
        words = [word for word in arguments if word not in ("--cfg", "job")]
        print(OmegaConf.to_yaml(load(words)), end="")
        return 0
    if "--options" in arguments or "--schema" in arguments:
        from lmsd.cli.config.listing import listing, schema

        words = [word for word in arguments if word != "--options"]
        print(schema() if "--schema" in arguments else listing(words))
        return 0
    tasks = any(word.startswith(continual.WORDS) for word in arguments)
    return continual.main(arguments, begin) if tasks else begin(arguments)


def begin(arguments: list[str]) -> int:
    """Begin a run, or go on with one."""
    again = any(word.lstrip("+~ ").startswith(("resume", "extend")) for word in arguments)
    nothing = (None, None, None)
    config, source, longer = (extended(arguments) or (*continued(arguments), None)) if again else nothing
    if config is not None:
        check_limits(config)
    else:
        config = load(arguments, run=True)
        if "path" in (config.get("generator") or {}):
            refuse_parts(arguments, config)
    if source is not None and finished(source, config):
        folder = store.folder_of(source)
        if launched_rank() == 0:
            print(f"{folder} is done, after {config.images:,} images")
            if not (folder / "report.html").is_file():
                report(folder)
        return 0
    if source is not None and source.suffix == ".ckpt":
        find(source)  # before anything is built, or written down
    train(config, overrides=arguments, resumed=source, longer=longer)
    return 0


@dataclass(frozen=True)
class Prepared:
    """What a configuration describes, built: nets, method, data, where they run, what watches and scores."""

    built: "Experiment"
    hardware: "Hardware"
    callbacks: list[Any]
    metrics: "dict[str, Metric]"


def prepared(config: DictConfig, overrides: Sequence[str] = ()) -> Prepared:
    """Build a run without starting it; whatever can be refused before it has a folder is refused here.

    overrides: what was typed of it, none of which may stay unread.
    """
    require_device(config)
    check_tasks(config)
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    from lmsd.cli.build import callbacks, experiment
    from lmsd.cli.build.roles import check_roles
    from lmsd.cli.build.validate import metrics, require_val

    built = experiment.build(config)
    check_roles(overrides, config, built.cast)
    if config.evaluate.n:
        require_val(built.data.shards)
    from lmsd.engine.hardware import Hardware

    if config.precision == "auto" and config.fsdp:
        raise UserError(
            "precision=auto tries the run in one process, and fsdp=true is for nets too large for that: name "
            "it, precision=bf16-mixed"
        )
    keys = ("devices", "num_nodes", "accelerator", "fsdp")
    hardware = Hardware(**{key: config[key] for key in keys}, **named_precision(config))
    hardware.check(built.engine)
    return Prepared(built, hardware, callbacks.own(config, built.objective), metrics(config))


def train(
    config: DictConfig,
    *,
    overrides: Sequence[str] = (),
    resumed: Path | None = None,
    longer: Callable[[], Path] | None = None,
) -> Path:
    """Train what the configuration describes and return the run's folder; torch is imported here.

    resumed: a run folder to go on with, or one of its checkpoints; longer: makes that, once all is built.
    """
    if config.dry:
        from lmsd.cli.build.imagined import tried

        told = partial(announce, config, None, resumed=resumed)
        return tried(config, partial(prepared, config, overrides), told)
    run = prepared(config, overrides)
    built, data = run.built, run.built.data.shards
    if longer is not None:
        resumed = longer()
    if not resumed:
        from lmsd.cli.build.latents import check_latents

        check_latents(built.cast, data)
    chief = launched_rank() == 0
    if config.precision == "auto":
        settle_precision(config, built)
        run = replace(run, hardware=replace(run.hardware, **named_precision(config)))
    from lmsd.cli.build.callbacks import standing
    from lmsd.cli.build.validate import Validation, on_val

    scorer = on_val(config, data) if config.evaluate.n and chief else None
    folder = store.folder_of(resumed) if resumed else made(config, overrides)
    validation = Validation(config, data, folder, scorer, run.metrics) if config.evaluate.n else None
    with transcript(folder, active=chief):
        announce(config, folder, built.cast, resumed=resumed)
        with recorded(folder, built.engine, active=chief):
            if resumed and chief:
                with tolerated("config.yaml"):
                    store.save_config(folder, config)
            watching = run.callbacks + standing(config, validation, built.objective, data)
            play(config, run, folder=folder, callbacks=watching, resumed=resumed)
        if chief:
            tell_end(folder, built.engine)
    return folder


def named_precision(config: DictConfig) -> dict[str, Any]:
    """The precision of the configuration; none where it is still to be tried."""
    return {} if config.precision == "auto" else {"precision": config.precision}


def settle_precision(config: DictConfig, built: "Experiment") -> None:
    """Let rank 0 try what is faster, and write the choice down where a resumed run will find it."""
    from lmsd.cli.build.experiment import record
    from lmsd.cli.build.precision import faster

    config.precision = agreed("precision", lambda: faster(config, built))
    built.engine.record.update(record(config, built.objective.lead))


def tell_end(folder: Path, engine: Any) -> None:
    """The report, and how to go on with a run that somebody's callback ended."""
    report(folder)
    if store.status(folder).get("state") == "stopped":
        at = f"{engine.clock.images:,} of {engine.clock.total_images:,} images"
        print(f"Stopped by a callback at {at}. Resume with: lmsd train resume={folder}", file=sys.stderr)


def play(
    config: DictConfig, run: Prepared, *, folder: Path, callbacks: list[Any], resumed: Path | None
) -> None:
    """Train in a run's folder, from its checkpoint where there is one."""
    from lmsd.engine.trainer import fit

    source = resumed if resumed and store.has_checkpoint(folder) else None
    watched = loggers(config, folder)
    if resumed and launched_rank() == 0:
        offline.mend(folder, -1 if source is None else images_of(find(source)), watched)
    fit(
        run.built.engine,
        run.built.data,
        run_dir=folder,
        hardware=run.hardware,
        loggers=watched,
        callbacks=callbacks,
        resume_from=source,
        profiler=config.profiler,
        asynchronous=config.checkpoint_async,
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
    """Refuse a device that this machine does not have, before anything is built."""
    import torch

    count, kind = torch.cuda.device_count(), config.accelerator
    if config.devices == "auto":
        config.devices = count if count and kind in ("auto", "gpu", "cuda") else 1
        check_limits(config)
    absent = (kind == "cuda" and not count) or (kind == "mps" and not torch.backends.mps.is_available())
    named = (os.environ.get("CXX", ""), os.environ.get("CC", ""))
    if config.compile and not any(map(shutil.which, (*named, *COMPILERS))):
        raise UserError(
            "compile=true needs a C++ compiler, and there is none in PATH: install one (g++), or leave it out"
        )
    if absent or (kind == "gpu" and not (count or torch.backends.mps.is_available())):
        raise UserError(f"accelerator={kind}: this machine has none that torch can use; take accelerator=cpu")
    if count and kind in ("auto", "gpu", "cuda") and config.devices > count:
        raise UserError(f"devices={config.devices}: this machine has {count} GPUs; ask for at most {count}")


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


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Report a file that cannot be written (on a full disk, above all), and continue training."""
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # the log may lie on the same disk
            print(f"lmsd: could not write {what}: {redact(str(error))}", file=sys.stderr)


@contextmanager
def recorded(folder: Path, engine: Any, *, active: bool) -> Iterator[None]:
    """Keep status.json true: running, then done, interrupted, failed, or stopped; error.txt has a failure.

    seconds: of training, over all sessions; sessions: when each began. Only one process is active.
    """
    from lmsd.engine.callbacks import peak_memory

    began = time.monotonic() - store.status(folder).get("seconds", 0.0)

    def ended(state: str) -> None:
        counts = {"images": engine.clock.images, "updates": engine.clock.updates}
        told = counts | ({"notes": engine.run.notes} if engine.run.notes else {})
        seconds = round(time.monotonic() - began, 1)
        with tolerated("status.json"):
            if active:
                store.set_status(folder, state=state, seconds=seconds, **told, peak_memory_mb=peak_memory())

    if active:
        lock = store.lock(folder)
        with tolerated("status.json"):
            sessions = [*store.status(folder).get("sessions", []), round(time.time(), 3)]
            store.set_status(folder, state="running", pid=os.getpid(), sessions=sessions)
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:
        ended("interrupted")
        with suppress(OSError):
            print(f"Resume with: lmsd train resume={folder}\n" * active, end="", file=sys.stderr)
        if type(stop).__name__ == "SIGTERMException":  # Lightning's, which has no code
            sys.exit(143)
        sys.exit(stop.code if isinstance(stop, SystemExit) and stop.code in (0, 143) else 130)
    except Exception as error:
        ended("failed")
        if isinstance(error, UserError):
            raise
        if type(error).__name__ == "MisconfigurationException":  # Lightning's word for a user's mistake
            raise UserError(f"Lightning refuses: {' '.join(str(error).split())}") from error
        with tolerated("error.txt"):
            if active:
                write_text(folder / "error.txt", redact(traceback.format_exc()))
                error.add_note(f"traceback in {folder / 'error.txt'};")
        raise
    ended("done" if engine.clock.done or engine.run.asked.stop else "stopped")
    if active:
        lock.close()


def loggers(config: DictConfig, folder: Path) -> list[Any]:
    """The Lightning loggers beside metrics.jsonl; wandb without a key writes offline and never asks."""
    from lmsd.cli.build.experiment import instantiate
    from lmsd.cli.verbs.doctor import wandb_key

    nodes = dict(config.logger)
    if nodes.pop("auto", False) and wandb_key():
        nodes |= load(["logger=wandb", f"name={config.name}"]).logger
    if "wandb" in nodes:
        for name, value in _PRIVATE.items():
            os.environ.setdefault(name, value)
        if not wandb_key():
            os.environ.setdefault("WANDB_MODE", "offline")
    again = {"id": store.status(folder).get("id"), "resume": "allow"}
    return [
        instantiate(node, save_dir=str(folder), **(again if "Wandb" in node._target_ else {}))
        for node in nodes.values()
    ]


def announce(
    config: DictConfig, folder: Path | None, nets: Mapping[str, Any], *, resumed: Path | None
) -> None:
    """Say what runs, where, and how large it is."""
    if launched_rank() == 0:
        sizes = ", ".join(
            f"{name} {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M" for name, net in nets.items()
        )
        begun = resumed is not None and store.has_checkpoint(store.folder_of(resumed))
        verb = "Resuming" if begun else "Beginning again, without a checkpoint:" if resumed else "Run"
        print(
            f"{verb if folder else 'Dry run'} {folder or config.name}  "
            f"({sizes}; {config.images:,} images in batches of {config.batch_size})"
        )


def made(config: DictConfig, overrides: Sequence[str]) -> Path:
    """The new run's folder, which rank 0 makes."""
    return Path(agreed("run_dir", lambda: str(store.create(config, overrides))))
