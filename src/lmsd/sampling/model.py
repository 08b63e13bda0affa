"""A trained run, opened without the code that trained it: `lmsd.load`.

    model = lmsd.load("last")
    images = model.sample(["a red circle", "a blue star"], seed=0)        uint8 [2,H,W,C]
    images = model.sample(n=16)        of a run with conditioner=none, which takes no prompts

Everything comes from one checkpoint: the generator's spec and weights, and the text of the configuration, for
the sampler and its settings.
"""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmsd.arguments import explained
from lmsd.checkpoints import KEY, averages, find, find_run, read, spec_of
from lmsd.data.buckets import bucket_sizes
from lmsd.errors import UserError
from lmsd.models.exported import MANIFEST, manifest_in, opened, placed
from lmsd.models.generator import Generator
from lmsd.models.trained import rebuilt
from lmsd.rng import Rng
from lmsd.sampling.generation import Generation
from lmsd.sampling.sampler import Sampler
from lmsd.sampling.samplers import Direct
from lmsd.sampling.settings import Settings
from lmsd.spec import build, plain
from lmsd.types import Batch, levels

_FREE = (
    "this run was trained without captions and classes (conditioner=none): leave prompts out, and say how "
    "many images, n=16"
)
_ASKED = (
    "n={n} is for a run with conditioner=none, and this one reads {reads}: give prompts, one for each image"
)


@dataclass(frozen=True)
class Model:
    """A run's generator, in eval mode and without gradients, and how the run samples it.

    checkpoint: the file that was opened; images: seen by then; ema: "ema", a half-life, or "raw"; config: of
    the run, plain data; text: the same as it was written, YAML; spec: the generator's tree, for
    `lmsd.spec.build`.
    """

    generator: Generator
    checkpoint: Path
    images: int
    ema: str
    text: str
    config: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.config["name"])

    @explained
    def sample(
        self,
        prompts: Sequence[str] = (),
        *,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> NDArray[np.uint8]:
        """One image for each prompt, uint8 [n,H,W,C]; image i is a function of (seed, i, its prompt).

        prompts: captions, or class numbers for a model of labels; n: how many images of a model that was
        trained without either; steps, guidance: None for the run's own. The same images as `lmsd sample`.
        Raises UserError for settings that the run cannot sample with, and for prompts that it does not take.
        """
        if type(seed) is not int or seed < 0:
            raise UserError(f"seed={seed!r} is no seed: give a whole number from 0")
        batch = self.batch(prompts, n=n)
        cut = self.generator.conditioner.cut(list(batch.text or ()))
        if cut:
            warnings.warn(f"{cut} of {len(batch)} prompts are longer than the context and cut", stacklevel=2)
        made = self.generation(steps=steps, guidance=guidance)(batch, Rng(seed, batch.position))
        found: NDArray[np.uint8] = levels(made).permute(0, 2, 3, 1).contiguous().numpy()
        return found

    @explained
    def generation(
        self,
        *,
        sampler: Sampler | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
        image_guidance: float | None = None,
        autoguidance: "Model | None" = None,
        size: tuple[int, int] | None = None,
    ) -> Generation:
        """(batch, rng) → images in [-1,1], with the run's own settings where none are given.

        autoguidance: a model that has learned less, which guidance leads away from instead of from the image
        without a caption; size: height and width in pixels, of a run with data.train.buckets. Raises
        UserError for settings that the run cannot be sampled with.
        """
        own = self.config["evaluate"]
        guidance = own["guidance"] if guidance is None else guidance
        steps = own["steps"] if steps is None else steps
        image = own.get("image_guidance", 1.0) if image_guidance is None else image_guidance
        if image != 1.0 and self.generator.sees == "nothing":
            raise UserError(
                f"image_guidance={image:g} is for runs that see an image (objective=edit, inpaint): leave "
                "it out"
            )
        limits = interval or own["interval"]
        settings = Settings(steps, guidance=guidance, interval=limits, image_guidance=image)
        self._check_size(size)
        sampler = sampler or build(self.config["sampler"])
        check_sampler(sampler, self.config.get("objective", {}))
        if autoguidance is not None:
            self._check_weaker(autoguidance, settings)
            autoguidance._check_size(size)
            told = f"{autoguidance.checkpoint}@{autoguidance.ema}"
            return Generation(self.generator, sampler, settings, (autoguidance.generator, told), size)
        self._check_guided(guidance)
        if interval is not None and not settings.guided:
            raise UserError(
                f"interval={list(interval)} says where guidance acts, and guidance=1 is none: give another"
            )
        return Generation(self.generator, sampler, settings, size=size)

    def _check_size(self, size: tuple[int, int] | None) -> None:
        """Raise UserError for images of a size that the run has not learned."""
        if size is None:
            return
        data = self.config["data"]
        multiple, (height, width) = data.get("train", {}).get("buckets"), size
        said = f"size={width}x{height}"
        if multiple is None:
            side = data["image_size"]
            raise UserError(
                f"{said}: this run learned squares of {side} (no data.train.buckets): leave it out"
            )
        learned = bucket_sizes(data["image_size"], multiple)
        if size not in learned:
            known = ", ".join(f"{across}x{down}" for down, across in learned)
            raise UserError(f"{said}: this run learned {known}: take one of these")

    def _check_guided(self, guidance: float) -> None:
        """Raise UserError where there are no images without captions to be guided away from."""
        if guidance == 1.0:
            return
        if self.generator.conditioner.reads == "nothing":
            raise UserError(
                f"guidance={guidance:g} weighs images with their caption or class against images without, "
                "and this run has only these (conditioner=none): take guidance=1"
            )
        if not _learned_without(self.config["objective"]):
            raise UserError(
                f"guidance={guidance:g} needs a generator that was trained without captions too, and this "
                "one was not (caption_dropout=0 in its objective): take guidance=1, or train with "
                "caption_dropout=0.1"
            )

    def _check_weaker(self, other: "Model", settings: Settings) -> None:
        """Raise UserError where another model's x̂₀ of the same x_t and t is no x̂₀ here, or does nothing."""
        if settings.guidance == 1 or settings.image_guidance != 1:
            raise UserError(
                f"autoguidance acts through guidance, and guidance={settings.guidance:g}, "
                f"image_guidance={settings.image_guidance:g} leave it nothing to do: take guidance=2 and no "
                "image_guidance"
            )
        for name, mine, its in (
            ("images", self.generator.shape, other.generator.shape),
            ("conditioner", self.generator.conditioner.reads, other.generator.conditioner.reads),
            ("classes", self.generator.conditioner.classes, other.generator.conditioner.classes),
            ("z_dim", self.generator.z_dim, other.generator.z_dim),
            *((part, self.config.get(part), other.config.get(part)) for part in ("schedule", "codec")),
        ):
            if mine != its:
                raise UserError(
                    f"autoguidance needs a model of the same {name}, and {other.checkpoint} has {its} for "
                    f"{mine}: give an earlier checkpoint, or a shorter or smaller run of the same kind"
                )

    @explained
    def batch(self, prompts: Sequence[str], x: torch.Tensor | None = None, *, n: int | None = None) -> Batch:
        """What the generator is asked for; x [n,C,H,W]: images to begin with, None: there are none.

        prompts, n: as of `sample`. Raises UserError for what the model does not take.
        """
        conditioner = self.generator.conditioner
        if conditioner.reads == "nothing" and (n is None or prompts):
            raise UserError(_FREE)
        if conditioner.reads != "nothing" and n is not None:
            raise UserError(_ASKED.format(n=n, reads=conditioner.reads))
        if n is not None and (type(n) is not int or n < 1):
            raise UserError(f"n={n!r} is no number of images: give 1 or more")
        if n is None and (
            isinstance(prompts, str) or not isinstance(prompts, Collection) or not len(prompts)
        ):
            raise UserError(f"prompts={prompts!r} is no list of texts: give one for each image, [text, ...]")
        words = [str(prompt) for prompt in prompts]
        count = n or len(words)
        return Batch(
            x=torch.zeros(count, *self.generator.image_shape) if x is None else x,
            position=torch.arange(count),
            text=words or None,
            label=conditioner.labels(words),
        )


def load(run: str | Path, *, ema: str | int = "ema") -> Model:
    """A trained model, ready to sample, on the CPU.

    run: `last`, an id, a run's folder or one of its checkpoints, whose newest intact one is opened; or a
    folder that `lmsd export` wrote. ema: "ema" for the first average, or the raw weights where the run keeps
    none; a half-life in images; "raw". Raises UserError where there is no such run, checkpoint or average,
    and where one is damaged.
    """
    try:
        path = Path(run)
    except TypeError as error:
        raise UserError(f"run={run!r} is no run: give last, an id, a folder or a checkpoint") from error
    if (path / MANIFEST).is_file():
        return _exported(path, str(ema))
    checkpoint = find(path if path.exists() else find_run(str(run)))
    content = read(checkpoint)
    half_life = None if ema == "raw" or not averages(content, "generator") else str(ema)
    try:
        built = rebuilt(content, half_life)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    text = str(content[KEY]["config"])
    return Model(
        generator=built.eval().requires_grad_(False),
        checkpoint=checkpoint,
        images=int(content[KEY]["clock"]["images"]),
        ema=half_life or "raw",
        text=text,
        config=plain(text),
        spec=spec_of(content),
    )


def _exported(folder: Path, ema: str) -> Model:
    """The model of an exported folder, which holds one set of weights."""
    content = manifest_in(folder)
    if ema not in ("ema", content["ema"]):
        raise UserError(f"{folder} was exported with ema={content['ema']}, and holds no other weights")
    text = str(content["config"])
    return Model(
        generator=opened(folder, content).eval().requires_grad_(False),
        checkpoint=folder / MANIFEST,
        images=int(content["images"]),
        ema=str(content["ema"]),
        text=text,
        config=plain(text),
        spec=placed(content["spec"], folder),
    )


def check_sampler(sampler: Sampler, objective: Any) -> None:
    """Refuse a sampler that takes the net's output for what the objective did not teach it."""
    previous, direct = _predicts_previous(objective), type(sampler) is Direct
    if previous != direct and "reward" not in objective:  # which begins with what was taught elsewhere
        learned = "the next state (predict=previous)" if previous else "the image, not the next state"
        way = "sampler=direct" if previous else "another sampler, e.g. sampler=few_step"
        raise UserError(
            f"the objective teaches the net {learned}, which {type(sampler).__name__} does not expect: {way}"
        )


def _learned_without(objective: Any) -> bool:
    """Whether images without a condition were learned: some are dropped, or rewards begin elsewhere."""
    if not isinstance(objective, Mapping):
        return False
    dropped = objective.get("caption_dropout") or objective.get("drop")  # the latter in version 2
    return bool("reward" in objective or dropped) or any(map(_learned_without, objective.values()))


def _predicts_previous(objective: Any) -> bool:
    """Whether the net's output is x_{t-1}: predict=previous, at any depth."""
    if not isinstance(objective, Mapping):
        return False
    return objective.get("predict") == "previous" or any(map(_predicts_previous, objective.values()))
