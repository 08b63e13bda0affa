"""A trained run opened for sampling and scoring."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lmsd.checkpoints import manifests, newest
from lmsd.cli.build import experiment
from lmsd.cli.config.compose import check_choice, groups, load, parse
from lmsd.cli.config.limits import check_guidance, check_interval
from lmsd.cli.config.options import SamplingOptions
from lmsd.cli.runs import store
from lmsd.errors import UserError
from lmsd.evaluation import Generation, make_generate
from lmsd.models.tokenizer import unknown_words
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
        batch = self._batch(prompts, torch.zeros(len(prompts), *self.generator.image_shape))
        return self.generate(batch, Rng(seed, batch.position))

    def edited(
        self, image: Tensor, prompt: str, *, seed: int, strength: float, mask: Tensor | None = None
    ) -> Tensor:
        """`image` [1,C,H,W] in [-1,1] changed towards the prompt; mask [1,1,H,W]: 1 where it may change."""
        batch = self._batch([prompt], image)
        return self.generate.edit(batch, Rng(seed, batch.position), strength=strength, mask=mask)

    @staticmethod
    def _batch(prompts: list[str], x: Tensor) -> Batch:
        labels = [int(prompt) if prompt.isdecimal() else -1 for prompt in map(str, prompts)]
        return Batch(
            x=x,
            position=torch.arange(len(prompts)),
            text=[str(prompt) for prompt in prompts],
            label=torch.tensor(labels) if min(labels) >= 0 else None,
        )

    def note_unknown_words(self, prompts: list[str]) -> None:
        """Name on stderr the words that the run's own tokenizer never learned whole."""
        tokenizer = getattr(self.generator.conditioner, "tokenizer", None)
        strange = unknown_words(tokenizer, prompts) if isinstance(tokenizer, str) else []
        if strange:
            named = ", ".join(f"'{word}'" for word in strange[:5])
            print(f"note: {named}: rare in the captions of this run, or never in them", file=sys.stderr)

    def facts(self) -> dict[str, Any]:
        """What was sampled from, and how."""
        return {"checkpoint": self.checkpoint.name, "ema": self.ema, **self.generate.record()}


def open_run(folder: Path, chosen: SamplingOptions) -> Trained:
    """Build a run's generator, load its weights and choose the sampling."""
    config = store.config_of(folder)
    if chosen.sampler is not None:
        check_choice(parse(f"sampler={chosen.sampler}"), groups())
        config.sampler = load("train", [f"sampler={chosen.sampler}"]).sampler
    kept = folder / "checkpoints"
    path = kept / chosen.checkpoint if chosen.checkpoint else newest(kept)
    if path is None or not path.is_file():
        names = ", ".join(known.name for known in manifests(kept)) or "none"
        raise UserError(f"{folder} has no checkpoint {chosen.checkpoint or 'yet'}; there are: {names}")
    check_guidance(config, config.evaluate.guidance if chosen.guidance is None else chosen.guidance)
    average = None if chosen.ema == "raw" or not config.optim.ema else chosen.ema
    generator = experiment.trained(config, path, ema=average)
    settings = config.evaluate
    interval = chosen.interval or settings.interval
    check_interval("interval", interval)
    generate = make_generate(
        generator,
        experiment.sampler(config),
        steps=chosen.steps or settings.steps,
        guidance=settings.guidance if chosen.guidance is None else chosen.guidance,
        interval=None if interval is None else (interval[0], interval[1]),
    )
    return Trained(config, generator, generate, path, "raw" if average is None else average)
