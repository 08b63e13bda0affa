"""A diffusers folder judged as it is: `lmsd sample pipeline=FOLDER`, `lmsd evaluate pipeline=FOLDER`.

A run folder without any training is made for it, and the verbs go on with that as with any other run: its
configuration names the folder, the sampler that the folder comes with, and the usual steps and guidance.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from lmsd.cli.config.compose import load, plain
from lmsd.cli.runs import store
from lmsd.cli.runs.agreed import agreed
from lmsd.data.transforms import RECIPE, fit, scale
from lmsd.errors import UserError
from lmsd.models.pipeline import PipelineGenerator, Usual, usual
from lmsd.ranks import launched_rank
from lmsd.rng import Rng
from lmsd.sampling import Generation, Model
from lmsd.spec import build, taken
from lmsd.types import Batch, levels

TARGET = "lmsd.models.pipeline.from_pipeline"
KEY = "pipeline="
OWN = ("image_size", "batch_size")
"""Options of the run's configuration beside those with a dot: size of the images, how many at once."""


def as_run(words: Sequence[str]) -> list[str]:
    """A verb's words with run=FOLDER in place of pipeline=FOLDER and of what configures it; the run is made.

    What has a dot in its name (data.shards=, generator.precision=) configures the run, and so do `OWN`.
    """
    if not any(word.startswith(KEY) for word in words):
        return list(words)
    paths = [word.removeprefix(KEY) for word in words if word.startswith(KEY)]
    if len(paths) > 1 or any(word.startswith("run=") for word in words):
        raise UserError("pipeline=FOLDER stands in the place of run=: give one of them, once")
    path = Path(paths[0]).absolute()
    given, left = apart(words)
    found = usual(path)
    folder = agreed("pipeline_run", lambda: str(store.create(configured(path, found, given), list(words))))
    if launched_rank() == 0:
        store.set_status(Path(folder), state="done")
        name, kind, license_files = found.about.values()
        print(f"{name}, a {kind} ({license_files}): {folder}", file=sys.stderr)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
    return [f"run={folder}", *left]


def apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what configures the run; the verb's own options), without pipeline=."""
    names = [(word, word.lstrip("+").partition("=")[0]) for word in words if not word.startswith(KEY)]
    given = [word for word, name in names if "." in name or name in OWN]
    return given, [word for word, _ in names if word not in given]


def configured(path: Path, found: Usual, words: Sequence[str]) -> DictConfig:
    """The configuration of a run that is a folder."""
    sized = [word for word in words if word.startswith("image_size=")]
    batch = [word for word in words if word.startswith("batch_size=")] or ["batch_size=4"]
    others = [word for word in words if word.partition("=")[0] not in OWN]
    config = load("train", ["generator=pipeline", "objective=denoising", *batch, *others])
    config.name, config.generator.path = path.name, str(path)
    config.sampler = OmegaConf.create(dict(found.sampler))
    config.evaluate.steps, config.evaluate.guidance = found.steps, found.guidance
    if sized:
        config.generator.image_size = whole(sized[-1])
    return config


def whole(word: str) -> int:
    """The number of an option that has no place of its own."""
    text = word.partition("=")[2]
    if not text.isdecimal() or not int(text):
        raise UserError(f"{word} is not a whole number of at least 1")
    return int(text)


PARTS = ("net", "schedule", "conditioner", "codec")
"""Groups that a generator is made of, unless it is one that has them already."""


def refuse_parts(words: Sequence[str], config: DictConfig) -> None:
    """Refuse a part, or an option of one, that the generator does not take because it has its own."""
    target = str(config.generator._target_)
    for word in words:
        part = word.lstrip("+").partition("=")[0].partition(".")[0]
        if part in PARTS and not taken(target, {part: None}):
            name = target.rpartition(".")[2]
            raise UserError(f"{word}: {name} takes no {part}, it has its own: leave it out")


def is_one(folder: Path) -> bool:
    """Whether a run is a pipeline's folder that nothing has trained."""
    if store.has_checkpoint(folder) or not (folder / "config.yaml").is_file():
        return False
    return bool(store.config_of(folder).generator.get("_target_") == TARGET)


def opened(folder: Path) -> Model:
    """The model of such a run."""
    config = store.config_of(folder)
    generator: PipelineGenerator = build(plain(config.generator))
    return Model(
        generator=generator.eval().requires_grad_(False),
        checkpoint=Path(config.name),
        images=0,
        ema="raw",
        text=OmegaConf.to_yaml(config),
        config=plain(config),
    )


class Fitted(Generation):
    """Generation a few images at a time, each brought to the size of the images that they are judged beside.

    The rule is the one that those went through: center crop, antialiased bicubic resize of 8-bit images.
    """

    def __init__(self, made: Generation, *, size: int, at_once: int) -> None:
        super().__init__(made.generator, made.sampler, made.settings)
        self.size, self.at_once = size, at_once

    def __call__(self, batch: Batch, rng: Rng) -> Tensor:
        """Images [B,C,size,size] in [-1,1]."""
        found = []
        for start in range(0, len(batch), self.at_once):
            part = slice(start, start + self.at_once)
            images = super().__call__(batch.rows(part), Rng(rng.seed, rng.position[part], turn=rng.turn))
            found.append(self._fitted(images))
        return torch.cat(found)

    def _fitted(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self.size:
            return images
        pixels = levels(images).permute(0, 2, 3, 1).contiguous().numpy()
        return torch.cat([scale(fit(each, self.size)[None]) for each in pixels])

    def record(self) -> dict[str, str | float]:
        """That of the generation, with the model, its license, and how its images were resized."""
        made = self.generator.image_shape[1]
        resized = {"resized": f"{made} to {self.size} pixels ({RECIPE})"} if made != self.size else {}
        return {**super().record(), **self.generator.about, **resized}


def fitted(generate: Generation, config: DictConfig) -> Generation:
    """How a run's images are made to be judged; those of a pipeline a few at a time, in the data's size."""
    if config.generator.get("_target_") != TARGET:
        return generate
    return Fitted(generate, size=config.data.image_size, at_once=config.batch_size)
