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

from lmsd.cli.config.compose import load
from lmsd.cli.config.schema import plain
from lmsd.cli.config.settings import SamplingOptions
from lmsd.cli.runs import store
from lmsd.cli.runs.agreed import agreed
from lmsd.cli.runs.pipelines import KEY, OWN, folder_of
from lmsd.data.transforms import RECIPE, fit, scale
from lmsd.errors import UserError
from lmsd.models.pipeline import PipelineGenerator, Usual, usual
from lmsd.ranks import launched_rank
from lmsd.rng import Rng
from lmsd.sampling import Generation, Model
from lmsd.spec import build
from lmsd.types import Batch, levels

OVERRULED = ("generator.path", "evaluate.steps", "evaluate.guidance")
"""Options whose values come from the folder."""


def begun(text: str, given: Sequence[str], words: Sequence[str]) -> str:
    """The new run folder of a pipeline's; given: what configures it, of all words."""
    path = Path(text).absolute()
    found = usual(path)
    folder = agreed("pipeline_run", lambda: str(store.create(configured(path, found, given), list(words))))
    if launched_rank() == 0:
        store.set_status(Path(folder), state="done")
        name, kind, license_files = found.about.values()
        print(f"{name}, a {kind} ({license_files}): {folder}", file=sys.stderr)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
    return folder


def configured(path: Path, found: Usual, words: Sequence[str]) -> DictConfig:
    """The configuration of a run that is a folder; UserError for a word that the folder would overrule."""
    for word in words:
        name = word.lstrip("+").partition("=")[0]
        if name in OVERRULED or name.startswith("sampler."):
            raise UserError(
                f"{word} does nothing beside pipeline=FOLDER, which brings its own: leave it out; sampler=, "
                "steps= and guidance= choose others"
            )
    sized = [word for word in words if word.startswith("image_size=")]
    batch = [word for word in words if word.startswith("batch_size=")] or ["batch_size=4"]
    others = [word for word in words if word.partition("=")[0] not in OWN]
    config = load(["generator=pipeline", "objective=denoising", *batch, *others])
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


def is_one(folder: Path) -> bool:
    """Whether a run is a pipeline's folder that nothing has trained."""
    if store.has_checkpoint(folder) or not (folder / "config.yaml").is_file():
        return False
    return any(word.startswith(KEY) for word in (folder / "overrides.txt").read_text().splitlines())


def opened(folder: Path, chosen: SamplingOptions) -> Model:
    """The model of such a run; UserError for a checkpoint or an average, of which it has none."""
    config = store.config_of(folder)
    if chosen.checkpoint not in (None, config.name) or chosen.ema not in ("ema", "raw"):
        raise UserError(
            f"{folder} is a pipeline's folder that nothing has trained, without checkpoints and averages: "
            "leave checkpoint= and ema= out"
        )
    generator: PipelineGenerator = build(plain(config.generator))
    return Model(
        generator=generator.eval().requires_grad_(False),
        checkpoint=Path(config.name),
        images=0,
        ema="raw",
        text=OmegaConf.to_yaml(config),
        config=plain(config),
        spec=plain(config.generator),
    )


class Fitted(Generation):
    """Generation a few images at a time, each brought to the size of the images that they are judged beside.

    The rule is the one that those went through: center crop, antialiased bicubic resize of 8-bit images.
    """

    def __init__(self, made: Generation, *, size: int, at_once: int) -> None:
        super().__init__(made.generator, made.sampler, made.settings, made.weaker)
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
        return {**super().record(), **vars(self.generator).get("about", {}), **resized}


def fitted(generate: Generation, config: DictConfig) -> Generation:
    """How a run's images are made to be judged; those of a pipeline a few at a time, in the data's size."""
    if folder_of(config) is None:
        return generate
    return Fitted(generate, size=config.data.image_size, at_once=config.batch_size)
