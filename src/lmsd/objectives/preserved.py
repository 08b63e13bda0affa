"""Prior preservation: what the generator could before is trained along (Ruiz et al. 2023, DreamBooth, eq. 2).

    L = L_method(examples) + λ L_denoising(own)        own: what the base itself draws of the examples' class

Every sample of a batch brings one own image along, chosen by its place in the stream, so that micro-batches
and ranks change nothing. The own images are drawn once, before the first update, and again after a restart:
they are a function of the seed and the base.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmsd.errors import Count, Measure, UserError
from lmsd.models.codec import bounded
from lmsd.objectives.base import Cast, Facts, Objective, Part, generator_of
from lmsd.objectives.denoising import Denoising
from lmsd.rng import Rng, fold
from lmsd.sampling import Sampler, Settings, sample
from lmsd.types import Batch, Clock, Loss, Players, Turn

_AT_ONCE = 8
"""Own images drawn at a time, whatever the batch: their last bits depend on it."""
_OWN, LOSS = 1, 2  # streams of random numbers beside the method's


class Preserved(Objective):
    """A method with prior preservation.

    method: what learns from the examples; prompts: of their class, as [a photo of a dog]; sampler, settings:
    how the base draws own images; own: how many; weight: λ; prior: the loss on them. Raises UserError without
    prompts.
    """

    def __init__(
        self,
        method: Objective,
        *,
        prompts: Sequence[str],
        sampler: Sampler,
        settings: Settings,
        prior: Denoising,
        own: Count = 100,
        weight: Measure = 1.0,
    ) -> None:
        if not prompts:
            raise UserError("objective.prompts: which class is preserved? prompts='[a photo of a dog]'")
        self.method, self.prompts, self.sampler, self.settings = method, list(prompts), sampler, settings
        self.prior, self.own, self.weight = prior, own, weight
        self._images: Tensor | None = None

    @property
    def cast(self) -> Cast:
        """The method's, and the base, which draws."""
        return {**self.method.cast, "base": Part(trained=False, like="generator", fixed=True)}

    @property
    def lead(self) -> str:
        """The method's."""
        return self.method.lead

    @property
    def proxy(self) -> str | None:
        """The method's."""
        return self.method.proxy

    def prepare(self, facts: Facts) -> None:
        """Prepare the method. Raises UserError for a generator that asks for classes."""
        if generator_of(facts.players).conditioner.reads == "label":
            raise UserError(
                "objective.prompts: own images are drawn of captions, and this run reads classes: take "
                "conditioner=text, or old and new shards together, data.shards=[OLD,NEW] data.weights=[1,1]"
            )
        self.method.prepare(facts)

    def turns(self, players: Players, batch: Batch, clock: Clock, rng: Rng) -> Iterator[Turn]:
        """The method's turns; those of the generator with the prior beside them."""
        own = self._own(players, batch, rng)
        for turn in self.method.turns(players, batch, clock, rng):
            if turn.player == "generator":
                at = Rng(int(fold(rng.seed, LOSS).item()), rng.position)
                turn = replace(turn, loss=partial(self._loss, turn, players, own, at))
            yield turn

    def _loss(self, turn: Turn, players: Players, own: Batch, rng: Rng) -> Loss:
        first, second = turn.loss(), self.prior.loss(generator_of(players), own, rng)
        logs = {**first.logs, "prior": second.value.detach()}
        return Loss(first.value + self.weight * second.value, logs)

    def _own(self, players: Players, batch: Batch, rng: Rng) -> Batch:
        """One own image for each sample of the batch."""
        if self._images is None:
            self._images = self._drawn(players, batch, rng.seed)
        rows = rng.integer(0, self.own, (), "own")
        text = [self.prompts[row % len(self.prompts)] for row in rows.tolist()]
        return Batch(x=self._images[rows], position=batch.position, text=text)

    @torch.no_grad()
    def _drawn(self, players: Players, batch: Batch, seed: int | Tensor) -> Tensor:
        """All own images, as they are diffused, on the device of the batch."""
        base, device, found = generator_of(players, "base"), batch.x.device, []
        base.eval()
        for places in torch.arange(self.own, device=device).split(_AT_ONCE):
            text = [self.prompts[place % len(self.prompts)] for place in places.tolist()]
            asked = Batch(x=batch.x[:1].expand(len(places), *batch.x.shape[1:]), position=places, text=text)
            nothing = torch.ones(len(places), dtype=torch.bool, device=device)
            images = sample(
                base, base.condition(asked), base.condition(asked, nothing) if self.settings.guided else None,
                sampler=self.sampler, settings=self.settings, rng=Rng(int(fold(seed, _OWN).item()), places),
                shape=batch.x.shape[1:], dtype=batch.x.dtype,
            )  # fmt: skip
            found.append(bounded(images, base.bound))
        return torch.cat(found)

    def probe(self, players: Players, batch: Batch, rng: Rng) -> Mapping[str, Tensor]:
        """The method's."""
        return self.method.probe(players, batch, rng)

    def collapsed(self, metrics: Mapping[str, float]) -> str | None:
        """The method's verdict."""
        return self.method.collapsed(metrics)

    def state_dict(self) -> Mapping[str, Any]:
        """The method's."""
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The method's."""
        self.method.load_state_dict(state)
