"""The processes of a sweep: one for each trial that runs, alone in a session of its own.

A prefix (srun, sh) stands between the sweep and the training, so that

    who is told to end   the training process alone, which its run's status.json names, if it is of the job's
                         session; else the group of the prefix, which passes it on (srun) or goes with it
    how                  SIGTERM; SIGUSR1 to srun, which kills its job on SIGTERM and keeps SIGINT to itself;
                         once: a second signal may end a process that is about to save
    who still runs       the process that was started, or who holds the run's lock
"""

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsd.cli.runs import store
from lmsd.cli.sweeps.trials import Trial
from lmsd.errors import Amount, Count, UserError
from lmsd.stops import CODES

STOPPED = {
    *CODES.values(),
    *(-number for number in CODES),
    -signal.SIGKILL,
    128 + signal.SIGKILL,  # as a shell or srun tells it
}
"""Exit codes of a training that was told to stop, or killed."""


@dataclass
class Job:
    """A trial's process; handle is None where an earlier, killed sweep began it.

    folder: its run's; notice: the signal that tells its group to end; said: where in the trial's log it
    begins; ended: whether it was told to.
    """

    trial: Trial
    folder: Path
    notice: signal.Signals = signal.SIGTERM
    handle: "subprocess.Popen[bytes] | None" = None
    said: int = 0
    ended: bool = False
    pruned: bool = False

    def running(self) -> bool:
        """Whether the trial is still being trained."""
        return self._leads() or store.held(self.folder)

    def _leads(self) -> bool:
        if self.handle is not None:
            return self.handle.poll() is None
        return self.trial.lives()

    def end(self) -> None:
        """Tell it, once, to save and stop."""
        if self.ended:
            return
        self.ended = True
        leader = self.trial.pid
        trainer: Any = store.status(self.folder).get("pid")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if leader is not None and session(trainer) == leader:
                os.kill(trainer, signal.SIGTERM)
            elif leader is not None and self._leads():
                os.killpg(leader, self.notice)

    def interrupted(self, state: Any) -> bool:
        """Whether it was stopped or killed, by its exit code or, where that is not known, its run's state."""
        code: int | None = None if self.handle is None else self.handle.returncode
        if code is None:
            return bool(state != "failed")
        return code in STOPPED or bool(code == 0 and state == "interrupted")


def session(pid: Any) -> int | None:
    """The session of a process; None where there is no such process here."""
    try:
        return os.getsid(pid)
    except (TypeError, OSError):
        return None


@dataclass(frozen=True)
class Placement:
    """Where trials run: how many at a time, on which GPUs, started by what."""

    jobs: Count | None = None
    gpus: tuple[Amount, ...] = ()
    prefix: tuple[str, ...] = ()

    def places(self, devices: int | None) -> list[str]:
        """The GPUs of each job at a time, as CUDA_VISIBLE_DEVICES names them; empty for all there are.

        devices: how many a job asks for; None: what there is for each, one unless `jobs` is given. Raises
        UserError where they do not suffice.
        """
        gpus, jobs = self.gpus, self.jobs
        if not gpus:
            return [""] * (jobs or 1)
        each = devices or max(1, len(gpus) // (jobs or len(gpus)))
        count = jobs or max(1, len(gpus) // each)
        if count * each > len(gpus):
            way = f"sweep.jobs={len(gpus) // each}" if each <= len(gpus) else "fewer devices="
            raise UserError(
                f"sweep.gpus=[{','.join(map(str, gpus))}] is too short for {count} at a time with {each} "
                f"each: name {count * each} (a GPU named twice serves two jobs), or give {way}"
            )
        return [",".join(map(str, gpus[job * each :][:each])) for job in range(count)]

    @property
    def notice(self) -> signal.Signals:
        """The signal that tells what the prefix starts to end: the one that srun passes on, or SIGTERM."""
        srun = any(Path(word).name == "srun" for word in self.prefix)
        return signal.SIGUSR1 if srun else signal.SIGTERM
