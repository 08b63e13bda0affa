"""A model that serves: images of several requests in one batch, each as if it were drawn alone.

    image j of a request  =  f(model, prompt, seed, j)

Noise is a hash of (seed, place), one sample at a time, so what shares a batch changes only how sums are
rounded. With `exact` every batch has one size and every caption is encoded by itself: then not even that.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmsd.data.decode import Pixels
from lmsd.data.transforms import scale
from lmsd.errors import UserError
from lmsd.models.conditioner import Conditioner
from lmsd.rng import Rng
from lmsd.sampling import Generation, Model, first_knot
from lmsd.sampling import levels as path_of
from lmsd.types import Batch, Cond, levels

_KEPT = 64  # ways of sampling


@dataclass(frozen=True)
class Way:
    """How an image is drawn; those of one way may share a batch. strength: of an edit, None: from noise."""

    steps: int
    guidance: float
    image_guidance: float = 1.0
    strength: float | None = None
    masked: bool = False


@dataclass(frozen=True)
class Item:
    """One image that is asked for.

    image: what is edited, uint8 [S,S,C]; mask: how much each pixel may change, float32 [S,S,1] in [0, 1].
    """

    way: Way
    prompt: str
    seed: int
    place: int
    image: Pixels | None = None
    mask: NDArray[np.float32] | None = None


class Alone(Conditioner):
    """A conditioner that is asked for each sample by itself: no code depends on the rest of its batch."""

    def __init__(self, inner: Conditioner) -> None:
        super().__init__()
        self.inner = inner
        self.reads, self.classes = inner.reads, inner.classes
        self.token_dim, self.pooled_dim = inner.token_dim, inner.pooled_dim

    def forward(self, batch: Batch, drop: Tensor | None = None) -> Cond:
        """The conditions of all samples, one after another."""
        rows = [slice(place, place + 1) for place in range(len(batch))]
        found = [vars(self.inner(batch.rows(row), None if drop is None else drop[row])) for row in rows]
        return Cond(
            **{
                name: torch.cat([each[name] for each in found])
                for name, v in found[0].items()
                if v is not None
            }
        )

    def labels(self, prompts: list[str]) -> Tensor | None:
        """Those of the inner one."""
        return self.inner.labels(prompts)

    def kept(self, caption: str) -> str:
        """That of the inner one."""
        return self.inner.kept(caption)


class Served:
    """A model under its name; at_once: images in a batch; exact: all batches are filled up to that.

    Everything is checked before an image is queued, so that drawing fails by faults of ours alone.
    """

    def __init__(
        self, model: Model, name: str, *, at_once: int, exact: bool = False, device: str = "cpu"
    ) -> None:
        self.model, self.name, self.at_once, self.exact = model, name, at_once, exact
        try:
            self.device = torch.device(device)
            model.generator.to(self.device)
        except (RuntimeError, AssertionError) as error:
            said = str(error).partition("\n")[0][:120]
            raise UserError(
                f"serve.device={device} cannot be had ({said}): take another, e.g. cpu"
            ) from error
        if exact:
            model.generator.conditioner = Alone(model.generator.conditioner)
        own = model.generation()
        self.own = Way(own.settings.steps, own.settings.guidance, own.settings.image_guidance)
        self._ways: OrderedDict[Way, Generation] = OrderedDict()
        self._lock = Lock()

    @property
    def reads(self) -> str:
        """What it is asked with: "text", "label" or "nothing"."""
        return self.model.generator.conditioner.reads

    @property
    def size(self) -> str:
        """Of its images, as in OpenAI's requests: WIDTHxHEIGHT."""
        _, height, width = self.model.generator.image_shape
        return f"{width}x{height}"

    def generation(self, way: Way) -> Generation:
        """What draws that way, kept. Raises UserError for what the model cannot be sampled with."""
        with self._lock:
            if way not in self._ways:
                found = self.model.generation(
                    steps=way.steps, guidance=way.guidance, image_guidance=way.image_guidance
                )
                path_of(self.model.generator.process.schedule, way.steps)
                if way.strength is not None:
                    first_knot(way.strength, way.steps)
                self._ways[way] = found
                if len(self._ways) > _KEPT:
                    self._ways.popitem(last=False)
            self._ways.move_to_end(way)
            return self._ways[way]

    def check(self, way: Way, prompt: str) -> str:
        """What is read of the prompt; UserError for a way or prompt that the model does not take."""
        sees = self.model.generator.sees
        if way.strength is None and sees == "source":
            raise UserError("this model edits images (objective=edit): send one to /v1/images/edits")
        if way.strength is not None and sees == "masked" and not way.masked:
            raise UserError("this model fills in what a mask marks (objective=inpaint): send a mask, too")
        if self.reads == "nothing" and prompt:
            raise UserError("this model was trained without captions and classes: leave prompt empty")
        self.generation(way)
        conditioner = self.model.generator.conditioner
        conditioner.labels([prompt])
        return conditioner.kept(prompt) if self.reads == "text" else prompt

    @torch.no_grad()
    def draw(self, items: Sequence[Item]) -> list[Pixels]:
        """The images of some items of one way, uint8 [S,S,C] each."""
        rows = list(items)
        if self.exact:
            rows += [rows[-1]] * (self.at_once - len(rows))
        generation, way = self.generation(rows[0].way), rows[0].way
        batch = self._batch(rows)
        rng = Rng(torch.tensor([item.seed for item in rows], device=self.device), batch.position)
        if way.strength is None:
            made = generation(batch, rng)
        else:
            made = generation.edit(batch, rng, strength=way.strength, mask=_masks(rows))
        pixels = levels(made).permute(0, 2, 3, 1).contiguous().numpy()
        return [_kept(item, found) for item, found in zip(items, pixels, strict=False)]

    def _batch(self, rows: Sequence[Item]) -> Batch:
        images = [item.image for item in rows if item.image is not None]
        x = scale(np.stack(images)) if images else None
        n = len(rows) if self.reads == "nothing" else None
        found = self.model.batch([] if n else [item.prompt for item in rows], x, n=n)
        return replace(found, position=torch.tensor([item.place for item in rows]))

    def warm(self) -> None:
        """Draw once at both ends of the batch's size, so that the first request waits for nothing."""
        if self.model.generator.sees != "nothing":
            return
        prompt = "0" if self.reads == "label" else ""
        item = Item(self.own, prompt, 0, 0)
        for count in {1, self.at_once}:
            self.draw([item] * count)


def _masks(rows: Sequence[Item]) -> Tensor | None:
    found = [item.mask for item in rows if item.mask is not None]
    return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2)) if found else None


def _kept(item: Item, found: Pixels) -> Pixels:
    """The drawn image, with every pixel that the mask keeps as it was."""
    if item.mask is None or item.image is None:
        return found
    return np.where(item.mask > 0, found, item.image)
