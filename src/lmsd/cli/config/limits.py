"""What the values of `train` may be: ranges and choices, looked at before anything is built."""

import os
from collections.abc import Iterator, Mapping, Sequence
from math import inf

from omegaconf import DictConfig, OmegaConf

from lmsd.cli.config.kinds import Choice, Either, Flag, Kind, Many, Name, Number, Text
from lmsd.cli.config.suggest import nearest
from lmsd.errors import UserError
from lmsd.ranks import shares

INTERACTIVE = ("bash", "interactive")
"""Names of SLURM's jobs in which ranks are started by hand."""

RULES: Mapping[str, Kind] = {
    "name": Name(),
    "seed": Number(0, 2**63 - 1),
    "images": Number(1),
    "batch_size": Number(1),
    "micro_batches": Number(1),
    "precision": Choice(("32-true", "bf16-mixed", "16-mixed")),  # the engine says why not the last
    "devices": Either((Number(1), Choice(("auto",)))),
    "num_nodes": Number(1),
    "accelerator": Choice(("auto", "cpu", "gpu", "cuda")),
    "fsdp": Flag(),
    "compile": Flag(),
    "checkpointing": Flag(),
    "dry": Flag(),
    "profiler": Choice(("simple", "pytorch"), null=True),
    "run_dir": Text(null=True),
    "resume": Text(null=True),
    "init_from": Either((Text(null=True), Many(Text()))),
    "threads": Number(1, null=True),
    "log_every": Number(1),
    "checkpoint_every": Number(0),
    "keep": Number(1),
    "keep_every": Number(0),
    "hang_seconds": Number(0, whole=False),
    "rollback.skipped": Number(1),
    "rollback.collapsed": Number(0),
    "rollback.at_most": Number(0),
    "steps": Number(1),
    "generator.prediction": Choice(("eps", "x0", "v", "velocity")),
    "generator.z_dim": Number(0),
    "generator.precondition": Choice(("none", "edm")),
    "optim.warmup_images": Number(0),
    "optim.decay": Choice(("cosine", "constant")),
    "optim.clip.generator": Number(0, whole=False, null=True),
    "optim.clip.discriminator": Number(0, whole=False, null=True),
    "optim.ema": Number(1, many="any"),
    "evaluate.every": Number(0),
    "evaluate.at_start": Flag(),
    "evaluate.n": Number(0),
    "evaluate.seeds": Number(0, many="any"),
    "evaluate.steps": Number(1),
    "evaluate.guidance": Number(-inf, whole=False),
    "evaluate.interval": Number(0, whole=False, null=True, many=2),
    "evaluate.grid": Number(0),
    "evaluate.neighbors": Flag(),
    "evaluate.stop_hacking": Number(0),
    "evaluate.checker": Choice(("shapes",), null=True),
    "evaluate.extractor.path": Text(null=True),
    "evaluate.extractor.kind": Choice(("lmsd-cnn", "inception", "clip", "dinov2")),
    "evaluate.extractor.augment": Choice(("none", "shift", "shift_flip")),
    "evaluate.extractor.images": Number(1, null=True),
    "data.source": Text(null=True),
    "data.first": Number(1, null=True),
    "data.image_size": Number(1),
    "data.channels": Number(1, 3),
    "data.color": Number(0, 1, whole=False),
    "data.num_workers": Number(0),
    "data.window": Number(1),
    "data.on_error": Choice(("stop", "skip")),
    "data.on_change": Choice(("error", "new_epoch")),
    "data.captions": Choice(("join", "first", "draw")),
    "data.decode": Choice(("old", "new"), null=True),
    "data.max_bad": Number(0, 1, whole=False),
    "data.cache_gb": Number(0, whole=False),
    "data.memory_gb": Number(0, whole=False),
}


_COUNT = Number(1)
SIZES: Mapping[str, Kind] = {
    **dict.fromkeys(("width", "depth", "layers", "heads", "head_dim", "blocks", "patch", "features"), _COUNT),
    **dict.fromkeys(("dim", "time_dim", "vocab", "classes", "z_tokens"), _COUNT),
    **dict.fromkeys(("steps", "lazy", "d_steps"), _COUNT),
    "length": Number(3),  # begin, a word, end
    "hidden": Number(0.01, whole=False),
    "widths": Number(1, many="any"),
}
"""Arguments that are counts or sizes, by name, wherever a constructor takes them."""


def check_limits(config: DictConfig) -> None:
    """Refuse a value outside its rule, and a mandatory one that was not given."""
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} has no value of its own: give {key}=...")
    for key, rule in RULES.items():
        value = OmegaConf.select(config, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if not rule.fits(value):
            hint = nearest(str(value), rule.options) if isinstance(rule, Choice) else ""
            raise UserError(f"{key}={value} is not {rule.words()}{hint}")
    edm = config.schedule.get("_target_", "").endswith(".EDM")
    if config.generator.precondition == "edm" and not edm:
        raise UserError(
            "generator.precondition=edm is for schedule=edm, where alpha = 1; take schedule=edm with it, or "
            "generator.precondition=none"
        )
    if config.devices == "auto":
        return  # looked at once the devices are counted
    devices = config.devices * config.num_nodes
    shares(config.batch_size, devices, config.micro_batches)
    check_guidance(config, config.evaluate.guidance)
    check_interval("evaluate.interval", config.evaluate.interval)


def check_tasks(config: DictConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a job of SLURM's whose tasks are not the ranks that the configuration asks for."""
    if "SLURM_NTASKS" not in environment or "TORCHELASTIC_RUN_ID" in environment:
        return
    name = environment.get("SLURM_JOB_NAME")
    if name in INTERACTIVE:
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # srun in salloc
            raise UserError(
                f"the job's name, {name}, says that ranks are started by hand, and each task would train a "
                "run of its own: start them by srun --job-name=train lmsd train ..."
            )
        return
    tasks, ranks = int(environment["SLURM_NTASKS"]), config.devices * config.num_nodes
    per_node, nodes = environment.get("SLURM_NTASKS_PER_NODE"), environment.get("SLURM_NNODES")
    srun = "SLURM_STEP_ID" in environment
    alone = ranks == 1 and (tasks == 1 or (per_node is not None and not srun))
    placed = per_node == str(config.devices) and nodes in (None, str(config.num_nodes))
    if not alone and not (tasks == ranks and srun and placed):
        raise UserError(
            f"SLURM_NTASKS={tasks}, and devices={config.devices} num_nodes={config.num_nodes} are {ranks} "
            f"ranks, each a task: ask for --nodes={config.num_nodes} --ntasks-per-node={config.devices}, and "
            "start them by srun lmsd train ..."
        )


def check_guidance(config: DictConfig, guidance: float) -> None:
    """Refuse guidance away from what a run never learned: its images without a condition.

    Learning from rewards begins with a generator that has learned them elsewhere, or has not.
    """
    objective = config.objective
    if "reward" in objective:
        return
    if guidance != 1.0 and not any(dropouts(OmegaConf.to_container(objective))):
        raise UserError(
            f"guidance={guidance:g} needs a generator that was trained without captions too, and this one "
            "was not (caption_dropout=0 in its objective): take guidance=1, or train with caption_dropout=0.1"
        )


def dropouts(node: object) -> Iterator[float]:
    """Every share of captions dropped in an objective and what it is made of."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "caption_dropout":
                yield value
            else:
                yield from dropouts(value)


def check_interval(name: str, interval: Sequence[float] | None) -> None:
    """Refuse times of guidance that are no (low, high): nothing would be guided."""
    if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
        raise UserError(f"{name}={list(interval)} is no [low, high]: give two times, the lower one first")
