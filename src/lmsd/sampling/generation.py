"""A generator, a sampler and its settings as one function: (batch, rng) → images."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lmsd.arguments import explained
from lmsd.errors import UserError
from lmsd.models.generator import Generator
from lmsd.rng import Rng
from lmsd.sampling.editing import edit
from lmsd.sampling.guidance import Weaker, sample
from lmsd.sampling.sampler import Sampler
from lmsd.sampling.settings import Settings
from lmsd.types import Batch, Cond

Generate: TypeAlias = Callable[[Batch, Rng], Tensor]
"""(batch, rng) → images [B,C,H,W] in [-1,1], on the CPU, for the batch's captions or labels."""


class Generation:
    """Sampling with fixed settings, which it records; counts the net's evaluations as it goes.

    Every x̂₀ respects the bound of the settings; images lie in [-1, 1]. weaker: for autoguidance, a generator
    of the same schedule, codec and z that has learned less, and its name. size: height and width of the
    images, of a net that takes any; None: its square.
    """

    @explained
    def __init__(
        self,
        generator: Generator,
        sampler: Sampler,
        settings: Settings,
        weaker: tuple[Generator, str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.generator, self.sampler, self.settings, self.weaker = generator, sampler, settings, weaker
        own = generator.image_shape
        self.shape = generator.shape if size is None else generator.codec.shape_of((own[0], *size))
        self._evaluated = 0
        self._made = 0

    @explained
    def __call__(self, batch: Batch, rng: Rng) -> Tensor:
        """Images [B,C,H,W] in [-1,1] for the batch's captions or labels, each sample independent."""
        return self._run(batch, rng, strength=None, mask=None)

    @explained
    def edit(self, batch: Batch, rng: Rng, *, strength: float, mask: Tensor | None = None) -> Tensor:
        """`batch.x` edited towards its captions or labels; mask [B,1,H,W]: 1 where it may change."""
        return self._run(batch, rng, strength=strength, mask=mask)

    @torch.no_grad()
    def _run(self, batch: Batch, rng: Rng, *, strength: float | None, mask: Tensor | None) -> Tensor:
        net, training = self.generator, self.generator.training
        if len(rng.position) != len(batch):
            raise UserError(
                f"{len(rng.position)} positions for {len(batch)} samples: rng=Rng(seed, batch.position)"
            )
        if mask is not None and tuple(mask.shape) != (len(batch), 1, *net.image_shape[1:]):
            raise UserError(
                f"mask of shape {list(mask.shape)}: give [{len(batch)},1,H,W], H and W of the images"
            )
        device = net.device
        batch, rng = batch.to(device), Rng(rng.seed, rng.position.to(device), turn=rng.turn)
        weaker = None if self.weaker is None else self.weaker[0].to(device)
        counts = [each.register_forward_hook(self._count) for each in (net, weaker) if each is not None]
        net.eval()
        try:
            if net.sees != "nothing":
                batch = self._shown(batch, mask, editing=strength is not None)
            cond = net.condition(batch)
            everything = torch.ones(len(batch), dtype=torch.bool, device=device)
            null: Cond | Weaker | None = None
            if self.settings.guided and weaker is not None:
                null = Weaker(weaker, weaker.condition(batch))
            elif self.settings.guided:
                null = net.condition(batch, everything)
            if strength is None:
                images = sample(
                    net, cond, null, sampler=self.sampler, settings=self.settings, rng=rng, shape=self.shape
                )
            else:
                mask = None if mask is None else self._scaled(mask.to(device))
                x = batch.x if net.sees != "nothing" else net.encode(batch).x
                own = {"sampler": self.sampler, "settings": self.settings, "rng": rng}
                images = edit(net, x, cond, null, **own, strength=strength, mask=mask)  # type: ignore[arg-type]
            images = net.decode(images.float())
        finally:
            net.train(training)
            for count in counts:
                count.remove()
        self._made += len(batch)
        return images.cpu()

    def _shown(self, batch: Batch, mask: Tensor | None, *, editing: bool) -> Batch:
        """The encoded batch with what the net sees: a source (an edit's x, where it has no other), a mask."""
        extra = dict(batch.extra)
        if editing and self.generator.sees == "source":
            extra.setdefault("source", batch.x)
        encoded = self.generator.encode(replace(batch, extra=extra))
        if mask is not None and self.generator.sees == "masked":
            shown = self._scaled(mask.to(batch.x.device))
            return replace(encoded, extra={**encoded.extra, "mask": (shown > 0).to(encoded.x.dtype)})
        return encoded

    def _scaled(self, mask: Tensor) -> Tensor:
        """A pixel mask at the size of what is diffused: a place may change if any of its pixels may."""
        return functional.adaptive_max_pool2d(mask, self.generator.shape[1:])

    def _count(self, net: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._evaluated += len(output)

    def record(self) -> dict[str, str | float]:
        """Sampler, steps, guidance and NFE, the net's evaluations per image, counted rather than derived."""
        nfe = self._evaluated / self._made if self._made else float("nan")
        name = type(self.sampler).__name__
        own = self.settings
        where = {}
        if own.interval is not None and own.guided:
            where = {"interval": "{:g} to {:g}".format(*own.interval)}
        if own.image_guidance != 1:
            where |= {"image_guidance": f"{own.image_guidance:g}"}
        if self.weaker is not None:
            where |= {"autoguidance": self.weaker[1]}
        added = vars(self.generator).get("about", {}).get("adapters")
        where |= {} if added is None else {"adapters": added}
        features = self.generator.codec.told.get("features")
        where |= {} if features is None else {"codec_features": features}
        return {"sampler": name, "steps": own.steps, "guidance": own.guidance, **where, "nfe": nfe}


class Editing(Generation):
    """Generation from the further pictures of a split (data.images), which scores ask for by position."""

    def __init__(self, made: Generation, pictures: Callable[[list[int]], Mapping[str, Tensor]]) -> None:
        super().__init__(made.generator, made.sampler, made.settings, made.weaker)
        self.pictures = pictures

    def __call__(self, batch: Batch, rng: Rng) -> Tensor:
        """Images [B,C,H,W] in [-1,1], each made of the pictures at its position."""
        return super().__call__(replace(batch, extra=self.pictures(batch.position.tolist())), rng)
