"""`lmsd doctor`: what runs stand on, one line each, with the fix where something is wrong.

Looks at what is installed without importing it, so it answers also where an import fails.
"""

import netrc
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from lmsd import __version__
from lmsd.cli.config.compose import own_configs
from lmsd.cli.runs import store
from lmsd.errors import UserError

HELP = """lmsd doctor [SHARDS]      versions, devices, disk, threads, W&B; and a data set, where one is named
"""
ROOM = 5.0  # GB that a run may want
Mark = Literal["ok", "note", "fix"]


@dataclass(frozen=True)
class Finding:
    """One line: what was found, and what to do about it."""

    mark: Mark
    what: str
    way: str = ""

    def __str__(self) -> str:
        return f"{self.mark:5}{self.what}{f':  {self.way}' if self.way else ''}"


def main(arguments: list[str]) -> int:
    """Print the findings; exit code 2 where one wants a fix."""
    for word in arguments:
        name, equals, source = word.partition("=")
        if equals and not Path(word).exists() and "/" not in name:
            raise UserError(f"lmsd doctor has no option {name}=: name shards alone, lmsd doctor {source}")
    code = 0
    for finding in findings(arguments):
        print(finding, flush=True)
        code = 2 if finding.mark == "fix" else code
    return code


def findings(shards: list[str]) -> Iterator[Finding]:
    """Everything that is looked at, in order."""
    yield Finding("ok", f"lmsd {__version__}, Python {platform.python_version()}, {platform.system()}")
    yield from libraries()
    yield torchvision(installed("torch"), installed("torchvision"))
    yield devices(installed("torch") or "", gpus())
    yield threads(os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS"))
    yield disk(Path.cwd(), shutil.disk_usage(Path.cwd()).free / 1e9)
    yield wandb(wandb_key())
    yield configs()
    for source in shards:
        yield data(source)


def installed(name: str) -> str | None:
    """The version of a package, None where it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def libraries() -> Iterator[Finding]:
    """The libraries that everything needs."""
    found = {name: installed(name) for name in store.LIBRARIES}
    yield Finding("ok", ", ".join(f"{name} {v}" for name, v in found.items() if v))
    for name in (name for name, v in found.items() if v is None):
        yield Finding("fix", f"{name} is not installed", f"{sys.executable} -m pip install {name}")


def torchvision(torch: str | None, vision: str | None) -> Finding:
    """The one package that must not be there beside a torch of another build."""
    if vision is None:
        return Finding("ok", "no torchvision, and nothing here needs it")
    if torch is not None and torch.endswith("+cpu") and not vision.endswith("+cpu"):
        what = f"torchvision {vision} is installed but was built for CUDA; your torch is CPU-only"
        return Finding("fix", what, "nothing here needs it: pip uninstall torchvision")
    return Finding("note", f"torchvision {vision} is installed", "nothing here needs it")


def gpus() -> list[str]:
    """The GPUs that the driver names."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(" (")[0] for line in listed.stdout.splitlines() if line.startswith("GPU ")]


def devices(torch: str, found: list[str]) -> Finding:
    """GPUs, and whether torch can use them."""
    if not found:
        return Finding("ok", "no GPU; accelerator=cpu is what auto takes")
    if torch.endswith("+cpu"):
        what = f"{len(found)} GPUs and a torch for CPUs only"
        return Finding("fix", what, "install the build of torch for your driver")
    return Finding("ok", "; ".join(found))


def threads(cores: int, asked: str | None) -> Finding:
    """CPU threads; more of them than cores slow a run down."""
    if asked is not None and asked.isdecimal() and int(asked) > cores:
        what = f"OMP_NUM_THREADS={asked} on {cores} cores"
        return Finding("fix", what, f"OMP_NUM_THREADS={cores}, or threads={cores} in a run")
    return Finding("ok", f"{cores} cores, OMP_NUM_THREADS={asked or 'unset'}")


def disk(folder: Path, free: float) -> Finding:
    """Room where runs are written; free: GB."""
    if not os.access(folder, os.W_OK):
        return Finding("fix", f"{folder} cannot be written", "work elsewhere, or give run_dir=FOLDER")
    if free < ROOM:
        return Finding("fix", f"{free:.1f} GB free here", f"make room ({ROOM:.0f} GB), or keep=1")
    return Finding("ok", f"{free:.0f} GB free here")


def wandb(key: bool) -> Finding:
    """Whether W&B would go online; it never asks."""
    offline = "no key; logger=wandb writes offline (wandb login, or WANDB_API_KEY)"
    return Finding("ok", f"W&B: {'a key is there; logger=wandb goes online' if key else offline}")


def wandb_key() -> bool:
    """Whether there is a key for W&B, in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def configs() -> Finding:
    """The user's own config folders."""
    try:
        found = own_configs()
    except UserError as error:
        return Finding("fix", str(error), "create it, or unset LMSD_CONFIG_DIR")
    return Finding("ok", f"own configs: {', '.join(map(str, found)) or 'none (LMSD_CONFIG_DIR)'}")


def data(source: str) -> Finding:
    """Whether shards are sound but for their pixels: every one is read, once, where there is no index yet."""
    from lmsd.data.shards import by_split, resolve
    from lmsd.data.storage import Storage

    try:
        found = {
            split: Storage().index(shards) for split, shards in by_split(resolve(source)).items() if shards
        }
    except UserError as error:
        return Finding("fix", str(error))
    counts = ", ".join(f"{len(index):,} {split}" for split, index in found.items())
    missing = [split for split in ("train", "val", "test") if split not in found]
    if missing:
        return Finding("note", f"{source}: {counts}", f"no {', '.join(missing)} shards")
    return Finding("ok", f"{source}: {counts}")
