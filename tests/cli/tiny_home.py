"""Where the tests of the command line live: options of a tiny run, and how to run a verb."""

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmsd import cli

TINY = [
    "data.image_size=16",
    "images=192",
    "batch_size=32",
    "net.width=16",
    "net.depth=1",
    "discriminator.trunk.width=16",
    "discriminator.trunk.depth=1",
    "conditioner={dim: 16, heads: 2, vocab: 514, layers: 1}",
    "evaluate.n=24",
    "evaluate.every=96",
    "evaluate.extractor.images=64",
    "evaluate.grid=4",
    "log_every=32",
    "checkpoint_every=96",
    "optim.ema=[64]",
    "accelerator=cpu",
]


ALONE = [word for word in TINY if not word.startswith("discriminator.")]
"""The same for a method without a discriminator."""


@dataclass(frozen=True)
class Home:
    """A working folder with a data set in data/shapes and a finished run in outputs/first."""

    folder: Path
    built: str
    trained: str


def spoken(arguments: list[str]) -> str:
    """Run a verb that succeeds; what it said on stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.run(arguments) == 0, arguments
    return out.getvalue()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, with its own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMSD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield


def on_two_ranks(*arguments: str, seconds: float = 500) -> None:
    """Run a verb that succeeds on two ranks of torchrun; one that hangs is ended, and fails."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [*launch, "-m", "lmsd.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as agent:
        try:
            _, said = agent.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            agent.terminate()  # which ends its ranks
            _, said = agent.communicate(timeout=60)
            said += f"\nended after {seconds:g} s"
        finally:
            agent.kill()
    assert agent.returncode == 0, said[-2000:]
