"""Exponential moving averages of a player, by half-lives in images.

    θ̄ ← θ + β (θ̄ − θ),   β = 2^(−Δn / h(n)),   h(n) = min(h, ρ n)        Karras et al. 2024 (EDM2), appendix

n: images seen, Δn: since the last average. The ramp ρ n forgets the initial weights early on. The averages
are modules in their own right: nothing is swapped in place, so an evaluation or a save at any moment sees
either the weights or an average, never a mixture.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lmsd.engine.parts import part_of
from lmsd.errors import UserError
from lmsd.models.frozen import twin

RAMP = 0.05

_Pairs: TypeAlias = tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]


class EMA(nn.ModuleDict):
    """Averages of a module, one for each half-life, stored under the half-life's number of images.

    half_lives: in images; `average()` returns the first. What is frozen is shared with the source. Raises
    UserError for half-lives that are not distinct numbers above 0.
    """

    def __init__(self, source: nn.Module, half_lives: Sequence[int]) -> None:
        super().__init__()
        if any(half_life < 1 for half_life in half_lives) or len(set(half_lives)) != len(half_lives):
            raise UserError(f"ema={list(half_lives)}: half-lives are distinct numbers of images, 1 or more")
        for half_life in half_lives:
            self[str(int(half_life))] = twin(source).requires_grad_(False).eval()
        self.half_lives = tuple(int(half_life) for half_life in half_lives)
        self.images = 0
        self._found: list[_Pairs] | None = None

    def average(self, half_life: int | None = None) -> nn.Module:
        """The averaged module of a half-life, by default the first; in eval mode, not to be modified."""
        if not self.half_lives:
            raise UserError(
                "this run keeps no EMA: set ema= to half-lives in images, or ask for the raw weights"
            )
        name = str(half_life or self.half_lives[0])
        if name not in self:
            raise UserError(f"no EMA with a half-life of {name} images; there are {list(self.half_lives)}")
        return self[name]

    @torch.no_grad()
    def advance(self, source: nn.Module, images: int) -> None:
        """Average in the weights of `source` after `images` images; buffers are copied."""
        elapsed, self.images = images - self.images, images
        for half_life, (averages, weights, buffers) in zip(self.half_lives, self._pairs(source), strict=True):
            beta = 0.5 ** (elapsed / min(half_life, RAMP * images))
            if averages:  # each rank averages its own shards
                parts = list(map(part_of, averages)), list(map(part_of, weights))
                torch._foreach_lerp_(*parts, 1.0 - beta)
            for kept, new in buffers:
                kept.copy_(new)

    def _pairs(self, source: nn.Module) -> list[_Pairs]:
        """Averages, weights and pairs of buffers, looked up once: walking modules costs more than sums."""
        if self._found is None:
            self._found = []
            for average in self.values():
                pairs = zip(average.parameters(), source.parameters(), strict=True)
                moving = [(kept, new) for kept, new in pairs if kept is not new]
                both = zip(average.buffers(), source.buffers(), strict=True)
                buffers = [(kept, new) for kept, new in both if kept is not new]
                self._found.append(([a for a, _ in moving], [w for _, w in moving], buffers))
        return self._found

    def train(self, mode: bool = True) -> "EMA":
        """Stay in eval mode."""
        return super().train(False)

    def get_extra_state(self) -> dict[str, Any]:
        """When the averages were last updated."""
        return {"images": self.images}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self.images = int(state["images"])
