"""Editing that is trained: the generator sees the image that it is to change.

    edit       c = (source, instruction):       L = E w(t) ‖f(x_t, t, source, instruction) − y‖²/D
    inpaint    c = (m, (1 − m) x, caption):     the same, x_0 whole; m [B,1,H,W]: 1 where it is to be filled

The image enters as further input channels whose weights begin at 0 (Brooks et al. 2023). Instruction and
image are dropped each alone and both together, on shares of the samples, so that each can be guided:

    x̂ = x̂(∅, ∅) + w_i (x̂(image, ∅) − x̂(∅, ∅)) + w_t (x̂(image, text) − x̂(image, ∅))

Masks are drawn by position: boxes of random sides, brush strokes, the whole image.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lmsd.errors import Share, UserError
from lmsd.models.generator import Generator
from lmsd.objectives.base import Facts, generator_of, latent, mean_square, standard_normal
from lmsd.objectives.denoising import Denoising, Weighting, native_weight
from lmsd.process.times import Times
from lmsd.rng import Rng
from lmsd.types import Batch, Loss

STROKES = 4
"""Discs of a brush stroke."""


class Editing(Denoising):
    """Denoising of the edited image, given the source `Batch.extra["source"]` (data.images=[source]).

    times, weighting: as in `Denoising`; caption_dropout: share of the samples without instruction, as many
    without image, as many without both. Raises UserError for a generator that sees no source.
    """

    sees = "source"

    def __init__(self, times: Times, *, weighting: Weighting = "none", caption_dropout: Share = 0.05) -> None:
        if not 0 <= caption_dropout <= 1 / 3:
            raise UserError(
                f"editing: caption_dropout={caption_dropout} of each kind: give a share from 0 to 1/3"
            )
        super().__init__(times, weighting=weighting, caption_dropout=caption_dropout)

    def prepare(self, facts: Facts) -> None:
        """Refuse a generator that does not see what this method shows it."""
        found = generator_of(facts.players).sees
        if found != self.sees:
            raise UserError(f"editing: the generator sees {found}: set generator.sees={self.sees}")

    def shown(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with what the generator is to see."""
        if "source" not in batch.extra:
            raise UserError(
                "editing: these data are read without sources (KEY.source.png): set data.images=[source]"
            )
        return batch

    def loss(self, generator: Generator, batch: Batch, rng: Rng) -> Loss:
        """The mean over the batch; logs "denoising", the same number."""
        u = rng.uniform((), "drop")
        p = self.caption_dropout
        mute, blind = u < 2 * p, (u >= p) & (u < 3 * p)
        t = self.times(rng, generator.process)
        eps = standard_normal(rng, batch.x, "eps")
        x_t = generator.process.noise(batch.x, t, eps)
        cond = generator.condition(self.shown(batch, rng), mute, blind)
        z = latent(generator, rng, batch.x)
        error = mean_square(generator(x_t, t, cond, z, output="native") - generator.target(batch.x, eps, t))
        value = (native_weight(self.weighting, generator, t) * error).mean()
        return Loss(value, {"denoising": value.detach()})


class Inpainting(Editing):
    """Denoising of the whole image, given a random mask and what it leaves; options as in `Editing`."""

    sees = "masked"

    def shown(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with a mask for each sample."""
        return replace(batch, extra={**batch.extra, "mask": masks(rng, batch.x.shape[2], batch.x.shape[3])})


def masks(rng: Rng, height: int, width: int) -> Tensor:
    """Masks [B,1,H,W] of 0 and 1: half of them boxes, three in ten brush strokes, the rest everything."""
    kind = rng.uniform((), "mask.kind")[:, None, None]
    device = kind.device
    y = (torch.arange(height, device=device) + 0.5)[None, :, None] / height
    x = (torch.arange(width, device=device) + 0.5)[None, None, :] / width
    u = rng.uniform((4,), "mask.box")[:, :, None, None]
    tall, wide = 0.25 + 0.5 * u[:, 0], 0.25 + 0.5 * u[:, 1]
    top, left = u[:, 2] * (1 - tall), u[:, 3] * (1 - wide)
    box = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    v = rng.uniform((3 + 2 * STROKES,), "mask.brush")[:, :, None, None]
    radius, at_y, at_x = 0.08 + 0.12 * v[:, 0], v[:, 1], v[:, 2]
    brush = torch.zeros_like(box)
    for stroke in range(STROKES):
        brush |= (y - at_y).square() + (x - at_x).square() < radius.square()
        at_y = (at_y + 0.3 * (v[:, 3 + 2 * stroke] - 0.5)).clamp(0, 1)
        at_x = (at_x + 0.3 * (v[:, 4 + 2 * stroke] - 0.5)).clamp(0, 1)
    made = torch.where(kind < 0.5, box, torch.where(kind < 0.8, brush, torch.ones_like(box)))
    return made[:, None].float()
