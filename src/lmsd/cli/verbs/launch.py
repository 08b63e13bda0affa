"""`lmsd launch`: prints a job file of training that a scheduler restarts by our exit codes and that resumes.

143 asked to stop, 75 a rank hung     start again; the run goes on from its newest checkpoint
0 done, 130 Ctrl-C, 2, 1              leave it
"""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from omegaconf import DictConfig

from lmsd.cli.config import options
from lmsd.cli.config.compose import load
from lmsd.cli.config.limits import check_limits
from lmsd.cli.config.suggest import nearest
from lmsd.errors import Amount, Count, UserError, Word

AGAIN = (75, 143)
"""Exit codes after which a run is started again."""
LEFT = (1, 2, 130)
GRACE = 120
"""Seconds from the notice to the kill: a batch and a checkpoint."""
GOES_ON = ("resume=", "extend=")
JobName = Annotated[
    str, Word(r"^[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?$", "lower-case letters, digits and dashes")
]
Time = Annotated[str, Word(r"^(\d+-)?\d+(:\d\d){0,2}$", "a time as sbatch takes it, e.g. 24:00:00")]

HELP = """lmsd launch slurm|k8s|sky [option=value ...] [launch.OPTION=VALUE ...] > JOB

Prints the job file of lmsd train with these options: it saves when it is told to stop, is started again and
goes on in the same run_dir= (by default outputs/NAME); a mistake, a failure or Ctrl-C ends it.

  launch.name=lmsd       of the job, and of the run's folder
  slurm   launch.time=24:00:00   launch.partition=   launch.account=   launch.restarts=100
  k8s     launch.image=lmsd      launch.volume=lmsd (a claim, mounted as /work)   launch.restarts=100
  sky     launch.gpu=A100        launch.bucket=lmsd (mounted as /work)

  lmsd launch slurm experiment=cifar10 devices=8 num_nodes=2 > job.sh; sbatch job.sh
  lmsd launch k8s experiment=cifar10 devices=4 > job.yaml; kubectl apply -f job.yaml
  lmsd launch sky experiment=cifar10 devices=8 launch.gpu=H100 > job.yaml; sky jobs launch job.yaml
"""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """Options of `lmsd launch slurm`; see HELP."""

    name: JobName = "lmsd"
    time: Time | None = None
    partition: str | None = None
    account: str | None = None
    restarts: Amount = 100


@dataclass(frozen=True, kw_only=True)
class K8sOptions:
    """Options of `lmsd launch k8s`; see HELP."""

    name: JobName = "lmsd"
    image: str = "lmsd"
    volume: str = "lmsd"
    restarts: Amount = 100


@dataclass(frozen=True, kw_only=True)
class SkyOptions:
    """Options of `lmsd launch sky`; see HELP."""

    name: JobName = "lmsd"
    gpu: str = "A100"
    bucket: str = "lmsd"


@dataclass(frozen=True)
class Training:
    """What is launched: the words of `lmsd train`, processes on each machine, machines, whether on GPUs."""

    words: list[str]
    devices: Count
    nodes: Count
    gpus: bool


def main(arguments: list[str]) -> int:
    """Print the job file."""
    where = arguments[0]
    if where not in KINDS:
        raise UserError(f"lmsd launch {where}: give one of {', '.join(KINDS)} first{nearest(where, KINDS)}")
    kind, write = KINDS[where]
    own = [word for word in arguments[1:] if word.startswith("launch.")]
    chosen = options.read(kind, own, verb=f"launch {where}", prefix="launch.")
    job = training([word for word in arguments[1:] if word not in own], chosen.name)
    if job.nodes > 1 and where != "slurm":
        raise UserError(
            f"num_nodes={job.nodes}: lmsd launch {where} is for one machine; take slurm for several"
        )
    print(write(job, chosen), end="")
    return 0


def training(words: list[str], name: str) -> Training:
    """What the words of `lmsd train` ask for, in a folder of its own, to be resumed."""
    for word in words:
        if word.startswith(GOES_ON):
            raise UserError(
                f"{word}: a launched run goes on by itself; leave it out, and name the run by run_dir="
            )
    config: DictConfig = load(words)
    check_limits(config)
    if config.devices == "auto":
        raise UserError("devices=auto: a job asks for a number of devices; give devices=N")
    folder = [] if config.run_dir else [f"run_dir=outputs/{name}"]
    return Training(
        [*words, *folder, "resume=auto"],
        int(config.devices),
        int(config.num_nodes),
        config.accelerator != "cpu",
    )


def slurm(job: Training, chosen: SlurmOptions) -> str:
    """A batch script for sbatch, of one task a device."""
    asked = {
        "job-name": chosen.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.devices,
        "gpus-per-node": job.devices if job.gpus else None,
        "time": chosen.time,
        "partition": chosen.partition,
        "account": chosen.account,
        "signal": f"USR1@{GRACE}",
        "output": f"{chosen.name}-%j.log",
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]
    codes, few = "|".join(map(str, AGAIN)), f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {chosen.restarts} ]'
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            f"srun --kill-on-bad-exit=1 lmsd train {shlex.join(job.words)}",
            "code=$?",
            f"case $code in {codes})",
            f'  {few} && scontrol requeue "$SLURM_JOB_ID" ;;',
            "esac",
            "exit $code",
            "",
        ]
    )


def k8s(job: Training, chosen: K8sOptions) -> str:
    """A Kubernetes Job of one pod, whose ranks `lmsd train` starts itself."""
    container = {
        "name": "train",
        "image": chosen.image,
        "command": ["lmsd", "train", *job.words],
        "workingDir": "/work",
        "volumeMounts": [{"name": "work", "mountPath": "/work"}, {"name": "shm", "mountPath": "/dev/shm"}],
        **({"resources": {"limits": {"nvidia.com/gpu": job.devices}}} if job.gpus else {}),
    }
    codes = {"containerName": "train", "operator": "In", "values": list(LEFT)}
    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    spec = {
        "backoffLimit": chosen.restarts,
        "podFailurePolicy": {"rules": [evicted, {"action": "FailJob", "onExitCodes": codes}]},
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": GRACE,
                "containers": [container],
                "volumes": [
                    {"name": "work", "persistentVolumeClaim": {"claimName": chosen.volume}},
                    {"name": "shm", "emptyDir": {"medium": "Memory"}},
                ],
            }
        },
    }
    return _yaml({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": chosen.name}, "spec": spec})


def sky(job: Training, chosen: SkyOptions) -> str:
    """A managed job of SkyPilot: outputs in a bucket, started again elsewhere if a machine is taken away."""
    machine: dict[str, Any] = {"accelerators": f"{chosen.gpu}:{job.devices}"} if job.gpus else {"cpus": "4+"}
    return _yaml(
        {
            "name": chosen.name,
            "resources": {
                **machine,
                "use_spot": True,
                "job_recovery": {"recover_on_exit_codes": list(AGAIN)},
            },
            "file_mounts": {"/work": {"name": chosen.bucket, "mode": "MOUNT"}},
            "setup": "pip install lmsd",
            "run": f"cd /work && exec lmsd train {shlex.join(job.words)}\n",
        }
    )


def _yaml(content: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(content), sort_keys=False, width=sys.maxsize))


KINDS: Mapping[str, tuple[type[Any], Callable[[Training, Any], str]]] = {
    "slurm": (SlurmOptions, slurm),
    "k8s": (K8sOptions, k8s),
    "sky": (SkyOptions, sky),
}
