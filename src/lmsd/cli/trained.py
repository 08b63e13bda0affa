"""A trained run opened for sampling and scoring."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lmsd.cli import build, runs
from lmsd.cli.compose import check_choice, groups, load, parse
from lmsd.cli.limits import check_guidance
from lmsd.engine.checkpoint import manifests, newest
from lmsd.errors import UserError
from lmsd.evaluation import Generation, make_generate
from lmsd.rng import Rng
from lmsd.types import Batch

if TYPE_CHECKING:
    from lmsd.models.generator import Generator


@dataclass(frozen=True)
class Trained:
    """A run's generator with settings of sampling."""

    config: DictConfig
    generator: "Generator"
    generate: Generation
    checkpoint: Path
    ema: str

    def images(self, prompts: list[str], *, seed: int) -> Tensor:
        """One image for each prompt [n,C,H,W] in [-1,1]; image i is a function of (seed, i, its prompt)."""
        generator = self.generator
        shape = (len(prompts), generator.channels, generator.image_size, generator.image_size)
        labels = [int(prompt) if prompt.isdecimal() else -1 for prompt in map(str, prompts)]
        batch = Batch(
            x=torch.zeros(shape),
            position=torch.arange(len(prompts)),
            text=[str(prompt) for prompt in prompts],
            label=torch.tensor(labels) if min(labels) >= 0 else None,
        )
        return self.generate(batch, Rng(seed, batch.position))

    def facts(self) -> dict[str, Any]:
        """What was sampled from, and how."""
        return {"checkpoint": self.checkpoint.name, "ema": self.ema, **self.generate.record()}


def open_run(
    folder: Path,
    *,
    ema: str = "ema",
    checkpoint: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
) -> Trained:
    """Build a run's generator, load its weights and choose the sampling; None takes the run's own choice.

    ema: "ema" for the first average, a half-life in images, or "raw"; checkpoint: a file name, or the newest.
    """
    config = runs.config_of(folder)
    if sampler is not None:
        check_choice(parse(f"sampler={sampler}"), groups())
        config.sampler = load("train", [f"sampler={sampler}"]).sampler
    path = folder / "checkpoints" / checkpoint if checkpoint else newest(folder / "checkpoints")
    if path is None or not path.is_file():
        names = ", ".join(known.name for known in manifests(folder / "checkpoints")) or "none"
        raise UserError(f"{folder} has no checkpoint {checkpoint or 'yet'}; there are: {names}")
    check_guidance(config, config.evaluate.guidance if guidance is None else guidance)
    average = None if ema == "raw" or not config.optim.ema else ema
    generator = build.trained(config, path, ema=average)
    settings = config.evaluate
    generate = make_generate(
        generator,
        build.sampler(config),
        steps=steps or settings.steps,
        guidance=settings.guidance if guidance is None else guidance,
        interval=None if settings.interval is None else (settings.interval[0], settings.interval[1]),
    )
    return Trained(config, generator, generate, path, "raw" if average is None else average)
