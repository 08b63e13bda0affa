"""The fake score: a denoiser of what a student makes, and a discriminator on its own features.

x̂₀ = f(x_t, t, c)                           begins as a twin of the generator
logits_k = w_k·h_k + ⟨A_k h_k, B c⟩/√d + b_k     h_k: the taps of the same pass (Yin et al. 2024)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lmsd.errors import Count
from lmsd.models.discriminator import ProjectionHead
from lmsd.models.frozen import twin
from lmsd.models.generator import Generator
from lmsd.models.taps import Tap, tap_channels, tap_names, tapped, with_taps
from lmsd.types import Batch, Cond


class FakeScore(nn.Module):
    """A twin of a generator, with one head on each of its taps.

    generator: of which it begins as a twin, its conditioner included; cond_dim: width of the pooled
    condition; width: of a tap's features; taps: submodules of the net whose outputs are judged, by default
    the net's own list. Raises UserError for a net without these taps.
    """

    def __init__(
        self, generator: Generator, *, cond_dim: int, width: Count = 128, taps: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.score: Generator = twin(generator)
        net = with_taps(self.score.net)
        self.names = tap_names(net, taps)
        channels = tap_channels(net, self.names)
        self.taps = nn.ModuleList(Tap(c, width) for c in channels)
        self.heads = nn.ModuleList(ProjectionHead(width, cond_dim=cond_dim) for _ in channels)

    def condition(self, batch: Batch) -> Cond:
        """The condition of a batch, by the twin's own conditioner."""
        return self.score.condition(batch)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Cond,
        z: Tensor | None = None,
        *,
        output: Literal["x0", "native"] = "x0",
    ) -> tuple[Tensor, Tensor]:
        """x̂₀ [B,C,H,W], or with output="native" what the net predicts; and logits [B,heads], high for real.

        The arguments are those of a generator; logits are at least float32.
        """
        with tapped(with_taps(self.score.net), self.names) as features:
            denoised = self.score(x_t, t, cond, z, output=output)
        logits = [
            head(tap(h), cond.pooled) for head, tap, h in zip(self.heads, self.taps, features, strict=True)
        ]
        return denoised, torch.cat(logits, dim=1)
