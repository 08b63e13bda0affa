"""`lmsd verify-resume`: your own configuration, killed and resumed, against the run that was never killed.

a    trained to its end                b    killed (SIGKILL) at random moments, resumed each time to its end
a = b: every tensor of weights, averages and optimizers, every count, the place in the data, every metric
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from lmsd.checkpoints import manifests
from lmsd.cli.config import options
from lmsd.cli.config.compose import load, parse
from lmsd.cli.runs import store
from lmsd.errors import Amount, UserError

HELP = """lmsd verify-resume [kills=3] [kill_seed=0] [out=FOLDER] [options of lmsd train ...]

Trains the configuration twice, once killed and resumed, and prints "equal" or the first difference.
Unless told otherwise it is short: 48 batches, with 6 checkpoints, without scores.

  lmsd verify-resume experiment=digits
  lmsd verify-resume experiment=digits kills=10 images=20_000 evaluate.n=200
"""

Launch: TypeAlias = Callable[[list[str], Path], int]
"""(words of `lmsd train`, file for what it says) → the process, which leads a group of its own."""


@dataclass(frozen=True)
class VerifyOptions:
    """What is not of `lmsd train`: how often to kill, at which moments, and the folder of both runs."""

    kills: Amount = 3
    kill_seed: Amount = 0
    out: Path | None = None


def main(arguments: list[str]) -> int:
    """Compare; exit code 0 where the two are equal, 1 where not."""
    own = [
        word
        for word in arguments
        if word.partition("=")[0] in {field.name for field in fields(VerifyOptions)}
    ]
    chosen = options.read(VerifyOptions, own, verb="verify-resume")
    words = shortened([word for word in arguments if word not in own])
    out = chosen.out or store.OUTPUTS / f"verify-resume-{time.strftime('%Y-%m-%d_%H%M%S')}"
    trial = verify(words, out, kills=chosen.kills, draw=random.Random(chosen.kill_seed), launch=start)
    if chosen.kills and not trial.images:
        raise UserError(
            "the run ended before it could be killed, so nothing was resumed: make it longer (images=...), "
            "or draw other moments, kill_seed=1"
        )
    times = f"killed {len(trial.images)} times, on from {', '.join(map(str, trial.images))} images"
    print(f"{times if trial.images else 'never killed'}; {trial.difference or trial.equal}")
    return 1 if trial.difference else 0


def shortened(words: list[str]) -> list[str]:
    """The words of `lmsd train`, with a short run for whatever they do not set themselves."""
    given = {str(parse(word).key_or_group) for word in words}
    for name in ("resume", "extend", "run_dir"):
        if name in given:
            raise UserError(f"{name}= makes no sense here: verify-resume makes both of its runs itself")
    config = load(words, run=True)
    if config.dry:
        raise UserError("debug=dry makes no sense here: verify-resume trains; it is short by itself")
    batch = config.batch_size
    short = {"images": 48 * batch, "checkpoint_every": 8 * batch, "log_every": 4 * batch, "evaluate.n": 0}
    return [*words, *(f"{name}={value}" for name, value in short.items() if name not in given)]


@dataclass(frozen=True)
class Trial:
    """images: of the newest checkpoint at each kill; difference: the first one, or empty; equal: what was."""

    images: list[int]
    difference: str
    equal: str


def verify(words: list[str], out: Path, *, kills: int, draw: random.Random, launch: Launch) -> Trial:
    """Train both runs in `out`. Raises UserError where one of them fails by itself."""
    whole_run, cut = out / "unbroken", out / "killed"
    out.mkdir(parents=True, exist_ok=True)
    if store.status(whole_run).get("state") != "done":
        finish(launch([*words, f"run_dir={whole_run}"], out / "unbroken.log"), out / "unbroken.log")
    seconds, seen = float(store.status(whole_run)["seconds"]), []
    settled = f"precision={store.config_of(whole_run).precision}"  # auto would be tried anew
    again, log = [*words, f"run_dir={cut}", settled, "resume=auto"], out / "killed.log"
    for _ in range(kills):
        process = launch(again, log)
        if not killed(process, cut, draw.uniform(0, seconds)):
            break
        seen.append(max((m["images"] for m in manifests(cut / "checkpoints").values()), default=0))
    if store.status(cut).get("state") != "done":
        finish(launch(again, log), log)
    difference, tensors = compare(whole_run, cut)
    return Trial(seen, difference, f"equal: {tensors} tensors, all counts and metrics")


def start(words: list[str], log: Path) -> int:
    """A process of its own."""
    command = [sys.executable, "-m", "lmsd.cli", "train", *words]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True).pid


def killed(process: int, folder: Path, seconds: float) -> bool:
    """Kill a process so long after its training has begun; False where it ended before."""
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        ended, code = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code) == -signal.SIGKILL
        status = store.status(folder)
        if deadline is None and status.get("state") == "running" and status.get("pid") == process:
            deadline = time.monotonic() + seconds
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def finish(process: int, log: Path) -> None:
    """Wait for a process that is to succeed."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise UserError(f"training ended with exit code {code}: {lines[-1]} (all of it in {log})")


def compare(ours: Path, theirs: Path) -> tuple[str, int]:
    """The first difference of two finished runs in words, or empty; and how many tensors were compared."""
    from lmsd.checkpoints import read, tensors

    return next(differences(ours, theirs), ""), len(dict(tensors(read(ours))))


def differences(ours: Path, theirs: Path) -> Iterator[str]:
    """What two finished runs differ in: any bit of a tensor, place in the data, clock, lines of metrics."""
    from lmsd.checkpoints import KEY, read, tensors

    a, b = read(ours), read(theirs)
    mine, other = dict(tensors(a)), dict(tensors(b))
    for name in sorted(mine.keys() | other.keys()):
        if name not in mine or name not in other:
            yield f"{name} is in one of the two only"
        elif mine[name].shape != other[name].shape:
            yield f"{name} differs in shape: {list(other[name].shape)}, not {list(mine[name].shape)}"
        elif not mine[name].equal(other[name]):
            apart = (mine[name].double() - other[name].double()).abs().max()
            yield f"{name} differs by up to {float(apart):.3g}"
    for key in (*(key for key in a if key.endswith("DataModule")), KEY):
        for name in a[key].keys() - {"config"}:
            if plain(a[key][name]) != plain(b[key][name]):
                yield f"{key}.{name} was {b[key][name]} and should be {a[key][name]}"
    first, second = (list(map(timeless, store.scored(run, '"images"'))) for run in (ours, theirs))
    for line, found in zip(first, second, strict=False):
        if line != found:
            yield f"metrics at {line['images']} images differ"
    if len(first) != len(second):
        yield f"{len(second)} lines of metrics, and there should be {len(first)}"


def plain(value: Any) -> Any:
    """A state without its tensors, which are compared separately."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else ""


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what depends on wall-clock time."""
    return {name: value for name, value in line.items() if name != "time" and "seconds" not in name}
