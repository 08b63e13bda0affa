"""Run folders: made once, found again by path, id, `last` or `auto`.

outputs/<date_time>-<name>-<id>/
  config.yaml overrides.txt env.json status.json metrics.jsonl log.txt
  checkpoints/  samples/  eval/<split>/  report.html

`last` is the run that was begun last, whichever was resumed since.
"""

import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmsd import __version__
from lmsd.checkpoints import OUTPUTS as OUTPUTS
from lmsd.checkpoints import by_age as by_age
from lmsd.checkpoints import find_run
from lmsd.checkpoints import folder_of as folder_of
from lmsd.cli.config.older import today
from lmsd.cli.config.schema import root
from lmsd.cli.runs.pipelines import told_of_folder
from lmsd.cli.runs.secrets import stored
from lmsd.errors import HIDDEN, UserError, is_secret, redact
from lmsd.evaluation.records import read_records
from lmsd.files import write_text
from lmsd.ranks import launched_rank

FOLDERS = ("checkpoints", "samples", "eval")
LIBRARIES = ("torch", "lightning", "hydra-core", "diffusers", "transformers", "webdataset", "numpy", "pillow")


def create(config: DictConfig, overrides: Sequence[str]) -> Path:
    """Make the folder of a new run and write down what it is; an existing one is never used twice.

    config.yaml comes last: without it there is no run, and what a killed process left is made again.
    """
    import secrets  # not for a typo, as below: these bring more than they do here
    import uuid

    stamp = datetime.now().strftime("%Y-%m-%d_%H%M%S")
    folder = Path(config.run_dir or OUTPUTS / f"{stamp}-{config.name}-{secrets.token_hex(2)}")
    if folder.exists() and not config.run_dir:  # of another run that began in this second
        return create(config, overrides)
    if folder.exists() and _begun(folder):
        raise UserError(f"run_dir={folder} exists; continue it with resume={folder}, or name another")
    try:
        folder.mkdir(parents=True, exist_ok=config.run_dir is not None)
    except OSError as error:
        said = f"{folder} cannot be made: {error.strerror}"
        raise UserError(f"{said}; name another place with run_dir=FOLDER") from error
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    (folder / "overrides.txt").write_text("".join(f"{shown(override)}\n" for override in overrides))
    (folder / "env.json").write_text(
        json.dumps(environment() | {"begun": time.time()} | told_of_folder(config), indent=1) + "\n"
    )
    set_status(folder, state="created", id=uuid.uuid4().hex[:8])
    write_text(folder / "config.yaml", OmegaConf.to_yaml(stored(config)))
    point_latest(folder)
    return folder


def _begun(folder: Path) -> bool:
    """Whether an existing folder is more than what `create` leaves where it is killed in the middle."""
    ours = {*FOLDERS, "overrides.txt", "env.json", "status.json"}
    names = {path.name.partition(".tmp.")[0] for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    return (folder / "config.yaml").exists() or not names <= ours | {"status", "config.yaml"}


def shown(override: str) -> str:
    """A word of the command line without its secret."""
    key, equals, _ = override.partition("=")
    return f"{key}={HIDDEN}" if equals and is_secret(key) else redact(override)


def environment() -> dict[str, Any]:
    """What the run stood on: versions and the code's commit, no names of machines or users."""
    import platform
    import subprocess
    from importlib.metadata import version

    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except OSError:  # there is none, or none that may be run
        git = ""
    return {
        "lmsd": __version__,
        "commit": git or None,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def status(folder: Path) -> dict[str, Any]:
    """What status.json says; empty where there is none that can be read."""
    try:
        found = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def set_status(folder: Path, **values: Any) -> None:
    """Update status.json whole: its state is created, running, done, interrupted, stopped or failed."""
    write_text(folder / "status.json", json.dumps(status(folder) | values, indent=1) + "\n")


def save_config(folder: Path, config: DictConfig) -> None:
    """Write a run's configuration again, without its secrets; leave to take other data counts once."""
    kept = stored(config)
    kept.data.train.on_change = "error"
    write_text(folder / "config.yaml", OmegaConf.to_yaml(kept))


def lock(folder: Path) -> IO[str]:
    """Hold a run for this process, until the file is closed or the process ends, in whatever way."""
    file = open(folder / "lock", "w")  # noqa: SIM115 (it stays open)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by the loader's workers
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            raise UserError(f"{folder} is being trained by another process: wait for it, or end it") from None
        print(
            f"lmsd: {folder} cannot be locked ({error.strerror}): see that one process at a time trains it",
            file=sys.stderr,
        )
    return file


def held(folder: Path) -> bool:
    """Whether another process trains a run; not for one that this process holds, which would lose it."""
    try:
        if (folder / "lock").is_file():
            lock(folder).close()
    except UserError:
        return True
    return False


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has saved anything, be it damaged."""
    return any(any((folder / "checkpoints").glob(f"step_*.ckpt{end}")) for end in ("", ".bad"))


def point_latest(folder: Path) -> None:
    """Let outputs/latest name the newest run, where links can be made."""
    link = OUTPUTS / "latest"
    if folder.parent == OUTPUTS:
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(folder.name)
        except OSError:
            print(f"lmsd: cannot make the link {link}", file=sys.stderr)


def discard(folder: Path) -> None:
    """Take away a run that was made and never used, and let outputs/latest name the one before."""
    if any(path.is_file() for name in FOLDERS for path in (folder / name).rglob("*")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent == OUTPUTS and (known := by_age()):
        point_latest(known[-1])
    elif folder.parent == OUTPUTS:
        (OUTPUTS / "latest").unlink(missing_ok=True)


def find_folder(name: str) -> Path:
    """The folder of a run, for verbs that name its checkpoint apart; see `find_run`."""
    found = find_run(name)
    if folder_of(found) != found:
        raise UserError(f"run={name} is a checkpoint: write run={folder_of(found)} checkpoint={found.name}")
    return found


def checkpoint_at(folder: Path, name: str) -> Path:
    """Where a run keeps the checkpoint that `checkpoint=` names. Raises UserError for another run's."""
    if Path(name).name != name and Path(name).parent.resolve() != (folder / "checkpoints").resolve():
        raise UserError(
            f"checkpoint={name} is not one of {folder / 'checkpoints'}: name the run that it is of, run=RUN"
        )
    return folder / "checkpoints" / Path(name).name


def unfinished(name: str, run_dir: str | None = None) -> Path | None:
    """The newest run of the experiment `name` to go on with; or that of run_dir, done or not.

    One that has a checkpoint, be it damaged, is not done, and is not in another process's hands.
    """
    if run_dir is not None:
        return Path(run_dir) if (Path(run_dir) / "config.yaml").is_file() else None
    for folder in reversed(by_age("*")):
        if f"-{name}-" not in folder.name or status(folder).get("state") == "done":
            continue
        if has_checkpoint(folder) and name_of(folder) == name and not held(folder):
            return folder
    return None


def name_of(folder: Path) -> str:
    """The experiment's name, by the configuration or else by the folder."""
    try:
        return str(config_of(folder).get("name"))
    except UserError:
        return "-".join(folder.name.split("-")[3:-1])


def state(folder: Path) -> str:
    """What a run is doing; one that says it runs and whose process is gone was killed."""
    known = status(folder)
    if known.get("state") == "running" and not alive(known.get("pid")):
        return "killed"
    return str(known.get("state", "unknown"))


def alive(pid: Any) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    stat = Path(f"/proc/{pid}/stat")  # where there is one: a process that ended and was not collected
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def scored(folder: Path, word: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics with a name that holds a word, but for damaged and unfinished ones."""
    return [
        line for line in read_records(folder / "metrics.jsonl") if any(word in f'"{name}"' for name in line)
    ]


def config_of(folder: Path) -> DictConfig:
    """The configuration a run was started with."""
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        config = None
    if not isinstance(config, DictConfig) or not config:
        raise UserError(
            f"{folder / 'config.yaml'} cannot be read: lmsd train resume={folder} writes it again from the "
            "newest checkpoint"
        )
    return _today(config)


def _today(config: DictConfig) -> DictConfig:
    """A stored configuration under today's names, with what has been an option since."""
    tree: Any = OmegaConf.to_container(config)
    return OmegaConf.create(root(today(tree)).complete())  # type: ignore[no-any-return]


def config_again(folder: Path) -> DictConfig:
    """`config_of`, or the copy in the newest intact checkpoint."""
    try:
        return config_of(folder)
    except UserError:
        from lmsd.checkpoints import KEY, newest, read

        path = newest(folder / "checkpoints")
        config = None if path is None else OmegaConf.create(str(read(path).get(KEY, {}).get("config", "")))
    if not isinstance(config, DictConfig) or not config:
        raise UserError(
            f"{folder / 'config.yaml'} cannot be read, and no checkpoint holds a copy: take that of a run "
            "like this one, or begin a new run"
        )
    if launched_rank() == 0:
        print(f"lmsd: {folder / 'config.yaml'} cannot be read; taken from {path}", file=sys.stderr)
    return _today(config)
