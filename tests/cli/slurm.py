"""A SLURM cluster of this machine alone: controller, node daemon and keys in a folder, stopped after use."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    lacking = [name for name in NEEDED if not shutil.which(name, path=places)]
    if lacking:
        return f"SLURM is not installed ({', '.join(lacking)})"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started by root"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """SLURM_CONF names a cluster of one node that takes jobs, as long as the block lasts."""
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, ports=free_ports(2), folder=folder, cpus=os.cpu_count()))
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={files.pop('socket')}"]
    munge += [f"--{name}-file={path}" for name, path in files.items()]
    before = os.environ.get("SLURM_CONF"), os.environ["PATH"]
    os.environ |= {"SLURM_CONF": str(conf), "PATH": f"{before[1]}:/usr/sbin:/sbin"}
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        with open(folder / "daemons.log", "wb") as log:
            daemons.append(subprocess.Popen(munge, stdout=log, stderr=log))
            until(lambda: (folder / "munge.socket").exists(), "munged")
            for command in (["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c"]):
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
        until(lambda: "idle" in told("sinfo", "-h", "-o", "%T"), f"a node that is idle ({folder})")
        yield
    finally:
        subprocess.run(["scancel", "--signal=KILL", "--state=RUNNING"], check=False, capture_output=True)
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
        os.environ["PATH"] = before[1]
        del os.environ["SLURM_CONF"]


def told(*command: str) -> str:
    """What a command of SLURM's prints; nothing where it fails."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def until(true: object, what: str, seconds: float = 60) -> None:
    """Wait for a condition. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} after {seconds:g} s")
        time.sleep(0.2)
