"""The parity gate: an exported folder is compared with its model before it gets its name.

    x̂₀       max |x̂₀ − x̂₀'| / max(1, max |x̂₀|) of an image, over all knots, several batch sizes, with and
             without a condition, on noisy images and on constant ones, where variances are 0
    images   PSNR = 20 log₁₀(255/RMSE) of whole images in 256 levels, the worst of n; `SAME` if none differs

Each side encodes the prompts, denoises and decodes by itself. Whatever is not a number counts as infinitely
far.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmsd.export.base import Parity, Row
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.sampling import levels
from lmsd.sampling.generation import Generation
from lmsd.sampling.model import Model
from lmsd.types import Batch
from lmsd.types import levels as quantized

SIZES = (1, 2, 5)
"""Batch sizes at which x̂₀ is compared."""
LARGE = 128
"""Side of images above which less is compared: one at a time, eight knots, two images."""
SAME = 100.0
"""Decibels of images that do not differ at all."""
WORDS = ("a", "red", "large", "photo", "of", "two", "dog", "blue", "left", "circle")
"""Prompts for text encoders without a vocabulary of their own."""


@dataclass(frozen=True)
class Limits:
    """What is still the same: x0: largest difference of x̂₀; psnr: lowest of an image, dB; n: images drawn."""

    x0: float = 1e-5
    psnr: float = 40.0
    n: int = 16


EXACT = Limits(x0=0.0, psnr=SAME)
QUANTIZED = {
    "int8": Limits(x0=0.25, psnr=25.0),
    "fp16": Limits(x0=0.003, psnr=45.0),
    "bf16": Limits(x0=0.03, psnr=40.0),
}
"""What weights of fewer bits are held to: no fault, which the scores must judge."""


def compare(model: Model, other: Model, limits: Limits) -> Parity:
    """How far `other` is from the model that it was exported from, with the settings that both come with."""
    large = model.generator.image_shape[1] > LARGE
    sizes, n = ((1,), min(2, limits.n)) if large else (SIZES, limits.n)
    rows = (
        Row("largest difference of x0", x0_difference(model, other, sizes), limits.x0),
        Row("PSNR of the worst image, dB", worst_psnr(model, other, n), limits.psnr, at_least=True),
    )
    own = model.generation().settings
    setup = {"steps": own.steps, "guidance": own.guidance, "batches": list(sizes), "images": n}
    return Parity(rows, setup)


def x0_difference(model: Model, other: Model, sizes: Sequence[int] = SIZES) -> float:
    """The largest difference of x̂₀, by its largest value, over all knots, batch sizes and conditions."""
    settings = model.generation().settings
    return max(
        _far(_x0(model.generator, batch, *inputs, null=null), _x0(other.generator, batch, *inputs, null=null))
        for size in sizes
        for batch in [asked(model, size)]
        for inputs in probes(model.generator, settings.steps, batch)
        for null in ((False, True) if settings.guided else (False,))
    )


def probes(generator: Generator, steps: int, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """(x_t, t, z) at every knot where a step may begin: a noisy image, and at both ends constant ones."""
    rng, shape = Rng(7, batch.position), generator.shape
    table = levels(generator.process.schedule, steps)[:-1]
    few = generator.image_shape[1] > LARGE and len(table) > 8
    for k, level in enumerate(table):
        if few and k % (len(table) // 7) and k < len(table) - 1:
            continue
        here = rng.at(k)
        z = here.normal((generator.z_dim,), "z") if generator.z_dim else None
        t = torch.tensor([level.time]).expand(len(batch))  # as sampling gives it
        x0 = here.normal(shape, "x0").clamp(-1, 1)
        yield level.alpha * x0 + level.sigma * here.normal(shape, "eps"), t, z
        if k in (0, len(table) - 1):
            yield torch.zeros(len(batch), *shape), t, z
            yield torch.full((len(batch), *shape), 0.5), t, z


@torch.no_grad()
def _x0(
    generator: Generator, batch: Batch, x_t: Tensor, t: Tensor, z: Tensor | None, *, null: bool
) -> Tensor:
    drop = torch.ones(len(batch), dtype=torch.bool) if null else None
    return generator(x_t, t, generator.condition(batch, drop), z)  # type: ignore[no-any-return]


def _far(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    apart = (one - other).abs().nan_to_num(nan=math.inf).flatten(1).amax(1)
    return float((apart / one.abs().flatten(1).amax(1).clamp(min=1.0)).max())


def worst_psnr(model: Model, other: Model, n: int) -> float:
    """The lowest PSNR of n images, drawn by both sides for the same prompts and seed."""
    batch = asked(model, n)
    one, two = (drawn(each.generation(), batch) for each in (model, other))
    return psnr(one, two)


def drawn(generate: Generation, batch: Batch, *, seed: int = 0, at_once: int = 8) -> Tensor:
    """Images in 256 levels, uint8 [n,C,H,W], a few at a time."""
    parts = [slice(start, start + at_once) for start in range(0, len(batch), at_once)]
    made = [generate(batch.rows(part), Rng(seed, batch.position[part])) for part in parts]
    return torch.cat([quantized(images) for images in made])


def psnr(one: Tensor, other: Tensor) -> float:
    """20 log₁₀(255/RMSE) of the worst of n images, uint8 [n,C,H,W]."""
    if one.shape != other.shape:
        return -math.inf
    mse = (one.double() - other.double()).square().flatten(1).mean(1).max().item()
    return SAME if mse == 0 else min(SAME, 10 * math.log10(255**2 / mse))


def asked(model: Model, n: int) -> Batch:
    """What n images are asked for: classes in turn, or captions of words that the tokenizer knows."""
    conditioner = model.generator.conditioner
    if conditioner.reads == "nothing":
        return model.batch((), n=n)
    if conditioner.reads == "label":
        return model.batch([str(number % conditioner.classes) for number in range(n)])
    return model.batch(captions(_vocabulary(conditioner.get_extra_state()), n))


def captions(words: Sequence[str], n: int) -> list[str]:
    """N captions of 0 to 24 of the words, so that some are empty and some longer than a context."""
    counts = Rng(3, torch.arange(n)).integer(0, len(words), (24,), "words")
    lengths = [0, 24, *(1 + number % 6 for number in range(n))]
    return [" ".join(words[place] for place in row[:length]) for row, length in zip(counts.tolist(), lengths)]  # noqa: B905 (fewer rows)


def _vocabulary(state: Any) -> Sequence[str]:
    """The whole words of an own tokenizer, in order; `WORDS` for any other."""
    match state:
        case {"tokenizer": str(text)} if text:
            known = json.loads(text)["model"]["vocab"]
        case _:
            return WORDS
    whole = [word.removesuffix("</w>") for word in known if word.endswith("</w>")]
    return [word for word in whole if len(word) > 2 and word.isascii()] or WORDS
