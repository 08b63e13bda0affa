"""precision=auto: what it stands for on this device."""

import torch
from omegaconf import DictConfig

from lmsd.cli.build.experiment import Experiment
from lmsd.engine.hardware import Precision
from lmsd.engine.precision import choice, timed
from lmsd.engine.trainer import found_accelerator
from lmsd.ranks import shares


def faster(config: DictConfig, built: Experiment) -> Precision:
    """The faster precision, by a trial on the first images of the run, which is told."""
    size = shares(config.batch_size, config.devices * config.num_nodes, config.micro_batches)
    on_gpu = found_accelerator(config.accelerator) != "cpu"
    device = torch.device("cuda" if on_gpu else "cpu")  # rank 0's is the first
    batch = next(iter(built.data.train_dataloader())).rows(slice(size))
    seconds = timed(built.engine, batch, device)
    told = ", ".join(f"{name} {1e3 * spent:.0f} ms" for name, spent in seconds.items())
    print(f"precision={choice(seconds)}, by trial: a batch of {size} takes {told}")
    return choice(seconds)
